"""A simulation in words: verdict, key figures and table cells that terminal, page and live view share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colossus.report.plan_words import carbon, energy, money, part_name
from colossus.report.words import count, duration, percent
from colossus.spec.causes import BADPUT, LABELS, Cause
from colossus.spec.faults import Effect, FaultProfile
from colossus.spec.simulation import Bill, NodeState, SimulatedIncident, Simulation, Tally
from colossus.spec.units import format_quantity

LOW, HIGH = 0.05, 0.95
_ACRONYMS = {
    "gpu": "GPU",
    "hbm": "HBM",
    "hbm3": "HBM3",
    "nic": "NIC",
    "nvlink": "NVLink",
    "cpu": "CPU",
    "sdc": "SDC",
    "psu": "PSU",
    "pcie": "PCIe",
    "nccl": "NCCL",
    "sram": "SRAM",
    "ssd": "SSD",
    "io": "I/O",
}
_EFFECTS = {"crash": "died", "hang": "hung", "slow": "slowed down", "corrupt": "computed wrongly", "planned": "planned stop"}
STATES = {
    NodeState.WORKING: ("working", "nodes of the job while it steps"),
    NodeState.STANDING: ("standing", "nodes of the job while it stands still: starting, recovering, waiting"),
    NodeState.SPARE: ("spare", "healthy nodes that wait to take the place of a lost one"),
    NodeState.REPAIR: ("in repair", "nodes out of service until they are mended"),
    NodeState.UNUSED: ("unused", "nodes that the job neither uses nor keeps as spares"),
}
BILL_CLASSES = {
    "chips": "accelerators and servers, their price spread over their life",
    "network": "switches, cables and optics, spread likewise",
    "building": "building, power and cooling, spread likewise",
    "energy": "what the job's nodes and spares drew, network and cooling included",
    "staff": "people who run the machine",
    "maintenance": "repairs and parts",
}
_HOUR_S, _DAY_S = 3600.0, 86400.0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one figure over replicas: its median, and between which values nine of ten lie."""

    median: float
    low: float
    high: float
    num_values: int

    def words(self, tell: Callable[[float], str]) -> str:
        """``92.1 %, 9 in 10 within 91.0 % to 93.2 %``; one replica has no spread."""
        if self.num_values == 1:
            return tell(self.median)
        return f"{tell(self.median)}, 9 in 10 within {tell(self.low)} to {tell(self.high)}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=quantile(values, 0.5), low=quantile(values, LOW), high=quantile(values, HIGH), num_values=len(values))


def quantile(values: Sequence[float], fraction: float) -> float:
    """Linear between the two values around it."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def over_replicas(simulation: Simulation, figure: Callable[[Tally], float | None]) -> Spread | None:
    """Of the replicas that know the figure; None where none does."""
    values = [value for one in simulation.tallies if (value := figure(one)) is not None]
    return spread(values) if values else None


def median_of(simulation: Simulation, figure: Callable[[Tally], float | None]) -> float:
    """Over the replicas that know the figure; 0 where none does."""
    found = over_replicas(simulation, figure)
    return found.median if found else 0.0


def median_bill(simulation: Simulation) -> Bill | None:
    """Each of its figures the median over replicas; one replica's is its own."""
    bills = [one.bill for one in simulation.tallies if one.bill is not None]
    if len(bills) < 2:
        return bills[0] if bills else None
    middle = lambda values: quantile(known, 0.5) if (known := [value for value in values if value is not None]) else None
    names = dict.fromkeys(name for bill in bills for name in bill.parts_usd)
    figures = {name: middle([getattr(bill, name) for bill in bills]) for name in Bill.model_fields if name != "parts_usd"}
    return bills[0].model_copy(update=figures | {"parts_usd": {name: middle([bill.parts_usd.get(name, 0.0) for bill in bills]) for name in names}})


def of_replicas(simulation: Simulation) -> str:
    """Behind the title of a table over replicas; nothing where there is one."""
    return f", median of {len(simulation.tallies)} replicas" if len(simulation.tallies) > 1 else ""


def of_first(simulation: Simulation) -> str:
    """Behind the title of what is of the first replica alone; nothing where there is no other."""
    return ", of the first replica" if len(simulation.tallies) > 1 else ""


def heading(simulation: Simulation) -> str:
    """What was simulated, where."""
    chips = (
        f"{simulation.num_job_chips:,} of {simulation.num_chips:,} chips"
        if simulation.num_job_chips != simulation.num_chips
        else f"{simulation.num_chips:,} chips"
    )
    return f"{simulation.name} on {chips} ({simulation.chip}) of {simulation.machine}"


def terms(simulation: Simulation) -> str:
    """Under which conditions: scenario, faults, seed, replicas."""
    scenario = simulation.scenario
    factor = f" x {scenario.fault_factor:g}" if scenario.fault_factor != 1 else ""
    faults = "no faults" if simulation.fault_profile == "none" else f"faults as of {simulation.fault_profile}{factor}"
    replicas = (
        f"; {len(simulation.tallies)} replicas: figures are medians over them, unless they are said to be of the first replica"
        if len(simulation.tallies) > 1
        else ""
    )
    return f"at most {duration(scenario.horizon_s)} simulated; scenario {scenario.name}; {faults}; seed {scenario.seed}{replicas}"


def verdict(simulation: Simulation) -> str:
    """What came of it, in two sentences; of the median where there are replicas."""
    number = len(simulation.tallies)
    among = f"Median of {number} replicas: " if number > 1 else ""
    useful = over_replicas(simulation, lambda one: one.goodput_fraction)
    time_s = over_replicas(simulation, lambda one: one.time_to_train_s)
    if time_s is None:
        return f"{among}{_standing(simulation)}, {interrupted(simulation)}."
    return f"{among}{_progress(simulation, time_s)} {percent(useful.median if useful else 0)} of the time was useful work, {interrupted(simulation)}."


def _standing(simulation: Simulation) -> str:
    """Where no step was done that counts, useful work is none, whatever the step under way came to."""
    horizon_s = simulation.scenario.horizon_s
    if simulation.step_s > horizon_s:
        return f"No step was done: one takes {duration(simulation.step_s)}, and {duration(horizon_s)} were simulated"
    return f"No lasting progress in {duration(quantile([one.wall_s for one in simulation.tallies], 0.5))}"


def _progress(simulation: Simulation, time_s: Spread) -> str:
    wall_s = quantile([one.wall_s for one in simulation.tallies], 0.5)
    ideal = f"{duration(simulation.plan_s)} without any loss"
    if all(one.done for one in simulation.tallies):
        return f"Done after {duration(wall_s)}; {ideal}."
    num_done = sum(one.done for one in simulation.tallies)
    if 2 * num_done > len(simulation.tallies):
        return f"Done after {duration(wall_s)}, {num_done} of them within {duration(simulation.scenario.horizon_s)}; {ideal}."
    steps = median_of(simulation, lambda one: one.steps)
    share = percent(steps / simulation.num_steps)
    if share == percent(1.0):
        done = f"All but {count(round(simulation.num_steps - steps), 'step')} of" if steps < simulation.num_steps else "All"
        return f"{done} {simulation.num_steps:,} steps done when time was up after {duration(wall_s)}; {ideal}."
    return f"{share} of the training done in {duration(wall_s)}; all of it takes {duration(time_s.median)} at this pace, {ideal}."


def interrupted(simulation: Simulation) -> str:
    """``through 419 interruptions, one every 3 h 5 min``."""
    number = num_interruptions(simulation)
    return f"through {count(number, 'interruption')}, one every {duration(every_s(simulation))}" if number else "without an interruption"


def num_interruptions(simulation: Simulation) -> int:
    return round(median_of(simulation, lambda one: one.num_interruptions))


def every_s(simulation: Simulation) -> float:
    """Between two interruptions, so that times their number it is the wall time, both medians; 0 where there are none."""
    number = num_interruptions(simulation)
    return median_of(simulation, lambda one: one.wall_s) / number if number else 0.0


def ordered_causes(simulation: Simulation) -> set[str]:
    """Causes that are stops on purpose, not faults of hardware or software."""
    profile = simulation.scenario.faults
    told = {each.cause for each in profile.classes if each.effect is Effect.PLANNED} if isinstance(profile, FaultProfile) else set()
    return told | {incident.cause for incident in simulation.incidents if incident.effect == Effect.PLANNED.value}


def fault_counts(simulation: Simulation) -> tuple[int, int]:
    """(interruptions by order or by the grid, faults of hardware and software of the whole machine), medians over replicas."""
    planned = ordered_causes(simulation)
    ordered: Callable[[Tally], float] = lambda one: sum(times for cause, times in one.interruptions.items() if cause in planned or cause not in one.faults)
    faults: Callable[[Tally], float] = lambda one: sum(times for cause, times in one.faults.items() if cause not in planned)
    return round(median_of(simulation, ordered)), round(median_of(simulation, faults))


def figures(simulation: Simulation) -> list[tuple[str, str, str]]:
    """Key figures as (name, value, remark): medians over replicas, with their spread as the remark."""
    rows = [
        _goodput(simulation),
        _figure(simulation, "time to train", lambda one: one.time_to_train_s, duration, f"{duration(simulation.plan_s)} without any loss"),
        _figure(simulation, "interruptions", lambda one: float(one.num_interruptions), lambda value: f"{value:,.0f}", _every(simulation)),
        _figure(simulation, "tokens trained", lambda one: one.tokens, lambda value: format_quantity(value, "").strip(), _steps(simulation)),
    ]
    if simulation.first.bill is not None:
        rows += _bill_figures(simulation)
    return [row for row in rows if row is not None]


def _bill_figures(simulation: Simulation) -> list[tuple[str, str, str] | None]:
    bill = median_bill(simulation)
    if bill is None:
        return []
    watts = lambda value: format_quantity(value, "W")
    per_token = "" if bill.usd_per_million_tokens is None else f"{money(bill.usd_per_million_tokens)} a million tokens"
    limit = simulation.scenario.power.limit_w
    return [
        _figure(simulation, "mean power of the site", lambda one: one.bill.mean_w if one.bill else None, watts, "cooling and losses included"),
        _figure(simulation, "peak power", lambda one: one.bill.peak_w if one.bill else None, watts, f"limit {watts(limit)}" if limit else ""),
        _figure(
            simulation, "energy", lambda one: one.bill.site_j if one.bill else None, energy, "" if bill.carbon_kg_co2e is None else carbon(bill.carbon_kg_co2e)
        ),
        _figure(simulation, "cost (of the job's nodes and spares)", lambda one: one.bill.total_usd if one.bill else None, money, per_token),
    ]


def _figure(
    simulation: Simulation, name: str, figure: Callable[[Tally], float | None], tell: Callable[[float], str], remark: str
) -> tuple[str, str, str] | None:
    found = over_replicas(simulation, figure)
    if found is None:
        return None
    low, high = tell(found.low), tell(found.high)
    ends = f"9 in 10 within {low} to {high}" if low != high else ""
    return name, tell(found.median), "; ".join(filter(None, [ends, remark]))


def _goodput(simulation: Simulation) -> tuple[str, str, str] | None:
    """Where no step was done, none of the time was useful work: what went into one is told as that."""
    if any(one.steps for one in simulation.tallies):
        return _figure(simulation, "goodput", lambda one: one.goodput_fraction, percent, "useful steps over wall time")
    under_way = percent(median_of(simulation, lambda one: one.goodput_fraction))
    return "goodput", "none", f"no step was done; {under_way} of the time went into one that was not done at the end"


def goodput_words(simulation: Simulation) -> str:
    """For a title."""
    return f"{percent(median_of(simulation, lambda one: one.goodput_fraction))} goodput" if any(one.steps for one in simulation.tallies) else "no step done"


def _every(simulation: Simulation) -> str:
    ordered, faults = fault_counts(simulation)
    if not num_interruptions(simulation):
        return "none of the faults stopped the job" if faults and not any(one.num_interruptions for one in simulation.tallies) else ""
    stops = f"; {ordered:,} of them ordered or by the grid" if ordered else ""
    return f"one every {duration(every_s(simulation))}{stops}; {count(faults, 'fault')} of hardware and software of the whole machine"


def _steps(simulation: Simulation) -> str:
    steps, twice = (round(median_of(simulation, figure)) for figure in (lambda one: one.steps, lambda one: one.lost_steps))
    lost = f", {twice:,} done twice" if twice else ""
    return f"{steps:,} of {simulation.num_steps:,} steps{lost}"


def time_rows(simulation: Simulation) -> list[tuple[Cause, str, float, float, str]]:
    """Where the time went, as (cause, label, seconds and fraction, of replicas their medians, between which fractions 9 in 10 lie)."""
    spent: Callable[[Tally, Cause], float] = lambda one, cause: one.goodput_s if cause is Cause.PRODUCTIVE else one.badput_s.get(cause, 0.0)
    rows = []
    for cause in (Cause.PRODUCTIVE, *BADPUT):
        shares = spread([spent(one, cause) / (one.wall_s or 1.0) for one in simulation.tallies])
        if shares.high or cause is Cause.PRODUCTIVE:
            seconds = quantile([spent(one, cause) for one in simulation.tallies], 0.5)
            rows.append((cause, LABELS[cause], seconds, shares.median, between(shares, percent)))
    return rows


def between(found: Spread, tell: Callable[[float], str]) -> str:
    """Where 9 in 10 lie: ``10.4 % to 10.9 %``; nothing of one replica."""
    return f"{tell(found.low)} to {tell(found.high)}" if found.num_values > 1 else ""


def time_total(simulation: Simulation) -> tuple[float, str]:
    """(wall time, what it is to the rows above)."""
    wall_s = median_of(simulation, lambda one: one.wall_s)
    return wall_s, "the sum of the above, exactly" if len(simulation.tallies) == 1 else "the median too: medians need not add up; in each replica the times do"


@dataclass(frozen=True, kw_only=True)
class CauseRow:
    """Interruptions of one cause: how many, of replicas their medians and where 9 in 10 lie (``over``), and what those of the first replica cost.

    ``num_faults``: of the whole machine; None of stops on purpose, which are none. ``is_met``: whether it stopped the job in any replica.
    """

    cause: str
    number: int
    over: str
    fraction: float
    num_faults: int | None
    lost_s: float
    downtime_s: float
    is_met: bool


def cause_rows(simulation: Simulation) -> list[CauseRow]:
    """Most frequent first; causes that stopped the job, and those that only struck nodes it did not use."""
    planned = ordered_causes(simulation)
    costs: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for incident in simulation.incidents:
        costs[incident.cause][0] += incident.lost_s
        costs[incident.cause][1] += incident.downtime_s
    met, struck = (
        sum((Counter(each) for each in found), Counter()) for found in zip(*((one.interruptions, one.faults) for one in simulation.tallies), strict=True)
    )
    rows = []
    for name in {*met, *struck}:
        times = spread([one.interruptions.get(name, 0) for one in simulation.tallies])
        rows.append(
            CauseRow(
                cause=name,
                number=round(times.median),
                over=between(times, lambda value: f"{value:,.0f}"),
                fraction=quantile([one.interruptions.get(name, 0) / max(1, one.num_interruptions) for one in simulation.tallies], 0.5),
                num_faults=None if name in planned or name not in struck else round(quantile([one.faults.get(name, 0) for one in simulation.tallies], 0.5)),
                lost_s=costs[name][0],
                downtime_s=costs[name][1],
                is_met=name in met,
            )
        )
    return sorted(rows, key=lambda row: (-row.number, -met[row.cause], -(row.num_faults or 0), row.cause))


def cause_name(cause: str) -> str:
    """``hbm3_memory`` as ``HBM3 memory``."""
    return re.sub(r"[a-z0-9]+", lambda found: _ACRONYMS.get(found[0], found[0]), cause.replace("_", " "))


def standstills(simulation: Simulation) -> str:
    """What a reader must know where interruptions are more than standstills; nothing where each is one."""
    told, number = len(simulation.incidents), simulation.first.num_interruptions
    if told >= number:
        return ""
    where = "In the first replica " if len(simulation.tallies) > 1 else ""
    return f"{where}{count(number, 'interruption')} in {count(told, 'standstill')}: a fault that strikes while the job stands already is told with the one before it."


def rate_words(simulation: Simulation) -> str:
    """How often the job was interrupted, in the unit that operators publish."""
    node_days = simulation.num_job_nodes * median_of(simulation, lambda one: one.wall_s) / _DAY_S
    return f"{1000 * num_interruptions(simulation) / node_days:.3g} interruptions in 1,000 node-days" if node_days else ""


def costliest(simulation: Simulation, most: int = 12) -> list[SimulatedIncident]:
    """Those that took the most time from the job: lost work and standstill."""
    return sorted(simulation.incidents, key=lambda each: (-(each.lost_s + each.downtime_s), each.time_s))[:most]


INCIDENT_HEADER = ("after", "what", "what was done", "lost work", "standstill", "of it")


def incident_cells(incident: SimulatedIncident) -> tuple[str, ...]:
    return (
        duration(incident.time_s),
        incident_words(incident),
        incident.action.replace("_", " ") + (f": {incident.reason}" if incident.reason else ""),
        f"{count(incident.lost_steps, 'step')}, {duration(incident.lost_s)}" if incident.lost_steps or incident.lost_s else "none",
        duration(incident.downtime_s),
        parts_words(incident),
    )


def incident_words(incident: SimulatedIncident) -> str:
    """``HBM3 memory, node 417 died``."""
    where = f"node {incident.node:,} " if incident.node is not None else ""
    return f"{cause_name(incident.cause)}: {where}{_EFFECTS.get(incident.effect, incident.effect)}"


def parts_words(incident: SimulatedIncident) -> str:
    source = f" from {incident.source}" if incident.source else ""
    names = {
        "finding it": incident.detect_s,
        "waiting for nodes": incident.wait_s,
        "starting": incident.start_s,
        f"restoring{source}": incident.restore_s,
        "compiling": incident.compile_s,
    }
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in names.items() if seconds > 0) or "nothing"


def node_rows(simulation: Simulation) -> list[tuple[NodeState, str, float, str]]:
    """(state, label, mean number of nodes, of replicas the median of theirs, meaning) of states that occur."""
    found = {state: spread([one.node_s.get(state, 0.0) / (one.wall_s or 1.0) for one in simulation.tallies]) for state in STATES}
    return [(state, label, found[state].median, meaning) for state, (label, meaning) in STATES.items() if found[state].high]


def node_over(simulation: Simulation, state: NodeState) -> str:
    """Between which mean numbers 9 replicas in 10 lie."""
    return between(spread([one.node_s.get(state, 0.0) / (one.wall_s or 1.0) for one in simulation.tallies]), lambda value: f"{value:,.1f}")


def money_over(simulation: Simulation, name: str) -> str:
    """Between which costs of a class 9 replicas in 10 lie."""
    return between(spread([one.bill.parts_usd.get(name, 0.0) for one in simulation.tallies if one.bill is not None]), money)


def money_rows(simulation: Simulation) -> list[tuple[str, float, float, str]]:
    """(class, dollars, of replicas their median, fraction of these, meaning), largest first."""
    bill = median_bill(simulation)
    if bill is None or not bill.parts_usd:
        return []
    total = sum(bill.parts_usd.values()) or 1.0
    rows = [(name, usd, usd / total, BILL_CLASSES.get(name, "")) for name, usd in bill.parts_usd.items() if usd]
    return sorted(rows, key=lambda row: -row[1])


def bill_rows(simulation: Simulation) -> list[tuple[str, str]]:
    """(figure, words) of power, energy, carbon and money; of replicas the medians."""
    bill = median_bill(simulation)
    if bill is None:
        return []
    watts = lambda value: format_quantity(value, "W")
    known = [
        ("swing within a step", f"{watts(bill.swing_w)} from the lowest to the highest power of all nodes together" if bill.swing_w else None),
        ("steepest change at the grid", _steepest(bill) if bill.ramp_w_per_s else None),
        ("drawn by nodes and network", energy(bill.it_j)),
        ("drawn by the site", f"{energy(bill.site_j)}, cooling and losses included"),
        ("an hour lost costs", money(bill.lost_hour_usd) if bill.lost_hour_usd is not None else None),
        ("renting the same nodes instead", money(bill.rent_usd) if bill.rent_usd is not None else None),
    ]
    return [(name, told) for name, told in known if told is not None]


def _steepest(bill: Bill) -> str:
    stop = f"; all nodes together by {format_quantity(bill.stop_w, 'W')} as the job stops or starts" if bill.stop_w else ""
    return f"{format_quantity(bill.ramp_w_per_s, 'W/s')}{stop}"


def plan_rows(simulation: Simulation) -> list[tuple[str, str]]:
    """What the simulation starts from: layout, step, its parts, where time and chips stand."""
    parts = sorted(simulation.parts_s.items(), key=lambda item: -item[1])
    told = [f"{part_name(name)} {percent(seconds / simulation.step_s)}" for name, seconds in parts if seconds > 0.01 * simulation.step_s]
    return [
        ("layout", simulation.layout),
        ("a step, by the plan", f"{format_quantity(simulation.step_s, 's')} for {simulation.tokens_per_step:,} tokens"),
        ("of a step", ", ".join(told)),
        ("the job's nodes", f"{simulation.num_job_nodes:,} of {simulation.num_nodes:,}"),
        *mfu_rows(simulation),
    ]


def mfu_rows(simulation: Simulation) -> list[tuple[str, str]]:
    """Model FLOP over the peak: of a step, and over all the time."""
    if not simulation.model_flop_per_token or not simulation.peak_flop_per_s:
        return []
    planned = simulation.model_flop_per_token * simulation.tokens_per_step / simulation.step_s / simulation.peak_flop_per_s
    real = simulation.model_flop_per_token * median_of(simulation, lambda one: one.tokens / (one.wall_s or 1.0)) / simulation.peak_flop_per_s
    return [("MFU", f"{percent(planned)} of a step, {percent(real)} over all the time")]


def chosen_rows(simulation: Simulation) -> list[tuple[str, str]]:
    return [(name, told) for name, told in simulation.chosen.items()]

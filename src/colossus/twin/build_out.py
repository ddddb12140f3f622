"""A site that grows, played out day by day: chips arrive, sources of power come and go, money is spent, and what is lit computes.

Chips beyond what grid and turbines carry in the day's hottest hour stand dark, the newest kind first. What is lit counts as computing all the time, some
3 % above a step's mean power. Ignored: failures, chips that train less than at the stated MFU while they are new, and that a turbine's power costs other than the grid's.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from colossus.catalog.measured import power_figures
from colossus.catalog.nodes import load_node
from colossus.catalog.sites import ChipPhase, GrowingSite, PowerSource, SourceKind
from colossus.estimate.power import PhaseWatts, design_degrees, least_clock_fraction, node_watts, pue_at
from colossus.spec.build_out import BuildOut, Compared, Growth, JobProgress, Shortage, Supply
from colossus.spec.errors import Problem, SpecError
from colossus.spec.machine import Node, Site
from colossus.spec.scenario import MoneyScenario, Scenario

_DAY_S, _YEAR_DAYS = 86400.0, 365.25
_EQUINOX = datetime.date(2024, 3, 20)
# How long past the time played out a job's end is still told, with the site as it was on the last day.
_TOLD_YEARS = 20


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Chips of one kind of node, by day, and what one of them takes."""

    node: Node
    site: Site
    watts: PhaseWatts  # of a node
    chips: np.ndarray
    rated_w: float
    hardware_usd: float

    @property
    def network_w(self) -> float:
        return self.site.network_w_per_chip.value if self.site.network_w_per_chip else 0.0

    @property
    def pue(self) -> float:
        return self.site.pue.value if self.site.pue else 1.0

    @property
    def peak_flop_per_s(self) -> float:
        peaks = self.node.chip.peak_flop_per_s
        return (peaks.get("bfloat16") or peaks.get("float16") or peaks["float32"]).value

    def chip_w(self, phase_w: float) -> float:
        """IT watts by chip, its share of node and network included."""
        return phase_w / self.node.num_chips + self.network_w


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job to train on the growing site: FLOP of a token and how many tokens, None where only progress is asked."""

    model: str
    flop_per_token: float
    total_tokens: float | None = None


def play(site: GrowingSite, scenario: Scenario, *, mfu_fraction: float | None = None, job: Asked | None = None) -> BuildOut:
    """Every day from the site's beginning to its end. ``scenario`` gives the climate's swings and the money's rates; the site its mean and prices."""
    mfu = site.mfu_fraction if mfu_fraction is None else mfu_fraction
    if not 0 < mfu <= 1:
        raise SpecError("build-out", [Problem(path="mfu", value=f"{mfu:g}", rule="must be above 0 and at most 1", hint="e.g. --mfu 0.4")])
    days = (site.end - site.begin).days + 1
    kinds = [_kind(site, node, phases, days, scenario.money) for node, phases in site.kinds().items()]
    mean_degrees, hottest_degrees = _degrees(site, scenario, days)
    power = {kind: _sources_w(site, kind, days) for kind in SourceKind}
    grid_w = np.minimum(power[SourceKind.GRID], power[SourceKind.SUBSTATION])
    supply_w = grid_w + power[SourceKind.TURBINES]
    need_w = sum((kind.chips * kind.chip_w(kind.watts.compute_w) * pue_at(kind.pue, hottest_degrees) for kind in kinds), np.zeros(days))
    lit, on_grid = _lit(kinds, supply_w, hottest_degrees), _lit(kinds, grid_w, hottest_degrees)
    it_w = sum((chips * kind.chip_w(kind.watts.compute_w) for kind, chips in zip(kinds, lit, strict=True)), np.zeros(days))
    site_w = sum((chips * kind.chip_w(kind.watts.compute_w) * pue_at(kind.pue, mean_degrees) for kind, chips in zip(kinds, lit, strict=True)), np.zeros(days))
    capacity_w = _capacity_w(kinds)
    flop_per_s = sum((chips * kind.peak_flop_per_s * mfu for kind, chips in zip(kinds, lit, strict=True)), np.zeros(days))
    swing_w, left_w = _swing(kinds, lit, power[SourceKind.BATTERY])
    dark = sum((kind.chips - chips for kind, chips in zip(kinds, lit, strict=True)), np.zeros(days)).round().astype(int)
    energy_j = np.cumsum(site_w) * _DAY_S
    spent = _spent(kinds, site, capacity_w, energy_j, scenario.money)
    return BuildOut(
        name=site.name,
        begin=site.begin,
        mfu_fraction=mfu,
        num_chips={node: np.floor(kind.chips).astype(int).tolist() for node, kind in zip(site.kinds(), kinds, strict=True)},
        num_dark_chips=dark.tolist(),
        num_grid_chips=sum(on_grid, np.zeros(days)).astype(int).tolist(),
        capacity_w=capacity_w.tolist(),
        need_w=need_w.tolist(),
        it_w=it_w.tolist(),
        site_w=site_w.tolist(),
        grid_w=power[SourceKind.GRID].tolist(),
        substation_w=power[SourceKind.SUBSTATION].tolist(),
        turbines_w=power[SourceKind.TURBINES].tolist(),
        battery_w=power[SourceKind.BATTERY].tolist(),
        swing_w=swing_w.tolist(),
        swing_left_w=left_w.tolist(),
        flop_per_s=flop_per_s.tolist(),
        total_flop=(np.cumsum(flop_per_s) * _DAY_S).tolist(),
        spent_usd={name: usd.tolist() for name, usd in spent.items()},
        energy_j=energy_j.tolist(),
        growth=[Growth(date=phase.date, node=phase.node, num_chips=phase.num_chips, source=phase.source) for phase in site.phases],
        supplies=[_supply(source) for source in site.sources],
        shortages=list(_shortages(site, dark, need_w - supply_w, _slowed(kinds, supply_w, hottest_degrees))),
        compared=list(_compared(site, capacity_w, spent)),
        job=None if job is None else _progress(site, job, flop_per_s),
        notes=[site.notes] if site.notes else [],
    )


def _kind(site: GrowingSite, name: str, phases: Sequence[ChipPhase], days: int, money: MoneyScenario) -> _Kind:
    node, place = load_node(name), site.site_of(name)
    watts = node_watts(node)
    if watts is None:
        raise SpecError(site.name, [Problem(path="phases.node", value=name, rule="draws a power that the catalog does not know", hint="colossus machines")])
    own = next((phase.hardware_usd_per_chip for phase in phases if phase.hardware_usd_per_chip), None)
    listed = place.purchase_usd_per_chip.value * (1.0 + money.network_fraction) if place.purchase_usd_per_chip else 0.0
    return _Kind(
        node=node,
        site=place,
        watts=watts,
        chips=_arrivals(site, phases, days),
        rated_w=site.rated_w_per_chip(name).value,
        hardware_usd=own.value if own else listed,
    )


def _arrivals(site: GrowingSite, phases: Sequence[ChipPhase], days: int) -> np.ndarray:
    """Chips that are there at each day's end, arriving evenly between phases."""
    at, number = [0.0], [0.0]
    for phase in phases:
        begin = phase.since or (site.begin + datetime.timedelta(days=at[-1]))
        place = float((begin - site.begin).days)
        if place > at[-1]:
            at.append(place)
            number.append(number[-1])
        at.append(float((phase.date - site.begin).days))
        number.append(float(phase.num_chips))
    return np.interp(np.arange(days), at, number)


def _degrees(site: GrowingSite, scenario: Scenario, days: int) -> tuple[np.ndarray, np.ndarray]:
    """Above the year's mean: each day's mean, and its hottest hour."""
    since = (site.begin - _EQUINOX).days + np.arange(days)
    mean = scenario.power.outside_season_c * np.sin(2 * np.pi * since / _YEAR_DAYS)
    return mean, mean + scenario.power.outside_swing_c


def _sources_w(site: GrowingSite, kind: SourceKind, days: int) -> np.ndarray:
    """All sources of a kind together, by day."""
    total = np.zeros(days)
    for source in site.sources:
        if source.kind is kind:
            first = (source.date - site.begin).days
            last = days if source.until is None else (source.until - site.begin).days
            total[max(first, 0) : max(last, 0)] += source.power_w
    return total


def _lit(kinds: Sequence[_Kind], supply_w: np.ndarray, degrees: np.ndarray) -> list[np.ndarray]:
    """Chips of each kind that the supply carries while they compute, older kinds first."""
    left_w, lit = supply_w.copy(), []
    for kind in kinds:
        each_w = kind.chip_w(kind.watts.compute_w) * pue_at(kind.pue, degrees)
        chips = np.minimum(kind.chips, np.floor(np.maximum(left_w, 0.0) / each_w))
        left_w = left_w - chips * each_w
        lit.append(chips)
    return lit


def _slowed(kinds: Sequence[_Kind], supply_w: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """The clock at which all chips fit the supply; 0 where not even the lowest does."""
    at = lambda phase: sum((kind.chips * kind.chip_w(getattr(kind.watts, phase)) * pue_at(kind.pue, degrees) for kind in kinds), np.zeros(len(supply_w)))
    idle_w, busy_w = at("idle_w"), at("compute_w")
    clock = np.clip((supply_w - idle_w) / np.maximum(busy_w - idle_w, 1e-9), 0.0, 1.0) ** (1.0 / power_figures("clock")["exponent"])
    return np.where(clock >= least_clock_fraction(), clock, 0.0)


def _capacity_w(kinds: Sequence[_Kind]) -> np.ndarray:
    """What the site is built for: rated power of nodes and network, cooled on the design day."""
    return sum((kind.chips * (kind.rated_w + kind.network_w) * pue_at(kind.pue, design_degrees()) for kind in kinds), np.zeros(len(kinds[0].chips)))


def _swing(kinds: Sequence[_Kind], lit: Sequence[np.ndarray], battery_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From the lowest to the highest power within a step of one job on all that is lit, and what a battery of so much leaves of it."""
    kept = {kind.node.chip.name: 1.0 - power_figures("swing")["smoothed_fraction"].get(kind.node.chip.name, 0.0) for kind in kinds}
    swing_w = sum(
        (
            chips / kind.node.num_chips * (kind.watts.compute_w - kind.watts.communication_w) * kept[kind.node.chip.name]
            for kind, chips in zip(kinds, lit, strict=True)
        ),
        np.zeros(len(battery_w)),
    )
    return swing_w, np.maximum(0.0, swing_w - battery_w)


def _spent(kinds: Sequence[_Kind], site: GrowingSite, capacity_w: np.ndarray, energy_j: np.ndarray, money: MoneyScenario) -> dict[str, np.ndarray]:
    """Money spent since the beginning, by class; the building is paid by its watts, as chips arrive."""
    zero = np.zeros(len(capacity_w))
    hardware = sum((kind.chips * kind.hardware_usd for kind in kinds), zero)
    building = np.maximum.accumulate(capacity_w) * site.building_usd_per_w
    price = kinds[0].site.energy_usd_per_j
    node_days = np.cumsum(sum((kind.chips / kind.node.num_chips for kind in kinds), zero))
    return {
        "chips and network": hardware,
        "building": building,
        "energy": energy_j * (price.value if price else 0.0),
        "staff": node_days * _DAY_S * money.staff_usd_per_s_per_node,
        "maintenance": np.cumsum(hardware + building) * money.maintenance_fraction / _YEAR_DAYS,
    }


def _shortages(site: GrowingSite, dark: np.ndarray, short_w: np.ndarray, speeds: np.ndarray) -> Iterator[Shortage]:
    for is_short, group in groupby(range(len(dark)), lambda index: dark[index] > 0):
        if not is_short:
            continue
        indices = list(group)
        worst = max(indices, key=lambda index: dark[index])
        begin, end = site.begin + datetime.timedelta(days=indices[0]), site.begin + datetime.timedelta(days=indices[-1])
        limit, waits_for = _limit(site, begin, end)
        yield Shortage(
            begin=begin,
            end=end,
            num_dark_chips_at_most=int(dark[worst]),
            most_short_w=float(short_w[indices].max()),
            limit=limit,
            waits_for=waits_for,
            speed_fraction=float(speeds[worst]),
        )


def _limit(site: GrowingSite, begin: datetime.date, end: datetime.date) -> tuple[str, str | None]:
    """What the site waited for: the source that came as the shortage ended, else the narrower of grid and substation, or turbines where there is none."""
    came = [source for source in site.sources if begin < source.date <= end + datetime.timedelta(days=1) and source.kind is not SourceKind.BATTERY]
    if came:
        last = max(came, key=lambda source: (source.date, source.kind is SourceKind.SUBSTATION, source.power_w))
        return last.kind.value, f"{last.name}, {last.date}"
    at = (end - site.begin).days
    grid, substation = (_sources_w(site, kind, at + 1)[at] for kind in (SourceKind.GRID, SourceKind.SUBSTATION))
    later = min((source for source in site.sources if source.date > end and source.kind is not SourceKind.BATTERY), key=lambda one: one.date, default=None)
    kind = SourceKind.SUBSTATION if substation < grid else SourceKind.GRID
    return kind.value, f"{later.name}, {later.date}" if later else None


def _compared(site: GrowingSite, capacity_w: np.ndarray, spent: dict[str, np.ndarray]) -> Iterator[Compared]:
    capital = spent["chips and network"] + spent["building"]
    for point in site.published:
        index = (point.date - site.begin).days
        if not 0 <= index < len(capacity_w):
            continue
        if point.power_w is not None:
            yield Compared(date=point.date, published_w=point.power_w, ours_w=float(capacity_w[index]), source=point.source)
        if point.capital_usd is not None:
            yield Compared(date=point.date, published_usd=point.capital_usd, ours_usd=float(capital[index]), source=point.source)


def _progress(site: GrowingSite, job: Asked, flop_per_s: np.ndarray) -> JobProgress:
    """The job begins when the first chips run; without growth the site stays as the first phase left it."""
    stood = (site.phases[0].date - site.begin).days
    ungrown = np.concatenate([flop_per_s[:stood], np.minimum(flop_per_s[stood:], flop_per_s[stood])])
    tokens = lambda rates: (np.cumsum(rates) * _DAY_S / job.flop_per_token).tolist()
    return JobProgress(
        model=job.model,
        begin=site.begin + datetime.timedelta(days=int(np.argmax(flop_per_s > 0))),
        flop_per_token=job.flop_per_token,
        num_tokens=tokens(flop_per_s),
        num_ungrown_tokens=tokens(ungrown),
        total_tokens=job.total_tokens,
        done=_done(site, job, flop_per_s),
        done_ungrown=_done(site, job, ungrown),
    )


def _done(site: GrowingSite, job: Asked, flop_per_s: np.ndarray) -> datetime.date | None:
    """When the tokens are trained; past the last day the site stays as it is."""
    if job.total_tokens is None:
        return None
    needed, summed = job.flop_per_token * job.total_tokens, np.cumsum(flop_per_s) * _DAY_S
    if summed[-1] >= needed:
        return site.begin + datetime.timedelta(days=int(np.searchsorted(summed, needed)))
    more_days = (needed - summed[-1]) / (flop_per_s[-1] * _DAY_S) if flop_per_s[-1] else np.inf
    return None if more_days > _TOLD_YEARS * _YEAR_DAYS else site.begin + datetime.timedelta(days=len(summed) - 1 + int(np.ceil(more_days)))


def _supply(source: PowerSource) -> Supply:
    return Supply(
        name=source.name,
        kind=source.kind.value,
        begin=source.date,
        until=source.until,
        power_w=source.power_w,
        stored_j=source.stored_j,
        source=source.source,
    )

"""From the estimates of every layout to an answer: the best ones, what each takes, what limits it and why the next one lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from colossus.catalog.measured import training_power_fraction
from colossus.estimate.flop import train_flop
from colossus.estimate.parameters import num_parameters
from colossus.estimate.pipeline import place
from colossus.estimate.shape import Cut
from colossus.plan.search import REMATS, Candidates, Question, cuts, estimate, search
from colossus.plan.variants import join, smaller, take
from colossus.report.plan_page import PART_WORDS, answer_section
from colossus.spec.answer import Answer, Choice, PlannedLayout
from colossus.spec.layout import CpKind, Offload, Remat, Schedule
from colossus.spec.machine import Figure
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_quantity


class ShownAnswer(Answer):
    """An answer that draws itself in a notebook."""

    def _repr_html_(self) -> str:
        return answer_section(self)


_TIMES_OVER = 64


def answer(question: Question, *, name: str, total_tokens: float, top: int = 3, objective: str = "time") -> Answer | Infeasible:
    """The best ``top`` layouts. On a fixed number of chips the fastest is also the cheapest; cost and energy choose the chips too."""
    if objective != "time":
        question = _thriftiest(question)
    candidates = search(question)
    order = candidates.order()
    if not len(order):
        return _infeasible(question, candidates)
    choices = [choice_at(question, candidates, int(index), total_tokens) for index in order[:top]]
    first = choices[0]
    told = [first, *(other.model_copy(update={"why_not_first": why_slower(first, other)}) for other in choices[1:])]
    return ShownAnswer(
        model=name,
        machine=question.machine.name,
        num_chips=question.num_chips,
        precision=question.precision,
        program=question.program.name,
        num_sequences=question.num_sequences,
        sequence_tokens=question.sequence_tokens,
        total_tokens=total_tokens,
        objective=objective,
        num_parameters=num_parameters(question.card),
        num_layouts=len(candidates),
        num_fitting=len(order),
        choices=told,
        notes=list(_notes(question)),
    )


def choice_at(question: Question, candidates: Candidates, index: int, total_tokens: float) -> Choice:
    """All that one layout takes."""
    cut, parts, memory = candidates.at(index)
    step_s = float(candidates.step_s[index])
    low, high = question.coefficients.interval(question.program.name, chip=question.chip, precision=question.precision)
    tokens = question.num_sequences * question.sequence_tokens
    time_s = total_tokens / tokens * step_s
    flop = train_flop(question.card, question.num_sequences, question.sequence_tokens).model_flop / step_s / question.num_chips
    peak = _peak_flop_per_s(question)
    parts_s = {name.removesuffix("_s"): seconds for name, seconds in vars(parts).items()}
    return Choice(
        layout=layout_of(cut),
        step_s=step_s,
        lower_step_s=step_s * min(low, 1.0),
        upper_step_s=step_s * max(high, 1.0),
        parts_s=parts_s,
        memory_bytes_per_chip=float(candidates.memory_bytes[index]),
        memory_parts_bytes={name.removesuffix("_bytes"): num_bytes for name, num_bytes in vars(memory).items()},
        model_flop_per_s_per_chip=flop,
        mfu_fraction=flop / peak,
        throughput_tokens_per_s=tokens / step_s,
        time_to_train_s=time_s,
        limited_by=_limit(parts_s, step_s),
        **_bill(question, time_s),
    )


def layout_of(cut: Cut) -> PlannedLayout:
    return PlannedLayout(
        pp=round(cut.pp),
        dp=round(cut.dp),
        cp=round(cut.cp),
        tp=round(cut.tp),
        ep=round(cut.ep),
        num_virtual_stages=round(cut.virtual_stages),
        num_microbatch_sequences=round(cut.microbatch_sequences),
        num_microbatches=round(cut.num_microbatches),
        remat=Remat(REMATS[2 if cut.recompute else 1 if cut.selective else 0]),
        zero_stage=3 if cut.weights_sharded else 2 if cut.gradients_sharded else 1,
        num_replica_groups=round(cut.replica_groups),
        schedule=list(Schedule)[round(cut.schedule)],
        cp_kind=list(CpKind)[round(cut.cp_kind)] if cut.cp > 1 else CpKind.RING,
        offload=_OFFLOADS[(bool(cut.optimizer_offload), bool(cut.activation_offload))],
    )


# (optimizer, activations) -> what it is called
_OFFLOADS = {(False, False): Offload.NONE, (True, False): Offload.OPTIMIZER, (False, True): Offload.ACTIVATIONS, (True, True): Offload.BOTH}


def why_slower(first: Choice, other: Choice) -> str:
    """The parts that make the other layout slower, largest first."""
    extra_s = {name: other.parts_s[name] - first.parts_s[name] for name in first.parts_s}
    total_s = other.step_s - first.step_s
    worst = sorted(extra_s.items(), key=lambda item: -item[1])[:2]
    named = [f"{PART_WORDS[name]} +{format_quantity(seconds, 's')}" for name, seconds in worst if seconds > 0.1 * max(total_s, 1e-9)]
    return f"{total_s / first.step_s:.1%} slower: {', '.join(named)}" if named else f"{total_s / first.step_s:.1%} slower"


def explain(question: Question, wanted: PlannedLayout) -> str:
    """What stands against a layout of the user's, or how much slower than the best one it is."""
    rules = list(_broken_rules(question, wanted))
    if rules:
        return "; ".join(rules)
    cut = _cut_of(question, wanted)
    mine = estimate(question, cut)
    room = question.device.memory_bytes
    if not mine.fits[0]:
        return f"needs {_size(mine.memory_bytes[0])} of a chip's {_size(room)}: {_largest_parts(mine)}{_would_fit(question, mine)}"
    best = search(question)
    order = best.order()
    first = choice_at(question, best, int(order[0]), 1.0)
    return f"fits; {why_slower(first, choice_at(question, mine, 0, 1.0))}, against {first.layout.describe()}"


def _would_fit(question: Question, mine: Candidates) -> str:
    """The fastest way to make a layout fit that changes nothing but what is kept, sharded or offloaded."""
    remats = [replace(mine.cut, recompute=one, selective=other) for one, other in ((np.zeros(1), np.ones(1)), (np.ones(1), np.zeros(1)))]
    kept = join([mine.cut, *remats])
    scattered = replace(kept, gradients_sharded=np.ones(len(kept.tp)))
    tries = join([kept, *([take(scattered, scattered.optimizer_sharded > 0)] if "zero 2" in question.can else []), smaller(kept, question.can)])
    found = estimate(question, tries)
    order = found.order()
    if not len(order):
        return "; nothing kept, sharded or offloaded otherwise would make it fit"
    wanted = layout_of(found.at(int(order[0]))[0])
    return f"; it would fit with ZeRO {wanted.zero_stage}, remat {wanted.remat.value}" + (
        f", {wanted.offload.value} offloaded" if wanted.offload.value != "none" else ""
    )


def scaling(question: Question, total_tokens: float) -> list[Choice]:
    """The best layout on the whole machine and on halves of it, down to what still fits: time, chips and money side by side."""
    found = []
    chips = question.num_chips
    while chips >= 1:
        part = replace(question, num_chips=chips)
        candidates = search(part)
        order = candidates.order()
        if len(order):
            found.append(choice_at(part, candidates, int(order[0]), total_tokens))
        if chips % 2:
            break
        chips //= 2
    return found


def _thriftiest(question: Question) -> Question:
    """The number of chips, of halvings of the machine, on which training takes the fewest chip-hours."""
    best, least = question, np.inf
    chips = question.num_chips
    while chips >= 1:
        part = replace(question, num_chips=chips)
        candidates = search(part)
        order = candidates.order()
        if len(order) and candidates.step_s[order[0]] * chips < least:
            best, least = part, candidates.step_s[order[0]] * chips
        if chips % 2:
            break
        chips //= 2
    return best


def _limit(parts_s: dict[str, float], step_s: float) -> str:
    """The largest part beside the products themselves, where it matters, else the products."""
    name, seconds = max(((name, seconds) for name, seconds in parts_s.items() if name != "gemm"), key=lambda item: item[1])
    if parts_s["gemm"] >= 0.7 * step_s or parts_s["gemm"] > 2 * seconds:
        return f"{PART_WORDS['gemm']} ({parts_s['gemm'] / step_s:.0%} of the step); then {PART_WORDS[name]} ({seconds / step_s:.0%})"
    return f"{PART_WORDS[name]} ({seconds / step_s:.0%} of the step), beside {PART_WORDS['gemm']} ({parts_s['gemm'] / step_s:.0%})"


def _peak_flop_per_s(question: Question) -> float:
    """The peak behind MFU: the chip's 16-bit one in every precision, so that plans compare."""
    peaks = question.machine.node.chip.peak_flop_per_s
    scaled = [change.factor for change in question.changes if change.figure == "chip.peak"]
    return (peaks.get("bfloat16") or peaks.get("float16") or peaks["float32"]).value * prod(scaled)


def _bill(question: Question, time_s: float) -> dict[str, float | None]:
    """Power, energy, carbon and money of the job; what the catalog does not know is None."""
    machine, site = question.machine, question.machine.site
    nodes = question.num_chips / machine.node.num_chips
    node_w = _value(machine.node.power_w)
    rent = _value(site.rent_usd_per_s_per_chip) if site else None
    cost = None if rent is None else rent * question.num_chips * time_s
    if node_w is None or site is None:
        return {"cost_usd": cost}
    network_w = _value(site.network_w_per_chip) or 0.0
    power_w = (node_w * training_power_fraction() * nodes + network_w * question.num_chips) * (_value(site.pue) or 1.0)
    carbon = _value(site.carbon_kg_co2e_per_j)
    return {
        "power_w": power_w,
        "energy_j": power_w * time_s,
        "cost_usd": cost,
        "carbon_kg_co2e": None if carbon is None else carbon * power_w * time_s,
    }


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _notes(question: Question) -> list[str]:
    known = question.coefficients.knows(question.chip, question.precision)
    name = question.program.name
    notes = [f"{name}: how well that program does on {question.chip}, as fitted on published runs; --program names another"] if known else []
    if not known:
        notes.append(
            f"estimates were fitted on no run on {question.chip} in {question.precision}: efficiencies are assumed, those of {name} apart; trust them less"
        )
    spare = question.machine.num_chips - question.num_chips
    if question.is_whole and spare:
        notes.append(f"{spare:,} of {question.machine.num_chips:,} chips are left over, as spares: the batch does not divide by more")
    if question.changes:
        notes.append(f"what if {' and '.join(map(str, question.changes))}: the machine as it is takes {_plain_step(question)} a step")
    if question.precision != "bfloat16":
        notes.append("MFU is over the 16-bit peak")
    return notes


def _plain_step(question: Question) -> str:
    candidates = search(replace(question, changes=()))
    order = candidates.order()
    return format_quantity(float(candidates.step_s[order[0]]), "s") if len(order) else "more memory than it has and no time at all: nothing fits"


def _infeasible(question: Question, candidates: Candidates) -> Infeasible:
    """Why nothing fits, and what would."""
    if not len(candidates):
        reason = f"{question.num_sequences} sequences of {question.sequence_tokens} tokens cannot be cut over {question.num_chips} chips"
        counts = [chips for chips in _near(question) if len(cuts(replace(question, num_chips=chips)).tp)]
        return Infeasible(reason=reason, fit=f"--chips {' or '.join(map(str, counts[:2]))}, or a batch that more chips divide" if counts else None)
    index = int(np.argmin(candidates.memory_bytes))
    least = candidates.memory_bytes[index]
    room = question.device.memory_bytes
    described = layout_of(candidates.at(index)[0]).describe()
    reason = f"no layout fits {question.num_chips} chips of {_size(room)}: the smallest need is {_size(least)} a chip, as {described}"
    more = next((chips for chips in _doublings(question) if _fits(replace(question, num_chips=chips))), None)
    enough = "" if more is None else f"--chips {more}" if more <= question.machine.num_chips else f"{more} chips, e.g. --on {question.chip}*{more}"
    ways = [enough, f"chips of {_size(least / 0.97)} or more", "fewer sequences of fewer tokens"]
    return Infeasible(reason=reason, fit="; or ".join(filter(None, ways)))


def _fits(question: Question) -> bool:
    return bool(len(cuts(question).tp)) and bool(search(question).fits.any())


def _doublings(question: Question) -> Sequence[int]:
    most = _TIMES_OVER * question.num_chips
    return [question.num_chips * 2**power for power in range(1, 7) if question.num_chips * 2**power <= most]


def _near(question: Question) -> Sequence[int]:
    """Chip counts that divide the batch, nearest first."""
    step = question.machine.node.num_chips
    counts = range(step, 2 * question.num_chips + 1, step)
    return sorted((count for count in counts if count != question.num_chips), key=lambda count: abs(count - question.num_chips))[:64]


def _broken_rules(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    card, chips = question.card, question.num_chips
    product = wanted.pp * wanted.dp * wanted.cp * wanted.tp
    if product != chips:
        yield f"pp x dp x cp x tp = {product}, but there are {chips} chips"
    if card.num_heads % wanted.tp:
        yield f"tp {wanted.tp} does not divide {card.num_heads} heads"
    if wanted.tp > question.device.domain_chips:
        yield f"tp {wanted.tp} leaves the scale-up domain of {question.device.domain_chips:.0f} chips"
    if wanted.pp > card.num_layers:
        yield f"pp {wanted.pp} is more than {card.num_layers} layers"
    if question.num_sequences % (wanted.dp * wanted.num_microbatch_sequences):
        yield f"dp {wanted.dp} x {wanted.num_microbatch_sequences} a microbatch does not divide {question.num_sequences} sequences"
    if question.sequence_tokens % (wanted.tp * (2 * wanted.cp if wanted.cp > 1 else 1)):
        yield f"tp {wanted.tp} and cp {wanted.cp} do not cut {question.sequence_tokens} tokens evenly"
    if wanted.zero_stage == 3 and wanted.pp > 1:
        yield "ZeRO 3 with a pipeline would gather all weights anew for every microbatch"
    yield from _broken_variants(question, wanted)
    if (wanted.dp * wanted.cp * wanted.tp) % wanted.ep:
        yield f"ep {wanted.ep} does not divide the {wanted.dp * wanted.cp * wanted.tp} chips of a stage"
    if wanted.ep > 1 and (card.moe is None or card.moe.num_experts % wanted.ep):
        yield f"ep {wanted.ep} does not divide {card.moe.num_experts if card.moe else 'no'} experts"


def _broken_variants(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    """Of schedule, kind of cp, groups and offload. What the program does not offer may still be asked for."""
    if wanted.num_virtual_stages > 1 and wanted.schedule is not Schedule.ONE_F_ONE_B:
        yield f"virtual stages are 1f1b's: {wanted.schedule.value} has its own chunks"
    if wanted.cp_kind is CpKind.ULYSSES and question.card.num_heads % (wanted.tp * wanted.cp):
        yield f"Ulysses gives each of tp x cp = {wanted.tp * wanted.cp} ranks some heads, which do not divide {question.card.num_heads}"
    if wanted.num_replica_groups > 1 and (wanted.zero_stage != 3 or (wanted.dp * wanted.cp) % wanted.num_replica_groups):
        yield f"{wanted.num_replica_groups} groups (HSDP) need zero_stage 3 and must divide dp x cp = {wanted.dp * wanted.cp}"
    if wanted.offload is not Offload.NONE and question.machine.node.host_bytes_per_s_per_chip is None:
        yield f"offload needs the speed of the host link, which the catalog does not know of {question.machine.name}"


def _cut_of(question: Question, wanted: PlannedLayout) -> Cut:
    from colossus.estimate.device import is_low_precision

    micro = wanted.num_microbatch_sequences
    one = lambda value: np.array([float(value)])
    return Cut(
        tp=one(wanted.tp), pp=one(wanted.pp), cp=one(wanted.cp), ep=one(wanted.ep), dp=one(wanted.dp),
        virtual_stages=one(wanted.num_virtual_stages),
        microbatch_sequences=one(micro),
        num_microbatches=one(question.num_sequences / wanted.dp / micro),
        sequence_tokens=one(question.sequence_tokens),
        recompute=one(wanted.remat is Remat.FULL),
        selective=one(wanted.remat is Remat.SELECTIVE),
        weights_sharded=one(wanted.zero_stage == 3),
        optimizer_sharded=one(wanted.zero_stage < 3),
        is_low_precision=one(is_low_precision(question.precision)),
        gradients_sharded=one(wanted.zero_stage == 2),
        replica_groups=one(wanted.num_replica_groups),
        schedule=one(place(wanted.schedule)),
        cp_kind=one(list(CpKind).index(wanted.cp_kind)),
        optimizer_offload=one(wanted.offload in (Offload.OPTIMIZER, Offload.BOTH)),
        activation_offload=one(wanted.offload in (Offload.ACTIVATIONS, Offload.BOTH)),
    )  # fmt: skip


def _largest_parts(candidates: Candidates) -> str:
    memory = candidates.at(0)[2]
    parts = sorted(vars(memory).items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name.removesuffix('_bytes')} {_size(num_bytes)}" for name, num_bytes in parts)


def _size(num_bytes: float) -> str:
    return format_quantity(float(num_bytes), "B", binary=True)

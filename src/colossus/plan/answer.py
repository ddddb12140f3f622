"""From the estimates of every layout to an answer: the best ones, what each takes, what limits it and why the next one lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
from pydantic import PrivateAttr

from colossus.catalog.measured import usable_memory_fraction
from colossus.estimate.flop import train_flop
from colossus.estimate.footprint import host_bytes
from colossus.estimate.parameters import num_parameters
from colossus.estimate.pipeline import place
from colossus.estimate.power import training_site_w
from colossus.estimate.shape import Cut, Shape
from colossus.plan.counts import choose_chips, on_more_chips
from colossus.plan.notes import notes
from colossus.plan.search import REMATS, Candidates, Question, cuts, search
from colossus.report.picture import Picture
from colossus.report.plan_page import answer_section
from colossus.report.plan_plots import pictures
from colossus.report.plan_words import count, part_name
from colossus.spec.answer import Answer, Choice, PlannedLayout
from colossus.spec.errors import Problem, SpecError
from colossus.spec.layout import CpKind, Offload, Remat, Schedule
from colossus.spec.machine import Figure
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_quantity

OBJECTIVES = ("time", "cost", "energy")
_TIMES_OVER = 64


class ShownAnswer(Answer):
    """An answer that draws itself in a notebook, and has all its pictures."""

    _question: Question | None = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self.to_data() == other.to_data()

    __hash__ = None  # type: ignore[assignment]

    def _repr_html_(self) -> str:
        return answer_section(self)

    @property
    def plots(self) -> dict[str, Picture]:
        """By name: waterfall, memory, roofline, tornado, scaling, front. Each draws itself in a notebook; ``alone("")`` is its SVG file."""
        from colossus.plan.plots import pictures_of

        found = pictures(self) if self._question is None else pictures_of(self._question, self)
        return {picture.name: picture for picture in found}


def answer(
    question: Question, *, name: str, total_tokens: float, top: int = 3, objective: str = "time", deadline_s: float | None = None, said: Sequence[str] = ()
) -> Answer | Infeasible:
    """The best ``top`` layouts; ``said``: notes beside our own. On a fixed number of chips the fastest is also the cheapest; cost and energy choose the chips too."""
    if objective not in OBJECTIVES or top < 1:
        path, value, rule = ("top", str(top), "must be above zero") if top < 1 else ("objective", objective, f"must be one of {', '.join(OBJECTIVES)}")
        raise SpecError("plan", [Problem(path=path, value=value, rule=rule)])
    whole = question
    chosen = choose_chips(question, total_tokens, objective=objective, deadline_s=deadline_s)
    if isinstance(chosen, Infeasible):
        return chosen
    question, candidates = chosen
    order = candidates.order()
    if not len(order):
        return _infeasible(question, candidates)
    choices = [choice_at(question, candidates, int(index), total_tokens) for index in order[:top]]
    first = choices[0]
    told = [first, *(other.model_copy(update={"why_not_first": why_slower(first, other)}) for other in choices[1:])]
    found = ShownAnswer(
        model=name,
        machine=question.machine.name,
        num_chips=question.num_chips,
        precision=question.precision,
        program=question.program.name,
        num_sequences=question.num_sequences,
        sequence_tokens=question.sequence_tokens,
        total_tokens=total_tokens,
        objective=objective,
        deadline_s=deadline_s,
        chip=question.chip,
        chip_memory_bytes=question.device.memory_bytes,
        num_parameters=num_parameters(question.card),
        num_layouts=len(candidates),
        num_fitting=len(order),
        choices=told,
        notes=[*said, *notes(question, candidates, first)],
    )
    found._question = whole
    return found


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
        **_bill(question, parts_s, time_s),
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
    named = [f"{part_name(name)} +{format_quantity(seconds, 's')}" for name, seconds in worst if seconds > 0.1 * max(total_s, 1e-9)]
    return f"{total_s / first.step_s:.1%} slower: {', '.join(named)}" if named else f"{total_s / first.step_s:.1%} slower"


def _limit(parts_s: dict[str, float], step_s: float) -> str:
    """The largest part beside the products themselves, where it matters, else the products."""
    name, seconds = max(((name, seconds) for name, seconds in parts_s.items() if name != "gemm"), key=lambda item: item[1])
    if parts_s["gemm"] >= 0.7 * step_s or parts_s["gemm"] > 2 * seconds:
        return f"{part_name('gemm')} ({parts_s['gemm'] / step_s:.0%} of the step); then {part_name(name)} ({seconds / step_s:.0%})"
    return f"{part_name(name)} ({seconds / step_s:.0%} of the step), beside {part_name('gemm')} ({parts_s['gemm'] / step_s:.0%})"


def _peak_flop_per_s(question: Question) -> float:
    """The peak behind MFU: the chip's 16-bit one in every precision, so that plans compare."""
    peaks = question.machine.node.chip.peak_flop_per_s
    scaled = [change.factor for change in question.changes if change.figure == "chip.peak"]
    return (peaks.get("bfloat16") or peaks.get("float16") or peaks["float32"]).value * prod(scaled)


def _bill(question: Question, parts_s: dict[str, float], time_s: float) -> dict[str, float | None]:
    """Power, energy, carbon and money of the job; what the catalog does not know is None."""
    machine, site = question.machine, question.machine.site
    rent = _value(site.rent_usd_per_s_per_chip) if site else None
    price = _value(site.purchase_usd_per_chip) if site else None
    money = {
        "cost_usd": None if rent is None else rent * question.num_chips * time_s,
        "purchase_usd": None if price is None else price * question.num_chips,
    }
    power_w = training_site_w(machine, question.num_chips, parts_s)
    if power_w is None or site is None:
        return money
    carbon = _value(site.carbon_kg_co2e_per_j)
    return {
        **money,
        "power_w": power_w,
        "energy_j": power_w * time_s,
        "carbon_kg_co2e": None if carbon is None else carbon * power_w * time_s,
    }


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _infeasible(question: Question, candidates: Candidates) -> Infeasible:
    """Why nothing fits, and what would."""
    if not len(candidates):
        reason = f"{count(question.num_sequences, 'sequence')} of {question.sequence_tokens} tokens cannot be cut over {count(question.num_chips, 'chip')}"
        counts = [chips for chips in _near(question) if len(cuts(replace(question, num_chips=chips)).tp)]
        return Infeasible(reason=reason, fit=f"--chips {' or '.join(map(str, counts[:2]))}, or a batch that more chips divide" if counts else None)
    more = next((chips for chips in _doublings(question) if (larger := on_more_chips(question, chips)) and _fits(larger)), None)
    enough = "" if more is None else f"--chips {more}" if more <= question.machine.num_chips else f"{more} chips, e.g. --on {question.chip}*{more}"
    reason, larger_ones = _too_large(question, candidates)
    return Infeasible(reason=reason, fit="; or ".join(filter(None, [enough, larger_ones, _shorter(question)])))


def _too_large(question: Question, candidates: Candidates) -> tuple[str, str]:
    """The least need of a chip among layouts that the host's memory allows, against what may be used of it, or of the host where that is what
    binds; and the memory that would do."""
    room, host_room = usable_bytes(question)
    host = host_need_bytes(question, candidates)
    allowed = np.flatnonzero(host <= host_room)
    index = int(allowed[np.argmin(candidates.memory_bytes[allowed])]) if len(allowed) else int(np.argmin(host))
    least = candidates.memory_bytes[index]
    where = f"no layout fits {count(question.num_chips, 'chip')} of {format_size(question.device.memory_bytes)}, {format_size(room)} of it usable"
    described = layout_of(candidates.at(index)[0]).describe()
    reason = f"{where}: the smallest need is {format_size(least)} a chip, as {described}"
    ways = [f"chips of {format_size(least / usable_memory_fraction())} or more"]
    offloaded = np.flatnonzero(candidates.memory_bytes <= room)
    if len(offloaded):
        needed = host[offloaded].min()
        reason += f"; with offload a chip does, but needs {format_size(needed)} of its host, which has {format_size(host_room)} usable for each"
        ways.append(f"{format_size(needed / usable_memory_fraction())} of host memory a chip or more")
    return reason, "; or ".join(ways)


def usable_bytes(question: Question) -> tuple[float, float]:
    """What a plan may fill of a chip's memory, and of its share of the host's."""
    device = question.device
    return usable_memory_fraction() * float(device.memory_bytes), usable_memory_fraction() * float(device.host_memory_bytes)


def host_need_bytes(question: Question, candidates: Candidates) -> np.ndarray:
    """Of the host's memory, for each chip."""
    return np.broadcast_to(host_bytes(Shape.of(question.card), candidates.cut), candidates.memory_bytes.shape)


def _shorter(question: Question) -> str:
    """The longest halving of the sequences, as many tokens a step, that fits; nothing where weights alone do not."""
    for power in range(1, question.sequence_tokens.bit_length() - 6):
        tokens = question.sequence_tokens >> power
        if _fits(replace(question, sequence_tokens=tokens, num_sequences=question.num_sequences << power)):
            return f"--sequence-tokens {tokens} --sequences {question.num_sequences << power}"
    return ""


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


def _cut_of(question: Question, wanted: PlannedLayout) -> Cut:
    from colossus.estimate.device import is_low_precision, value_bytes

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
        value_bytes=one(value_bytes(question.precision)),
        kept_bytes=one(question.kept_bytes),
        gradients_sharded=one(wanted.zero_stage == 2),
        replica_groups=one(wanted.num_replica_groups),
        schedule=one(place(wanted.schedule)),
        cp_kind=one(list(CpKind).index(wanted.cp_kind)),
        optimizer_offload=one(wanted.offload in (Offload.OPTIMIZER, Offload.BOTH)),
        activation_offload=one(wanted.offload in (Offload.ACTIVATIONS, Offload.BOTH)),
    )  # fmt: skip


def format_size(num_bytes: float) -> str:
    return format_quantity(float(num_bytes), "B", binary=True)

"""What stands against a layout of the user's: every rule that it breaks with the nearest fix, memory, or how much slower it is than the best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from colossus.plan.answer import _cut_of, choice_at, format_size, host_need_bytes, layout_of, usable_bytes, why_slower
from colossus.plan.search import Candidates, Question, estimate, search
from colossus.plan.variants import FOLDED, join, smaller, take
from colossus.report.plan_words import memory_name
from colossus.spec.answer import PlannedLayout
from colossus.spec.layout import CpKind, Offload, Schedule

_FULLEST = 3


def explain(question: Question, wanted: PlannedLayout) -> str:
    """One sentence for each thing that stands against it."""
    rules = list(broken_rules(question, wanted))
    if rules:
        return "; ".join(rules)
    mine = estimate(question, _cut_of(question, wanted))
    best = search(question)
    order = best.order()
    if not mine.fits[0]:
        return "; ".join(_too_large(question, wanted, mine))
    if not len(order):
        return f"fits, at {format_size(mine.memory_bytes[0])} a chip; no layout that {question.program.name} offers does"
    first = choice_at(question, best, int(order[0]), 1.0)
    return f"fits; {why_slower(first, choice_at(question, mine, 0, 1.0))}, against {first.layout.describe()}"


def completed(question: Question, wanted: PlannedLayout) -> PlannedLayout:
    """The fastest layout that fits with all that was named of ``wanted``; none fits: as it is, with a dp that takes the chips left."""
    named = wanted.model_fields_set
    found = search(question)
    where = found.fits.copy()
    for name in named & _COLUMNS.keys():
        where &= np.broadcast_to(getattr(found.cut, _COLUMNS[name]), where.shape) == getattr(wanted, name)
    for index in found.order():
        if where[index]:
            layout = layout_of(found.at(int(index))[0])
            if all(getattr(layout, name) == getattr(wanted, name) for name in named):
                return layout
    return filled(question, wanted)


def filled(question: Question, wanted: PlannedLayout) -> PlannedLayout:
    """As it is; a dp that was not named takes the chips that are left."""
    return wanted if "dp" in wanted.model_fields_set else wanted.model_copy(update={"dp": max(1, question.num_chips // wanted.num_chips)})


# Of a layout, what is one number of a cut.
_COLUMNS = {
    **{name: name for name in ("pp", "dp", "cp", "tp", "ep", "num_microbatches")},
    "num_virtual_stages": "virtual_stages",
    "num_microbatch_sequences": "microbatch_sequences",
    "num_replica_groups": "replica_groups",
}


def broken_rules(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    """Each as what is wrong and, in brackets, what would be right."""
    yield from _broken_by_machine(question, wanted)
    yield from _broken_by_model(question, wanted)
    yield from _broken_by_batch(question, wanted)
    yield from _broken_variants(question, wanted)


def _broken_by_machine(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    chips, domain = question.num_chips, int(question.device.domain_chips)
    inner = wanted.pp * wanted.cp * wanted.tp
    if wanted.num_chips != chips:
        fix = f"dp {chips // inner}" if chips % inner == 0 else f"{_or(_near_divisors(chips, inner))} for pp x cp x tp"
        yield f"pp x dp x cp x tp = {wanted.num_chips}, but there are {chips} chips ({fix})"
    if wanted.tp > domain:
        yield f"tp {wanted.tp} leaves the scale-up domain of {domain} chips (tp {domain} at most)"


def _broken_by_model(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    card = question.card
    if card.num_heads % wanted.tp:
        yield f"tp {wanted.tp} does not divide {card.num_heads} heads (tp {_or(_near_divisors(card.num_heads, wanted.tp))})"
    if wanted.pp > card.num_layers:
        yield f"pp {wanted.pp} is more than {card.num_layers} layers (pp {_or(_near_divisors(card.num_layers, wanted.pp))})"
    stages = wanted.pp * wanted.num_virtual_stages
    if wanted.num_virtual_stages > 1 and card.num_layers % stages and (card.num_layers + 2) % stages:
        yield f"{wanted.num_virtual_stages} virtual stages x pp {wanted.pp} do not divide {card.num_layers} layers, nor {card.num_layers + 2} with embedding and head"
    if wanted.zero_stage == 3 and wanted.pp > 1:
        yield "ZeRO 3 with a pipeline would gather all weights anew for every microbatch (zero_stage 1, or pp 1)"
    ranks = wanted.dp * wanted.cp * wanted.tp
    if ranks % wanted.ep:
        yield f"ep {wanted.ep} does not divide the {ranks} chips of a stage (ep {_or(_near_divisors(ranks, wanted.ep))})"
    if wanted.ep > 1 and card.moe is None:
        yield f"ep {wanted.ep}, but the model has no experts (ep 1)"
    elif wanted.ep > 1 and card.moe is not None and card.moe.num_experts % wanted.ep:
        yield f"ep {wanted.ep} does not divide {card.moe.num_experts} experts (ep {_or(_near_divisors(card.moe.num_experts, wanted.ep))})"


def _broken_by_batch(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    sequences, tokens = question.num_sequences, question.sequence_tokens
    at_once = wanted.dp * wanted.num_microbatch_sequences
    if sequences % at_once:
        fix = f"their product {_or(_near_divisors(sequences, at_once))}, or --sequences {_near_multiple(sequences, at_once)}"
        yield f"dp {wanted.dp} x {wanted.num_microbatch_sequences} a microbatch does not divide {sequences} sequences ({fix})"
    pieces = wanted.tp * (2 * wanted.cp if wanted.cp > 1 else 1)
    if tokens % pieces:
        yield f"tp {wanted.tp} and cp {wanted.cp} do not cut {tokens} tokens evenly (--sequence-tokens {_near_multiple(tokens, pieces)})"
    if "num_microbatches" in wanted.model_fields_set and sequences % at_once == 0 and wanted.num_microbatches * at_once != sequences:
        yield (
            f"{sequences} sequences over dp {wanted.dp} x {wanted.num_microbatch_sequences} a microbatch are {sequences // at_once} microbatches, "
            f"not {wanted.num_microbatches} (num_microbatches {sequences // at_once})"
        )
    if wanted.num_virtual_stages > 1 and sequences % (at_once * wanted.pp):
        yield f"virtual stages need microbatches that pp {wanted.pp} divides, and there are {sequences / at_once:g} (num_virtual_stages 1)"


def _broken_variants(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    """Of schedule, kind of cp, groups and offload. What the program does not offer may still be asked for."""
    yield from _broken_by_schedule(question, wanted)
    if wanted.cp == 1 and wanted.cp_kind is not CpKind.RING:
        yield f"cp_kind {wanted.cp_kind.value} says how cp ranks see each other, and cp is 1 (cp 2 or more, or no cp_kind)"
    if wanted.cp_kind is CpKind.ULYSSES and question.card.num_heads % (wanted.tp * wanted.cp):
        yield f"Ulysses gives each of tp x cp = {wanted.tp * wanted.cp} ranks some heads, which do not divide {question.card.num_heads}"
    if wanted.num_replica_groups > 1 and (wanted.zero_stage != 3 or (wanted.dp * wanted.cp) % wanted.num_replica_groups):
        yield f"{wanted.num_replica_groups} groups (HSDP) need zero_stage 3 and must divide dp x cp = {wanted.dp * wanted.cp}"
    if wanted.offload is not Offload.NONE and question.machine.node.host_bytes_per_s_per_chip is None:
        yield f"offload needs the speed of the host link, which the catalog does not know of {question.machine.name}"


def _broken_by_schedule(question: Question, wanted: PlannedLayout) -> Iterator[str]:
    """A schedule and virtual stages are a pipeline's; folded schedules have two chunks of one size and fill them (``plan/variants.py``)."""
    schedule, pp, layers = wanted.schedule, wanted.pp, question.card.num_layers
    if wanted.num_virtual_stages > 1 and schedule is not Schedule.ONE_F_ONE_B:
        yield f"virtual stages are 1f1b's: {schedule.value} has its own chunks"
    if pp == 1:
        if schedule is not Schedule.ONE_F_ONE_B:
            yield f"schedule {schedule.value} orders the stages of a pipeline, and pp is 1 (pp 2 or more, or schedule 1f1b)"
        if wanted.num_virtual_stages > 1:
            yield f"{wanted.num_virtual_stages} virtual stages cut the stages of a pipeline, and pp is 1 (pp 2 or more, or num_virtual_stages 1)"
    elif schedule in FOLDED:
        if -(-layers // pp) % 2:
            fit = [size for size in range(2, layers + 1) if -(-layers // size) % 2 == 0]
            fix = f"pp {_or(sorted(sorted(fit, key=lambda size: abs(size - pp))[:2]))}" if fit else "schedule 1f1b"
            yield f"{schedule.value} gives a stage two chunks of one size, and the fullest of pp {pp} has {-(-layers // pp)} layers ({fix})"
        microbatches = question.num_sequences / (wanted.dp * wanted.num_microbatch_sequences)
        if microbatches < 2 * pp:
            yield f"{schedule.value} needs 2 x pp = {2 * pp} microbatches or more, and there are {microbatches:g} (fewer of dp or pp, or schedule 1f1b)"


def _too_large(question: Question, wanted: PlannedLayout, mine: Candidates) -> Iterator[str]:
    """The parts that fill the chip, and the fastest way to fit that changes nothing but what is kept, sharded or offloaded."""
    room, host_room = usable_bytes(question)
    whole, host = format_size(question.device.memory_bytes), host_need_bytes(question, mine)[0]
    if mine.memory_bytes[0] > room:
        yield f"needs {format_size(mine.memory_bytes[0])} of a chip's {whole}, {format_size(room)} of it usable: {_largest_parts(mine)}"
    if host > host_room:
        yield f"needs {format_size(host)} of host memory a chip, and there are {format_size(host_room)} usable"
    remats = [replace(mine.cut, recompute=one, selective=other) for one, other in ((np.zeros(1), np.ones(1)), (np.ones(1), np.zeros(1)))]
    kept = join([mine.cut, *remats])
    scattered = replace(kept, gradients_sharded=np.ones(len(kept.tp)))
    sharded = replace(kept, weights_sharded=np.ones(len(kept.tp)), optimizer_sharded=np.zeros(len(kept.tp)), gradients_sharded=np.zeros(len(kept.tp)))
    tries = [kept, take(sharded, kept.pp == 1), *([take(scattered, scattered.optimizer_sharded > 0)] if "zero 2" in question.can else [])]
    found = estimate(question, join([*tries, smaller(kept, question.can)]))
    order = found.order()
    if not len(order):
        yield "no remat, sharding or offload makes it fit: smaller microbatches, or cut it over more of tp, pp or cp"
        return
    other = layout_of(found.at(int(order[0]))[0])
    offloaded = "" if other.offload is Offload.NONE else f", {other.offload.value} offloaded"
    yield f"with remat {other.remat.value}, ZeRO {other.zero_stage}{offloaded} it fits, at {format_size(found.memory_bytes[order[0]])}"


def _largest_parts(candidates: Candidates) -> str:
    parts = sorted(vars(candidates.at(0)[2]).items(), key=lambda item: -item[1])[:_FULLEST]
    return ", ".join(f"{memory_name(name.removesuffix('_bytes'))} {format_size(num_bytes)}" for name, num_bytes in parts)


def _near_divisors(number: int, wanted: int) -> list[int]:
    """The largest divisor up to ``wanted`` and the smallest above it."""
    below = next(size for size in range(min(number, wanted), 0, -1) if number % size == 0)
    above = next((size for size in range(wanted + 1, number + 1) if number % size == 0), None)
    return [below] if above is None else [below, above]


def _near_multiple(number: int, of: int) -> int:
    return max(1, round(number / of)) * of


def _or(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))

"""Numbers of chips worth a look, and which of them an objective and a deadline choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from colossus.catalog.chips import load_chip_entry
from colossus.catalog.machines import load_machine
from colossus.catalog.nodes import load_node_entry
from colossus.plan.search import Candidates, Question, filled_chips, search
from colossus.plan.whatif import best_step_s
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_duration

# How far down to look, in halvings, and how near to each other numbers may be.
_OCTAVES, _APART = 8, 1.12
# Of a machine so many numbers with most useful chips are tried; for a front only numbers of which such a part is useful.
_TRIED, _USEFUL_FRACTION = 3, 0.8
# Machines so many times larger, and batches doubled so often, are tried where a deadline cannot be met.
_DOUBLINGS = 5
_TIMES = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def halves(num_chips: int, node_chips: int) -> list[int]:
    """The number and its halves, rounded down to whole nodes as long as they are larger than one."""
    found = [num_chips]
    while (half := found[-1] // 2) >= 1:
        found.append(half - half % node_chips if half > node_chips else half)
    return found


def whole_counts(question: Question) -> list[int]:
    """Numbers of a machine's chips of which the fastest is looked for, largest first: those with most useful chips and the largest that
    needs no pipeline. All chips alone where those need none."""
    counts, useful = filled_chips(question)
    even = counts[useful == counts]
    if not question.is_whole or not len(even) or even[-1] == question.num_chips:
        return [question.num_chips]
    best = counts[np.argsort(-useful, kind="stable")[:_TRIED]]
    return sorted({*map(int, best), *(int(size) for size in even[-1:] if 2 * size >= useful.max())}, reverse=True)


def chip_counts(question: Question) -> list[int]:
    """Numbers of chips apart from each other, those that the job fills best before those that it fills worse, beside the question's own; largest first."""
    counts, useful = filled_chips(question)
    fraction = useful / counts
    kept: list[int] = []
    for index in np.lexsort((-counts, -fraction)):
        count = int(counts[index])
        good = fraction[index] >= _USEFUL_FRACTION and count >= question.num_chips >> _OCTAVES
        if good and all(max(count, other) >= _APART * min(count, other) for other in kept):
            kept.append(count)
    return sorted({*kept, *whole_counts(question)}, reverse=True)


def fastest(question: Question) -> tuple[Question, Candidates]:
    """The question on the number of its chips that takes a step in the least time, with every layout there; on all where nothing fits."""
    counts = whole_counts(question)
    tried = [(part, search(part)) for part in (replace(question, num_chips=chips) for chips in counts)]
    part, found = min(tried, key=lambda one: one[1].step_s.min(initial=np.inf))
    if len(counts) == 1 or found.fits.any():
        return part, found
    return question, search(question)


def choose_chips(question: Question, total_tokens: float, *, objective: str, deadline_s: float | None) -> tuple[Question, Candidates] | Infeasible:
    """The question on the chips that the objective asks for, with every layout there: the fastest, or the number with the fewest chip-hours
    that ends in time.

    A chip costs and draws the same however many there are, so that chip-hours order money and energy alike.
    """
    if objective == "time":
        part, found = fastest(question)
        step_s = float(found.step_s.min(initial=np.inf))
        times_s = {part.num_chips: step_s * _num_steps(question, total_tokens)} if found.fits.any() else {}
    else:
        times_s = _times_s(question, chip_counts(question), total_tokens)
    in_time = {chips: time_s for chips, time_s in times_s.items() if deadline_s is None or time_s <= deadline_s}
    if times_s and not in_time:
        return _too_late(question, times_s, total_tokens, deadline_s or 0.0)
    if objective == "time":
        return part, found
    best = min(in_time, key=lambda chips: (chips * in_time[chips], chips), default=question.num_chips)
    part = question if best == question.num_chips else replace(question, num_chips=best, is_whole=False)
    return part, search(part)


def on_more_chips(question: Question, num_chips: int) -> Question | None:
    """The question on so many chips: of its machine, or of a larger one of the same chip; None where they fill no nodes."""
    if num_chips <= question.machine.num_chips:
        node = question.machine.node.num_chips
        return replace(question, num_chips=num_chips, is_whole=False) if num_chips < node or num_chips % node == 0 else None
    if num_chips % load_node_entry(load_chip_entry(question.chip).node).num_chips:
        return None
    return replace(question, machine=load_machine(f"{question.chip}*{num_chips}"), num_chips=num_chips, is_whole=False)


def _num_steps(question: Question, total_tokens: float) -> float:
    return total_tokens / question.num_sequences / question.sequence_tokens


def _times_s(question: Question, counts: list[int], total_tokens: float) -> dict[int, float]:
    """Seconds to train on so many chips; numbers on which nothing fits are left out."""
    steps_s = {chips: best_step_s(replace(question, num_chips=chips)) for chips in counts}
    return {chips: step_s * _num_steps(question, total_tokens) for chips, step_s in steps_s.items() if step_s is not None}


def _too_late(question: Question, times_s: Mapping[int, float], total_tokens: float, deadline_s: float) -> Infeasible:
    """Says the fastest there is, and how many chips, which larger batch or how few tokens would do."""
    chips, fastest_s = min(times_s.items(), key=lambda item: item[1])
    on = f"{chips:,} chip{'s' if chips != 1 else ''} of {question.machine.name}"
    reason = f"no plan ends within {format_duration(deadline_s)}: the fastest takes {format_duration(fastest_s)}, on {on}"
    ways = [
        _more_chips(question, total_tokens, deadline_s, chips=chips, at_least=chips * fastest_s / deadline_s)
        or _larger_batch(replace(question, num_chips=chips), total_tokens, deadline_s)
    ]
    return Infeasible(reason=reason, fit="; or ".join([*filter(None, ways), f"--tokens {total_tokens * deadline_s / fastest_s:.3g}"]))


def _more_chips(question: Question, total_tokens: float, deadline_s: float, *, chips: int, at_least: float) -> str | None:
    """The first number of chips larger than ``chips`` that ends in time."""
    for times in _TIMES:
        count = int(chips * times)
        larger = on_more_chips(question, count) if count >= at_least else None
        found = _times_s(larger, [count], total_tokens) if larger else {}
        if found and found[count] <= deadline_s:
            how = f"--chips {count}" if count <= question.machine.num_chips else f"e.g. --on '{question.chip}*{count}'"
            return f"{count:,} chips would do, in {format_duration(found[count])}: {how}"
    return None


def _larger_batch(question: Question, total_tokens: float, deadline_s: float) -> str | None:
    """The first doubling of the batch with which the same chips end in time."""
    for power in range(1, _DOUBLINGS + 1):
        larger = replace(question, num_sequences=question.num_sequences << power)
        found = _times_s(larger, [question.num_chips], total_tokens)
        if found and found[question.num_chips] <= deadline_s:
            return f"--sequences {larger.num_sequences} would do, in {format_duration(found[question.num_chips])}"
    return None

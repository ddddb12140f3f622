"""Numbers of chips worth a look, and which of them an objective and a deadline choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from colossus.plan.search import Question
from colossus.plan.whatif import best_step_s
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_duration

# How far down to look, in halvings, and how near to each other numbers may be.
_OCTAVES, _APART = 8, 1.12
# Machines so many times larger, and batches doubled so often, are tried where a deadline cannot be met.
_DOUBLINGS = 5
_TIMES = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def halves(num_chips: int) -> list[int]:
    """The number and its halves, as long as they are whole."""
    found = [num_chips]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found


def chip_counts(question: Question) -> list[int]:
    """Halves of the machine and, between them, whole nodes of which the batch has a divisor (doubled as often as fits); largest first."""
    most, node = question.num_chips, question.machine.node.num_chips
    least = most >> _OCTAVES
    nodes = {node * divisor << power for divisor in _divisors(question.num_sequences) for power in range(most.bit_length()) if node * divisor << power <= most}
    kept = halves(most)
    for count in sorted(nodes, reverse=True):
        if count >= least and all(max(count, other) >= _APART * min(count, other) for other in kept):
            kept.append(count)
    return sorted(kept, reverse=True)


def choose_chips(question: Question, total_tokens: float, *, objective: str, deadline_s: float | None) -> Question | Infeasible:
    """The question on the chips that the objective asks for: all of them, or the number with the fewest chip-hours that ends in time.

    A chip costs and draws the same however many there are, so that chip-hours order money and energy alike.
    """
    if objective == "time" and deadline_s is None:
        return question
    counts = [question.num_chips] if objective == "time" else chip_counts(question)
    times_s = _times_s(question, counts, total_tokens)
    if not times_s:
        return question
    in_time = {chips: time_s for chips, time_s in times_s.items() if deadline_s is None or time_s <= deadline_s}
    if not in_time:
        return _too_late(question, times_s, total_tokens, deadline_s or 0.0)
    best = min(in_time, key=lambda chips: (chips * in_time[chips], chips))
    return question if best == question.num_chips else replace(question, num_chips=best, is_whole=False)


def _times_s(question: Question, counts: list[int], total_tokens: float) -> dict[int, float]:
    """Seconds to train on so many chips; numbers on which nothing fits are left out."""
    num_steps = total_tokens / question.num_sequences / question.sequence_tokens
    steps_s = {chips: best_step_s(replace(question, num_chips=chips)) for chips in counts}
    return {chips: step_s * num_steps for chips, step_s in steps_s.items() if step_s is not None}


def _too_late(question: Question, times_s: Mapping[int, float], total_tokens: float, deadline_s: float) -> Infeasible:
    """Says the fastest there is, and how many chips, which larger batch or how few tokens would do."""
    chips, fastest_s = min(times_s.items(), key=lambda item: item[1])
    on = f"{chips:,} chip{'s' if chips != 1 else ''} of {question.machine.name}"
    reason = f"no plan ends within {format_duration(deadline_s)}: the fastest takes {format_duration(fastest_s)}, on {on}"
    ways = [_more_chips(question, total_tokens, deadline_s, at_least=chips * fastest_s / deadline_s) or _larger_batch(question, total_tokens, deadline_s)]
    return Infeasible(reason=reason, fit="; or ".join([*filter(None, ways), f"--tokens {total_tokens * deadline_s / fastest_s:.3g}"]))


def _more_chips(question: Question, total_tokens: float, deadline_s: float, *, at_least: float) -> str | None:
    """The first larger number of chips that ends in time."""
    for times in _TIMES:
        count = int(question.num_chips * times)
        if count < at_least or count % question.machine.node.num_chips:
            continue
        found = _times_s(question, [count], total_tokens)
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


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]

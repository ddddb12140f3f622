"""Numbers of chips side by side: how a job scales, and which choices of time, chips and money no other beats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from colossus.plan.answer import choice_at
from colossus.plan.counts import chip_counts, fastest, halves
from colossus.plan.search import Question, search
from colossus.spec.answer import Choice


def scaling(question: Question, total_tokens: float) -> list[Choice]:
    """The best layout on the whole machine, as far as more chips are faster, and on halves of that, down to what still fits."""
    whole = fastest(question)[0]
    return _bests(question, halves(whole.num_chips, whole.machine.node.num_chips), total_tokens)


def pareto(question: Question, total_tokens: float) -> list[Choice]:
    """Of the best layouts on every number of chips worth a look, those that no other beats in time, chips and money at once; fastest first."""
    found = _bests(question, chip_counts(question), total_tokens)
    kept = [one for one in found if not any(dominates(other, one) for other in found)]
    return sorted(kept, key=lambda choice: choice.time_to_train_s)


def dominates(one: Choice, other: Choice) -> bool:
    """No worse in time, chips and money, and better in one of them."""
    pairs = list(zip(_goods(one), _goods(other), strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def _goods(choice: Choice) -> tuple[float, float, float]:
    """Where no rent is known, chip-hours stand for money."""
    money = choice.num_chips * choice.time_to_train_s if choice.cost_usd is None else choice.cost_usd
    return choice.time_to_train_s, choice.num_chips, money


def _bests(question: Question, counts: Iterable[int], total_tokens: float) -> list[Choice]:
    found = []
    for chips in counts:
        part = replace(question, num_chips=chips)
        candidates = search(part)
        order = candidates.order()
        if len(order):
            found.append(choice_at(part, candidates, int(order[0]), total_tokens))
    return found

"""Many simulations of one job with some values varied: which point is best, by how much, and whether chance alone could have made it so.

All points take the same seeds, so that differences are paired: replica i of two points meets the same faults as far as their rules allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from colossus.report.plan_words import money
from colossus.report.simulation_words import HIGH, LOW, quantile
from colossus.report.words import duration
from colossus.spec.simulation import Tally

_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one replica, what points are compared by."""

    goodput_fraction: float
    time_to_train_s: float | None
    usd_per_million_tokens: float | None
    num_interruptions: int

    @classmethod
    def of(cls, one: Tally) -> Outcome:
        per_token = one.bill.usd_per_million_tokens if one.bill else None
        return cls(
            goodput_fraction=one.goodput_fraction,
            time_to_train_s=one.time_to_train_s,
            usd_per_million_tokens=per_token,
            num_interruptions=one.num_interruptions,
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """The varied values, as they were given, in the order of the dims, and what every replica came to."""

    values: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of a figure over a point's replicas: its mean, by which points are compared, and between which values nine of ten lie."""

    mean: float
    low: float
    high: float
    num_values: int

    def words(self, tell: Callable[[float], str]) -> str:
        """``92.1 % on average, 9 in 10 within 91.0 % to 93.2 %``; one replica has neither."""
        if self.num_values == 1:
            return tell(self.mean)
        return f"{tell(self.mean)} on average, 9 in 10 within {tell(self.low)} to {tell(self.high)}"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is best: its name, the figure, how it is said, whether more of it is better."""

    name: str
    title: str
    figure: Callable[[Outcome], float | None]
    tell: Callable[[float], str]
    more_is_better: bool
    tell_difference: Callable[[float], str] | None = None

    def difference(self, value: float) -> str:
        return (self.tell_difference or self.tell)(value)

    def ends(self, low: float, high: float) -> str:
        """``58.61 to 71.04 %``."""
        first, last = self.tell(low), self.tell(high)
        return f"{first.removesuffix(' %') if last.endswith(' %') else first} to {last}"


def points_of_percent(fraction: float) -> str:
    return f"{fraction * 100:.2f} points"


def fine_percent(fraction: float) -> str:
    """Two digits after the point: points of a sweep lie close together."""
    return f"{max(0.0, fraction) * 100:.2f} %"


def fine_money(usd: float) -> str:
    return money(usd) if usd >= 10 else f"${usd:.4f}"


OBJECTIVES = {
    "goodput": Objective(
        name="goodput", title="goodput", figure=lambda one: one.goodput_fraction, tell=fine_percent, more_is_better=True, tell_difference=points_of_percent
    ),
    "time": Objective(name="time", title="time to train", figure=lambda one: one.time_to_train_s, tell=duration, more_is_better=False),
    "cost": Objective(
        name="cost",
        title="cost of M tokens",
        figure=lambda one: one.usd_per_million_tokens,
        tell=fine_money,
        more_is_better=False,
    ),
}


def values_of(point: Point, objective: Objective) -> list[float]:
    """Of the replicas, worst possible where one has none: it never gets there."""
    never = -math.inf if objective.more_is_better else math.inf
    return [never if (value := objective.figure(one)) is None else value for one in point.outcomes]


def summary(point: Point, objective: Objective) -> Summary | None:
    """None where a replica has no such figure."""
    values = values_of(point, objective)
    if not values or not all(map(math.isfinite, values)):
        return None
    return Summary(mean=fmean(values), low=quantile(values, LOW), high=quantile(values, HIGH), num_values=len(values))


def mean(point: Point, objective: Objective) -> float:
    return fmean(values_of(point, objective))


def ranked(points: Sequence[Point], objective: Objective) -> list[Point]:
    """Best mean first; equal ones in the order given."""
    sign = -1.0 if objective.more_is_better else 1.0
    return sorted(points, key=lambda point: sign * mean(point, objective))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a point stands against the best: how much worse on average, the half-width of that difference's interval, whether it can be told from chance."""

    point: Point
    worse: float
    half_width: float | None
    is_told_apart: bool


def standings(points: Sequence[Point], objective: Objective) -> list[Standing]:
    """Every point but the best, best first: Student's t on paired differences, at 5 % shared over all comparisons (Bonferroni)."""
    order = ranked(points, objective)
    best = order[0]
    sign = 1.0 if objective.more_is_better else -1.0
    found = []
    for point in order[1:]:
        differences = [sign * (one - other) for one, other in zip(values_of(best, objective), values_of(point, objective), strict=True)]
        half = _half_width(differences, len(order) - 1)
        worse = fmean(differences) if all(map(math.isfinite, differences)) else math.inf
        found.append(Standing(point=point, worse=worse, half_width=half, is_told_apart=worse == math.inf or (half is not None and worse > half)))
    return found


def _half_width(differences: Sequence[float], num_compared: int) -> float | None:
    """Of the mean difference's interval; None for one replica, which has no spread to judge by."""
    number = len(differences)
    if number < 2 or not all(map(math.isfinite, differences)):
        return None
    from scipy.special import stdtrit  # takes a tenth of a second to import

    return float(stdtrit(number - 1, 1 - _LEVEL / 2 / num_compared)) * stdev(differences) / math.sqrt(number)


def name_of(dims: Sequence[str], point: Point) -> str:
    return ", ".join(f"{dim} {value}" for dim, value in zip(dims, point.values, strict=True))


def verdict(dims: Sequence[str], points: Sequence[Point], objective: Objective) -> str:
    """The best point with its spread, and which others chance could have put before it."""
    best = ranked(points, objective)[0]
    found = summary(best, objective)
    if found is None:
        return f"No point has a {objective.title}: the job makes no lasting progress in any."
    told = f"Best {objective.title}: {name_of(dims, best)}, at {found.words(objective.tell)}."
    others = standings(points, objective)
    if not others:
        return told
    if found.num_values == 1:
        return f"{told} One replica a point: whether that is more than chance cannot be said; --replicas 10 or more can tell."
    close = [each.point for each in others if not each.is_told_apart]
    if not close:
        return f"{told} {_clear(dims, others[0], objective)}"
    shown = "; ".join(name_of(dims, point) for point in close[:4]) + (f"; and {len(close) - 4} more" if len(close) > 4 else "")
    return f"{told} Not to be told apart from it with {found.num_values} replicas: {shown}."


def _clear(dims: Sequence[str], runner_up: Standing, objective: Objective) -> str:
    if runner_up.worse == math.inf:
        return f"The next, {name_of(dims, runner_up.point)}, does not always get there."
    return f"Told apart from all others; the next, {name_of(dims, runner_up.point)}, is {_difference(runner_up, objective)} on average."


def _difference(standing: Standing, objective: Objective) -> str:
    width = f" (give or take {objective.difference(standing.half_width)})" if standing.half_width is not None else ""
    return f"{objective.difference(standing.worse)} worse{width}"


def header(dims: Sequence[str], points: Sequence[Point], objective: Objective) -> tuple[str, ...]:
    """Of ``cells``."""
    is_one = len(points[0].outcomes) == 1
    several, mean_of = ((), "") if is_one else (("9 in 10", "against the best"), "mean ")
    return (*dims, mean_of + objective.title, *several, *(mean_of + one.title for one in _others(points, objective)), mean_of + "interruptions")


def cells(point: Point, points: Sequence[Point], objective: Objective, standing: Standing | None) -> tuple[str, ...]:
    """A row of the table of points: means over replicas, and of the objective its spread and how the point stands against the best."""
    found = summary(point, objective)
    several: tuple[str, ...] = ()
    if len(point.outcomes) > 1:
        several = (objective.ends(found.low, found.high) if found else "–", _against(standing, objective) if found else "never gets there")
    others = (one.tell(other.mean) if (other := summary(point, one)) else "–" for one in _others(points, objective))
    times = fmean(one.num_interruptions for one in point.outcomes)
    return (*point.values, objective.tell(found.mean) if found else "–", *several, *others, f"{times:,.0f}" if len(point.outcomes) == 1 else f"{times:,.1f}")


def _others(points: Sequence[Point], objective: Objective) -> list[Objective]:
    """The other objectives, those that any point has a figure of."""
    return [one for one in OBJECTIVES.values() if one.name != objective.name and any(summary(point, one) for point in points)]


def _against(standing: Standing | None, objective: Objective) -> str:
    if standing is None:
        return "the best"
    if standing.worse == math.inf:
        return "never gets there"
    apart = "" if standing.is_told_apart else ", may be chance" if standing.half_width is not None else ""
    return f"{objective.difference(standing.worse)} worse{apart}"

"""Two reports side by side: measured against measured, or against simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from colossus.report import words
from colossus.report.record import KindTotal, Report
from colossus.spec.base import Spec
from colossus.spec.causes import CAUSES, LABELS, Cause
from colossus.spec.machine import How
from colossus.spec.units import format_quantity

if TYPE_CHECKING:
    from rich.table import Table


class Row(Spec):
    """One quantity in both; ``ratio`` is second over first. ``unit`` is one of s, B, tokens/s, fraction, count, nats."""

    name: str
    unit: str
    first: float | None = None
    second: float | None = None
    ratio: float | None = None


class Off(Spec):
    """A duration that the simulation has otherwise than it was measured: the mean of each, how often it was, and what that comes to over the run."""

    name: str
    measured_s: float
    simulated_s: float
    num_times: int
    off_s: float


class Comparison(Spec):
    """``recalibrate``: of a real run and its simulation, what is off by enough to matter, most first. ``num_equal_losses`` of ``num_common_steps`` are equal bit for bit; ``first_difference`` is the first step that is not."""

    names: tuple[str, str]
    hows: tuple[How, How]
    figures: list[Row] = Field(default_factory=list)
    causes: list[Row] = Field(default_factory=list)
    kinds: list[Row] = Field(default_factory=list)
    recalibrate: list[Off] = Field(default_factory=list)
    num_common_steps: int = 0
    num_equal_losses: int = 0
    first_difference: int | None = None
    largest_difference: float | None = None


# What other events tell already.
_DERIVED = {"worker_phase", "checkpoint_started", "recovered", "checkpoint_saved"}
# Events that every rank tells of one time that all spend at once.
_SHARERS: dict[str, Callable[[Report], int]] = {"worker_phase": lambda report: report.num_workers or 1}
_MATTERS_FRACTION = 0.01

_FIGURES: list[tuple[str, str, Callable[[Report], float | None]]] = [
    ("steps", "count", lambda report: report.steps),
    ("final loss", "nats", lambda report: report.final_loss),
    ("validation loss", "nats", lambda report: report.final_validation_loss),
    ("wall time", "s", lambda report: report.wall_s),
    ("goodput", "fraction", lambda report: report.goodput_fraction),
    ("median step", "s", lambda report: report.median_step_s),
    ("tokens/s in a step", "tokens/s", lambda report: report.tokens_per_s),
    ("tokens/s over all", "tokens/s", lambda report: report.overall_tokens_per_s),
    ("MFU", "fraction", lambda report: report.mfu_fraction),
    ("peak memory", "B", lambda report: report.memory_peak_bytes),
    ("faults", "count", lambda report: report.num_faults),
    ("steps done twice", "count", lambda report: report.lost_steps),
]


def compare(first: Report, second: Report) -> Comparison:
    """Key figures, every cause of time, the mean of every kind of event that tells a duration, and the loss curves."""
    one, other = _with_single_steps(first.kinds), _with_single_steps(second.kinds)
    return Comparison(
        names=(first.name, second.name),
        hows=(first.how, second.how),
        figures=[_row(name, unit, get(first), get(second)) for name, unit, get in _FIGURES if (get(first), get(second)) != (None, None)],
        causes=[_row(LABELS[cause], "s", _spent(first, cause), _spent(second, cause)) for cause in CAUSES if _spent(first, cause) or _spent(second, cause)],
        kinds=[row for kind in sorted(one | other) for row in _kind_rows(kind, one.get(kind), other.get(kind))],
        recalibrate=_off(first, second, one, other),
        **_losses(first, second),
    )


def _with_single_steps(kinds: Mapping[str, KindTotal]) -> dict[str, KindTotal]:
    """Spans of steps counted as the steps in them: a real run and a simulation tell them in different ways."""
    spans = kinds.get("steps")
    if spans is None or spans.num_steps is None:
        return dict(kinds)
    alone = kinds.get("step", KindTotal(num_events=0, total_s=0.0))
    steps = KindTotal(num_events=alone.num_events + spans.num_steps, total_s=(alone.total_s or 0.0) + (spans.total_s or 0.0))
    return {kind: total for kind, total in kinds.items() if kind != "steps"} | {"step": steps}


def _off(first: Report, second: Report, one: Mapping[str, KindTotal], other: Mapping[str, KindTotal]) -> list[Off]:
    """Durations that make out more than a hundredth of the wall time too much or too little; none where both are measured, or both simulated."""
    if {first.how, second.how} != {How.MEASURED, How.SIMULATED}:
        return []
    real, twin = (one, other) if first.how is How.MEASURED else (other, one)
    wall_s = (first if first.how is How.MEASURED else second).wall_s
    found = []
    for name in sorted(real.keys() & twin.keys() - _DERIVED):
        a, b = real[name], twin[name]
        if a.total_s is None or b.total_s is None:
            continue
        mean_s, simulated_s = a.total_s / a.num_events, b.total_s / b.num_events
        off_s = (simulated_s - mean_s) * a.num_events / _SHARERS.get(name.partition(":")[0], lambda report: 1)(first)
        if abs(off_s) >= _MATTERS_FRACTION * wall_s:
            found.append(Off(name=name, measured_s=mean_s, simulated_s=simulated_s, num_times=a.num_events, off_s=off_s))
    return sorted(found, key=lambda off: -abs(off.off_s))


def _row(name: str, unit: str, first: float | None, second: float | None) -> Row:
    ratio = second / first if first and second is not None else None
    return Row(name=name, unit=unit, first=first, second=second, ratio=ratio)


def _spent(report: Report, cause: Cause) -> float:
    return report.goodput_s if cause is Cause.PRODUCTIVE else report.badput_s.get(cause, 0.0)


def _kind_rows(kind: str, first: KindTotal | None, second: KindTotal | None) -> list[Row]:
    counts = _row(kind, "count", first.num_events if first else 0, second.num_events if second else 0)
    means = [total.total_s / total.num_events if total and total.total_s is not None else None for total in (first, second)]
    return [counts] if means == [None, None] else [counts, _row(f"{kind}, mean time", "s", *means)]


def _losses(first: Report, second: Report) -> dict:
    if any(report.how is How.SIMULATED and not any(report.loss.values) for report in (first, second)):
        return {}
    other = dict(zip(second.loss.steps, second.loss.values, strict=True))
    pairs = [(step, value, other[step]) for step, value in zip(first.loss.steps, first.loss.values, strict=True) if step in other]
    different = [(step, a, b) for step, a, b in pairs if a != b]
    gaps = [abs(a - b) for _, a, b in different if a is not None and b is not None]
    return {
        "num_common_steps": len(pairs),
        "num_equal_losses": len(pairs) - len(different),
        "first_difference": different[0][0] if different else None,
        "largest_difference": max(gaps, default=None) if different else 0.0 if pairs else None,
    }


def curves_words(comparison: Comparison) -> str:
    """What the two loss curves say of each other, in a sentence."""
    if How.SIMULATED in comparison.hows and not comparison.num_common_steps:
        return "A simulation has no losses."
    if not comparison.num_common_steps:
        return "The runs have no step in common."
    if comparison.first_difference is None:
        return f"The losses of all {comparison.num_common_steps:,} common steps are equal, bit for bit."
    gap = f", by {comparison.largest_difference:.3g} at most" if comparison.largest_difference is not None else ""
    return f"The losses of {comparison.num_equal_losses:,} of {comparison.num_common_steps:,} common steps are equal; they differ from step {comparison.first_difference:,} on{gap}."


def advice(comparison: Comparison, run: str) -> list[str]:
    """What of the twin to calibrate again, and how; nothing where it is as it should be, or where none is simulated."""
    if How.SIMULATED not in comparison.hows or How.MEASURED not in comparison.hows:
        return []
    if not comparison.recalibrate:
        return ["No duration is off by more than 1 % of the wall time: nothing to calibrate."]
    rows = [
        f"{off.name}: simulated {words.duration(off.simulated_s)}, measured {words.duration(off.measured_s)}, {off.num_times:,} times: "
        f"{words.duration(abs(off.off_s))} too {'much' if off.off_s > 0 else 'little'}"
        for off in comparison.recalibrate
    ]
    return ["To calibrate again:", *(f"  {row}" for row in rows), f"  colossus calibrate {run}"]


def render(comparison: Comparison, *, names: tuple[str, str] | None = None) -> Table:
    """Both side by side, as a rich table: figures, causes of time, kinds of events; ``names`` to tell them apart."""
    from rich.table import Table

    drawn = Table(box=None, padding=(0, 2, 0, 0), caption=curves_words(comparison), caption_justify="left")
    drawn.add_column("")
    for name, how in zip(names or comparison.names, comparison.hows, strict=True):
        drawn.add_column(f"{name} ({how.value})", justify="right")
    drawn.add_column("ratio", justify="right")
    for title, rows in (("", comparison.figures), ("time", comparison.causes), ("events", comparison.kinds)):
        if title and rows:
            drawn.add_row(title, style="bold")
        for row in rows:
            drawn.add_row(row.name, _cell(row.first, row.unit), _cell(row.second, row.unit), "–" if row.ratio is None else f"{row.ratio:.3f}")
    return drawn


def _cell(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    forms: dict[str, Callable[[float], str]] = {
        "s": words.duration,
        "fraction": words.percent,
        "count": lambda number: f"{number:,.0f}",
        "tokens/s": lambda number: f"{number:,.0f}",
        "B": lambda number: format_quantity(number, "B", binary=True),
        "nats": lambda number: f"{number:.4f}",
    }
    return forms[unit](value)

"""What another machine would make of a job: one hardware figure changed, or each in turn (a tornado)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from colossus.estimate.shape import Device
from colossus.plan.search import Question, search
from colossus.spec.errors import Problem, SpecError, nearest

# What a user calls a figure -> the numbers of the estimate that it scales.
FIGURES: dict[str, tuple[str, ...]] = {
    "chip.peak": ("gemm_flop_per_s", "attention_flop_per_s"),
    "chip.memory_bandwidth": ("memory_bytes_per_s",),
    "chip.memory": ("memory_bytes",),
    "scale_up.bandwidth": ("scale_up_bytes_per_s",),
    "scale_up.latency": ("scale_up_latency_s",),
    "scale_up.chips": ("domain_chips",),
    "scale_out.bandwidth": ("scale_out_bytes_per_s",),
    "scale_out.latency": ("scale_out_latency_s",),
    "scale_out.oversubscription": ("oversubscription",),
    "host.bandwidth": ("host_bytes_per_s",),
}
_CHANGE = re.compile(r"^\s*([a-z_.]+)\s*([*/])\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*$")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure times a factor."""

    figure: str
    factor: float

    def __str__(self) -> str:
        return f"{self.figure}*{self.factor:g}"

    def apply(self, device: Device) -> Device:
        least = 1.0 if self.figure in ("scale_up.chips", "scale_out.oversubscription") else 0.0
        return replace(device, **{name: max(least, getattr(device, name) * self.factor) for name in FIGURES[self.figure]})


@dataclass(frozen=True, kw_only=True)
class Swing:
    """The best step time with a figure lowered and raised."""

    figure: str
    low_s: float | None
    high_s: float | None


def parse_change(text: str) -> Change:
    """``chip.peak*1.2`` or ``scale_out.bandwidth/2``; SpecError names the figures there are."""
    match = _CHANGE.match(text)
    if match is None:
        raise _refuse(text, "must look like FIGURE*FACTOR or FIGURE/FACTOR", "e.g. --what-if chip.peak*1.2")
    figure, sign, number = match.groups()
    if figure not in FIGURES:
        raise _refuse(text, "names no figure of a machine", nearest(figure, FIGURES) or "figures: " + ", ".join(FIGURES))
    if not 0 < float(number) < 1e6:
        raise _refuse(text, "the factor must be above zero and below a million", None)
    return Change(figure=figure, factor=float(number) if sign == "*" else 1 / float(number))


def changed(question: Question, changes: tuple[Change, ...]) -> Question:
    """The question on a machine with those figures."""
    return replace(question, changes=(*question.changes, *changes))


def best_step_s(question: Question) -> float | None:
    """Of the fastest layout that fits; None where none does."""
    candidates = search(question)
    order = candidates.order()
    return float(candidates.step_s[order[0]]) if len(order) else None


def tornado(question: Question, factor: float = 1.2) -> list[Swing]:
    """Every figure divided and multiplied by ``factor``, the one that matters most first; layouts are chosen anew each time."""
    swings = [
        Swing(
            figure=figure,
            low_s=best_step_s(changed(question, (Change(figure=figure, factor=1 / factor),))),
            high_s=best_step_s(changed(question, (Change(figure=figure, factor=factor),))),
        )
        for figure in FIGURES
    ]
    return sorted(swings, key=lambda swing: -_width(swing))


def _width(swing: Swing) -> float:
    return float("inf") if swing.low_s is None or swing.high_s is None else abs(swing.low_s - swing.high_s)


def _refuse(text: str, rule: str, hint: str | None) -> SpecError:
    return SpecError("--what-if", [Problem(path="--what-if", value=repr(text), rule=rule, hint=hint)])

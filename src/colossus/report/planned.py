"""Planned against measured, part by part: what a run's plan said, beside what its events tell."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal

from colossus.report.accounting import steps_in
from colossus.report.record import PlannedRow
from colossus.spec.errors import ColossusError
from colossus.spec.event import Event
from colossus.spec.layout import FORWARD_FRACTION, RECOMPUTED, Remat
from colossus.spec.plan import Expectation, StepEstimate

PART_NAMES = {
    "gemm": "matrix products",
    "attention": "attention",
    "head": "vocabulary head and loss",
    "elementwise": "norms, activations, residuals",
    "recompute": "recomputing activations",
    "host": "launching kernels",
    "dp": "summing gradients (dp)",
    "fsdp": "gathering and scattering (fsdp)",
    "tp": "exchanging activations (tp)",
    "communication": "communication",
    "optimizer": "optimizer",
    "overhead": "overhead",
    "jitter": "waiting for the slowest",
}
# Parts of a plan that a profile sees as one.
_SEEN_AS = {"dp": "communication", "fsdp": "communication", "tp": "communication", "host": "overhead", "jitter": "overhead"}
Unit = Literal["s", "B", "tokens/s", ""]


class PlannedAgainstMeasured:
    """Follows a run's events; steps of a gang of another size than planned do not count."""

    def __init__(self) -> None:
        self._plan: Expectation | None = None
        self._num_workers: int | None = None
        self._steps_s, self._data_s = array("d"), array("d")
        self._parts_s: dict[str, float] = {}
        self._compile_s: float | None = None

    def see(self, event: Event) -> None:
        payload = event.payload
        match event.kind:
            case "run_started":
                self.__init__()  # type: ignore[misc]
                self._plan = _expectation(payload.get("planned"))
                self._num_workers = payload["num_workers"]
            case "attempt_started":
                self._num_workers = payload["num_workers"]
            case "step" if self._plan is not None and self._num_workers == self._plan.num_workers:
                self._steps_s.append(payload["duration_s"])
                self._data_s.append(payload["data_s"])
            case "steps" if self._plan is not None and self._num_workers == self._plan.num_workers:
                self._steps_s.append((payload["duration_s"] - payload["blocked_s"]) / steps_in(payload))
                self._data_s.append(0.0)
            case "step_parts" if isinstance(payload["parts_s"], dict):
                self._parts_s = dict(payload["parts_s"])
            case "worker_phase" if payload["phase"] == "compiled" and payload.get("compilations") and self._compile_s is None:
                self._compile_s = payload["duration_s"]

    @property
    def source(self) -> str:
        """What the planned time of a step rests on."""
        step = None if self._plan is None else self._plan.step
        return "" if step is None else f"{step.how.value}: {step.source}"

    def rows(
        self, *, tokens_per_step: int | None, flop_share: float | None, memory_bytes: float | None, save: tuple[float | None, float | None]
    ) -> list[PlannedRow]:
        """``flop_share``: model FLOP of a token over the peak; ``save``: mean seconds and bytes of a checkpoint."""
        plan = self._plan
        if plan is None:
            return []
        rows = self._time_rows(plan.step, plan.remat, tokens_per_step, flop_share) if plan.step is not None and self._steps_s else []
        rows += [
            _row("peak memory", "B", plan.memory_bytes, memory_bytes),
            _row("compiling the step", "s", plan.compile_s, self._compile_s),
            _row("checkpoint", "B", plan.save_bytes, save[1]),
        ]
        told = [row for row in rows if row.planned is not None and row.measured is not None]
        if told and save[0] is not None:
            told.append(_row("checkpoint, begun to committed", "s", None, save[0]))
        return told

    def _time_rows(self, step: StepEstimate, remat: Remat, tokens_per_step: int | None, flop_share: float | None) -> list[PlannedRow]:
        measured_s = median(self._steps_s)
        rows = [_row("step", "s", step.step_s, measured_s, lower=step.lower_step_s, upper=step.upper_step_s)]
        rows += self._part_rows(step, remat)
        rows.append(_row("waiting for data", "s", 0.0, median(self._data_s)))
        if tokens_per_step:
            rates = [tokens_per_step / seconds for seconds in (step.step_s, measured_s)]
            rows.append(_row("tokens/s", "tokens/s", *rates))
            if flop_share:
                rows.append(_row("MFU", "", *(flop_share * rate for rate in rates)))
        return rows

    def _part_rows(self, step: StepEstimate, remat: Remat) -> list[PlannedRow]:
        """The plan's parts, joined where a profile cannot tell them apart, beside the profiled step's."""
        if not self._parts_s:
            return []
        planned = as_profiled(step.parts_s, remat)
        names = sorted(planned.keys() | self._parts_s.keys(), key=lambda name: -self._parts_s.get(name, 0.0))
        return [_row(PART_NAMES.get(name, name), "s", planned.get(name, 0.0), self._parts_s.get(name, 0.0), is_part=True) for name in names]


def _expectation(data: Any) -> Expectation | None:
    """None where a run was planned before plans knew time, or by a version that says it otherwise."""
    try:
        return None if data is None else Expectation.from_data(data, origin="planned")
    except ColossusError:
        return None


def as_profiled(parts_s: Mapping[str, float], remat: Remat) -> dict[str, float]:
    """A plan's parts as a profile of the step would name them."""
    found: dict[str, float] = {}
    for name, seconds in _with_recompute(parts_s, remat).items():
        seen = _SEEN_AS.get(name, name)
        found[seen] = found.get(seen, 0.0) + seconds
    return found


def _with_recompute(parts_s: Mapping[str, float], remat: Remat) -> dict[str, float]:
    """Recomputing shared out to the parts that do it again, as a profile sees them, each by its forward time."""
    again_s = {name: FORWARD_FRACTION[name] * parts_s.get(name, 0.0) for name in RECOMPUTED[remat]}
    whole_s = sum(again_s.values())
    if not whole_s:
        return dict(parts_s)
    factor = parts_s.get("recompute", 0.0) / whole_s
    return {name: seconds + factor * again_s.get(name, 0.0) for name, seconds in parts_s.items() if name != "recompute"}


def _row(
    name: str, unit: Unit, planned: float | None, measured: float | None, *, lower: float | None = None, upper: float | None = None, is_part: bool = False
) -> PlannedRow:
    return PlannedRow(name=name, unit=unit, planned=planned, measured=measured, lower=lower, upper=upper, is_part=is_part)

"""events -> Report: one pass over a run's events, real or simulated, whole or torn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from colossus.report.accounting import Accountant, steps_in
from colossus.report.checkpoints import Checkpoints
from colossus.report.clock import RunClock, in_time_order
from colossus.report.incidents import Incidents
from colossus.report.ledger import MICRO
from colossus.report.lineage import Lineage
from colossus.report.planned import PlannedAgainstMeasured
from colossus.report.record import (
    Attempt,
    BadStep,
    DataRecord,
    KindTotal,
    PlannedRow,
    Report,
    Rollback,
    Status,
    Timeline,
)
from colossus.spec.causes import BADPUT, Cause
from colossus.spec.errors import RunError
from colossus.spec.event import KINDS, Event, read_events
from colossus.spec.machine import How
from colossus.spec.run import Run

NUM_BINS = 480
# Kinds whose events are of several sorts, and the field that tells them apart.
_PARTS = {"worker_phase": "phase", "checkpoint_started": "tier"}
_DURATIONS = {"checkpoint_started": "blocked_s", "recovered": "downtime_s", "fault": "detected_s"}


def summarize(events: Iterable[Event], *, how: How = How.MEASURED) -> Report:
    """What the events come to. A log cut short gives the report of what it holds; no events, an empty one.

    Events may be out of order by up to 4096 lines, as concurrent writers leave them.
    """
    summary = _Summary()
    for event in in_time_order(events):
        summary.see(event)
    return summary.report(how)


def summarize_run(run: Run) -> Report:
    """The report of a run's folder as it stands, or of a simulation's; a run's may have no events yet, a simulation's are written at once."""
    if not run.is_simulation:
        return summarize(read_events(run.events) if run.events.exists() else [])
    if not run.events.exists() or not run.events.stat().st_size:
        what = "is empty" if run.events.exists() else "does not exist"
        raise RunError(f"{run.events} {what}: the simulation has no events to read", hint="simulate it again; the same seed gives the same events")
    return summarize(read_events(run.events), how=How.SIMULATED)


class _Summary:
    """Hands every event to those who follow one thing each, and puts their answers together."""

    def __init__(self) -> None:
        self.accountant, self.lineage = Accountant(), Lineage()
        self.incidents, self.checkpoints = Incidents(self.accountant.ledger), Checkpoints()
        self.started: dict[str, Any] = {}
        self.gang = ""
        self.ended: dict[str, Any] | None = None
        self.clock = RunClock()
        self.given_us: dict[str, int] = {}
        self.idle_since_us = 0
        self.session_runs = False
        self.attempts: list[Attempt] = []
        self.bad_steps: list[BadStep] = []
        self.rollbacks: list[Rollback] = []
        self.data: DataRecord | None = None
        self.kinds: dict[str, tuple[int, float | None]] = {}
        self.num_spanned_steps = 0
        self.memory_bytes: float | None = None
        self.planned = PlannedAgainstMeasured()
        self.handlers = {kind: getattr(self, f"_{kind}", None) for kind in KINDS}

    def see(self, event: Event) -> None:
        if event.kind == "run_started" and self.session_runs:
            self._new_session(event)
        at_us = self.clock.at_us(event, given_us=self.accountant.ledger.now_us)
        self._rewind(event)
        self.given_us = self.incidents.given_us() if event.kind == "fault" else {}
        self.accountant.see(event, at_us)
        self.planned.see(event)
        handler = self.handlers.get(event.kind)
        if handler is not None:
            handler(event, at_us)
        self._count(event)

    def _new_session(self, event: Event) -> None:
        self.accountant.finish()
        self.incidents.close_session()
        self.idle_since_us = self.accountant.ledger.now_us
        self.clock.resume(event, now_us=self.idle_since_us)
        self.ended, self.session_runs = None, False

    def _rewind(self, event: Event) -> None:
        to_step = self._rewind_target(event)
        from_step = self.lineage.last_step
        if to_step is not None and to_step < from_step:
            self.accountant.rewind(to_step)
            lost_steps, lost_us = self.lineage.rewind(to_step)
            self.incidents.rewound(from_step=from_step, to_step=to_step, lost_steps=lost_steps, lost_us=lost_us)

    def _rewind_target(self, event: Event) -> int | None:
        """The step that an event shows the state to stand at, before the event's own work."""
        payload = event.payload
        if event.kind == "step":
            return int(payload["step"]) - 1
        if event.kind == "steps":
            return int(payload["to_step"]) - steps_in(payload)
        if event.kind == "rollback":
            return int(payload["to_step"])
        restored = event.kind == "worker_phase" and payload["phase"] == "restored" and payload.get("step") is not None
        return int(payload["step"]) if restored and not self.accountant.stepping else None

    def _run_started(self, event: Event, at_us: int) -> None:
        self.started = event.payload
        self.gang = _form(self.started)
        self.session_runs = True

    def _run_ended(self, event: Event, at_us: int) -> None:
        self.ended = event.payload

    def _data_ready(self, event: Event, at_us: int) -> None:
        self.data = DataRecord(**event.payload)

    def _attempt_started(self, event: Event, at_us: int) -> None:
        payload = event.payload
        self.incidents.attempt(str(payload["how"]))
        self.started = {**self.started, "num_workers": payload["num_workers"]}
        self.gang = _form(self.started)
        self.attempts.append(Attempt(time_s=at_us / MICRO, attempt=payload["attempt"], num_workers=payload["num_workers"], how=str(payload["how"])))

    def _step(self, event: Event, at_us: int) -> None:
        payload = event.payload
        self.session_runs = True
        self.lineage.add(payload, tokens_per_step=self.started.get("tokens_per_step") or 0, gang=self.gang)
        self.incidents.step(step=int(payload["step"]), begun_s=at_us / MICRO - payload["duration_s"], duration_s=payload["duration_s"])
        self.idle_since_us = at_us
        if payload["memory_bytes"]:
            self.memory_bytes = max(self.memory_bytes or 0, payload["memory_bytes"])

    def _steps(self, event: Event, at_us: int) -> None:
        payload = event.payload
        self.session_runs = True
        self.lineage.add_span(payload, tokens_per_step=self.started.get("tokens_per_step") or 0, gang=self.gang)
        num_steps = steps_in(payload)
        self.num_spanned_steps += num_steps
        begun_s, step_s = at_us / MICRO - payload["duration_s"], payload["duration_s"] / num_steps
        self.incidents.step(step=int(payload["to_step"]) - num_steps + 1, begun_s=begun_s, duration_s=step_s)
        self.checkpoints.spanned(payload)
        self.idle_since_us = at_us

    def _evaluation(self, event: Event, at_us: int) -> None:
        self.lineage.evaluations.append(event)
        self.idle_since_us = max(self.idle_since_us, at_us) if self.accountant.stepping else self.idle_since_us

    def _bad_step(self, event: Event, at_us: int) -> None:
        payload = event.payload
        self.bad_steps.append(BadStep(step=payload["step"], time_s=at_us / MICRO, reason=str(payload["reason"]), loss=payload["loss"]))

    def _rollback(self, event: Event, at_us: int) -> None:
        self.rollbacks.append(Rollback(time_s=at_us / MICRO, **event.payload))

    def _injected(self, event: Event, at_us: int) -> None:
        self.incidents.injected(event.payload)

    def _fault(self, event: Event, at_us: int) -> None:
        idle_since_s = self.idle_since_us / MICRO
        self.incidents.fault(event.payload, time_s=at_us / MICRO, step=self.lineage.last_step, idle_since_s=idle_since_s, given_us=self.given_us)

    def _worker_phase(self, event: Event, at_us: int) -> None:
        self.incidents.phase(event.payload)

    def _recovery(self, event: Event, at_us: int) -> None:
        self.incidents.recovery(event.payload)

    def _recovered(self, event: Event, at_us: int) -> None:
        self.incidents.recovered(event.payload)

    def _checkpoint_started(self, event: Event, at_us: int) -> None:
        self.checkpoints.started(event.payload)

    def _checkpoint_saved(self, event: Event, at_us: int) -> None:
        self.checkpoints.saved(event.payload, time_s=at_us / MICRO)

    def _checkpoint_failed(self, event: Event, at_us: int) -> None:
        self.checkpoints.failed(event.payload)

    def _checkpoint_rejected(self, event: Event, at_us: int) -> None:
        self.checkpoints.rejected(event.payload)

    def _interval_chosen(self, event: Event, at_us: int) -> None:
        self.checkpoints.interval_steps = event.payload["interval_steps"]

    def _count(self, event: Event) -> None:
        number, total_s = self.kinds.get(event.kind, (0, None))
        told_s = event.payload.get(_DURATIONS.get(event.kind, "duration_s"))
        if told_s is not None:
            total_s = (total_s or 0.0) + told_s
        self.kinds[event.kind] = (number + 1, total_s)
        part = _PARTS.get(event.kind)
        if part is not None:
            name = f"{event.kind}: {event.payload[part]}"
            number, total_s = self.kinds.get(name, (0, 0.0))
            self.kinds[name] = (number + 1, (total_s or 0.0) + (told_s or 0.0))

    def report(self, how: How) -> Report:
        self.accountant.finish()
        ledger, started = self.accountant.ledger, self.started
        totals_us = ledger.totals_us()
        shares, rates = ledger.bins(NUM_BINS) if ledger.now_us else ({}, [])
        checkpoints = self.checkpoints.record()
        return Report(
            how=how,
            name=str(started.get("name", "")),
            status=self._status(),
            status_reason=str((self.ended or {}).get("reason") or ""),
            platform=started.get("platform"),
            layout=started.get("layout"),
            num_workers=started.get("num_workers"),
            attempts=self.attempts,
            started_at_s=self.clock.first_s or 0.0,
            num_steps=started.get("num_steps"),
            data=self.data,
            wall_s=ledger.now_us / MICRO,
            goodput_s=totals_us[Cause.PRODUCTIVE] / MICRO,
            goodput_fraction=totals_us[Cause.PRODUCTIVE] / ledger.now_us if ledger.now_us else 0.0,
            badput_s={cause: totals_us[cause] / MICRO for cause in BADPUT},
            pauses=self.clock.pauses,
            timeline=Timeline(bin_s=ledger.now_us / MICRO / NUM_BINS, shares=_rounded(shares), steps_per_s=[_round(rate) for rate in rates]),
            incidents=self.incidents.records(),
            bad_steps=self.bad_steps,
            rollbacks=self.rollbacks,
            checkpoints=checkpoints,
            planned=self._planned((checkpoints.mean_duration_s, checkpoints.mean_size_bytes)),
            planned_source=self.planned.source,
            memory_peak_bytes=self.memory_bytes,
            replayed_steps=len(self.lineage.replayed),
            replay_mismatches=sorted(self.lineage.mismatches),
            kinds={kind: self._kind(kind, number, total_s) for kind, (number, total_s) in sorted(self.kinds.items())},
            **self._learning(),
            **self._speed(ledger.now_us / MICRO),
        )

    def _kind(self, kind: str, number: int, total_s: float | None) -> KindTotal:
        return KindTotal(num_events=number, total_s=total_s, num_steps=self.num_spanned_steps if kind == "steps" else None)

    def _planned(self, save: tuple[float | None, float | None]) -> list[PlannedRow]:
        started = self.started
        flop, peak = started.get("model_flop_per_token"), started.get("peak_flop_per_s")
        flop_share = flop / peak if flop and peak else None
        return self.planned.rows(tokens_per_step=started.get("tokens_per_step"), flop_share=flop_share, memory_bytes=self.memory_bytes, save=save)

    def _status(self) -> Status:
        if self.clock.first_s is None:
            return Status.EMPTY
        ended = (self.ended or {}).get("status")
        return Status(ended) if ended in ("done", "interrupted", "failed") else Status.UNFINISHED

    def _learning(self) -> dict[str, Any]:
        loss, validation = self.lineage.loss_curve(), self.lineage.validation_curve()
        last = self.lineage.evaluations[-1].payload if self.lineage.evaluations else {}
        return {
            "steps": self.lineage.last_step,
            "loss": loss,
            "validation": validation,
            "final_loss": loss.last,
            "final_validation_loss": validation.last,
            "final_perplexity": last.get("perplexity"),
            "final_metrics": last.get("metrics") or {},
        }

    def _speed(self, wall_s: float) -> dict[str, Any]:
        """Tokens per second in a step (the median one) and over the wall time, and MFU at both."""
        started, median_s = self.started, self.lineage.median_step_s()
        per_step = started.get("tokens_per_step")
        tokens = self.lineage.num_tokens if per_step else None
        rate = per_step / median_s if per_step and median_s else None
        overall = tokens / wall_s if tokens is not None and wall_s else None
        flop, peak = started.get("model_flop_per_token"), started.get("peak_flop_per_s")
        flop_share = flop / peak if flop and peak else None
        return {
            "tokens": tokens,
            "tokens_per_step": per_step,
            "median_step_s": median_s,
            "tokens_per_s": rate,
            "overall_tokens_per_s": overall,
            "model_flop_per_token": flop,
            "peak_flop_per_s": peak,
            "peak_how": started.get("peak_how"),
            "mfu_fraction": rate * flop_share if flop_share and rate else None,
            "overall_mfu_fraction": overall * flop_share if flop_share and overall else None,
        }


def _form(started: dict[str, Any]) -> str:
    """Gangs of one form (size and layout) give the same bits."""
    return json.dumps([started.get("num_workers"), started.get("layout")], sort_keys=True)


def _round(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0


def _rounded(shares: dict[Cause, list[float]]) -> dict[Cause, list[float]]:
    return {cause: [round(value, 5) for value in row] for cause, row in shares.items()}

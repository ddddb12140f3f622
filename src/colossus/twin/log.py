"""A replica's log in the one event schema, with steps told by the span."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from colossus.spec.causes import Cause
from colossus.spec.event import Event
from colossus.twin.book import BOOK, IncidentRow
from colossus.twin.training import Job


def events_of(job: Job) -> Iterator[Event]:
    """From ``run_started`` to ``run_ended``; times are since the start."""
    setting, workload = job.setting, job.setting.workload
    yield Event(
        time_s=0.0,
        kind="run_started",
        payload={
            "name": workload.name,
            "num_workers": setting.num_gang,
            "num_steps": workload.num_steps,
            "layout": workload.layout,
            "platform": setting.machine.node.chip.kind,
            "tokens_per_step": workload.tokens_per_step,
            "model_flop_per_token": workload.model_flop_per_token,
            "peak_flop_per_s": workload.peak_flop_per_s,
            "peak_how": "datasheet" if workload.peak_flop_per_s else None,
        },
    )
    yield _attempt(0.0, 1, setting.num_gang, "start")
    attempt = 1
    for kind, *row in job.log:
        if kind == "return":
            attempt += 1
            yield from _return(attempt, *row)
        else:
            yield from _TOLD[kind](job, *row)
    end = job.last_step
    if end < int(job.progress.at):
        payload = {"from_step": int(job.progress.at), "to_step": end, "reason": "it ended while the gang stood; what was not saved is lost"}
        yield Event(time_s=job.wall_s, kind="rollback", payload=payload)
    status = "done" if job.is_done else "failed" if job.failed else "interrupted"
    payload = {"status": status, "step": end, "reason": job.failed or ("" if job.is_done else "the horizon was reached")}
    yield Event(time_s=job.wall_s, kind="run_ended", payload=payload)


def _attempt(time_s: float, attempt: int, num_workers: int, how: str) -> Event:
    payload = {"attempt": attempt, "num_workers": num_workers, "how": how, "pids": []}
    return Event(time_s=time_s, kind="attempt_started", scope={"attempt": attempt}, payload=payload)


def _steps(job: Job, end_s: float, first: int, last: int, spent: list[float], num_saves: int) -> Iterator[Event]:
    took = dict(zip(BOOK, spent, strict=True))
    check_s = took[Cause.EVALUATION]
    payload = {
        "from_step": first,
        "to_step": last,
        "duration_s": sum(spent) - check_s,
        "productive_s": took[Cause.PRODUCTIVE],
        "blocked_s": took[Cause.CHECKPOINT],
        "straggler_s": took[Cause.STRAGGLER],
        "power_cap_s": took[Cause.POWER_CAP],
        "fewer_nodes_s": took[Cause.FEWER_NODES],
        "num_saves": num_saves,
    }
    yield Event(time_s=end_s - check_s, kind="steps", payload=payload)
    if check_s:
        yield Event(time_s=end_s, kind="evaluation", payload={"step": last, "loss": None, "duration_s": check_s})


def _fault(job: Job, known_s: float, detected_s: float, name: str, kind: int | None, node: int | None) -> Iterator[Event]:
    payload: dict[str, Any] = {"cause": name, "rank": node, "detail": "", "detected_s": detected_s}
    if kind is not None:
        each = job.setting.profile.classes[kind]
        payload |= {"component": each.component.value, "detail": each.effect.value, "node": node}
    yield Event(time_s=known_s, kind="fault", payload=payload)


def _wait(job: Job, until_s: float, saved_s: float, waited_s: float, step: int, reason: str, is_saved: bool, is_planned: bool) -> Iterator[Event]:
    """A standstill on purpose: what was saved before, and the wait."""
    if saved_s:
        payload = {"step": step, "tier": "disk", "blocked_s": saved_s}
        yield Event(time_s=until_s - waited_s, kind="checkpoint_started", payload=payload)
    if is_saved:
        setting = job.setting
        size_bytes = setting.scenario.checkpoint.state_bytes_per_parameter * setting.workload.num_parameters
        payload = {"step": step, "tier": "disk", "duration_s": setting.save_s, "size_bytes": size_bytes}
        yield Event(time_s=until_s - waited_s, kind="checkpoint_saved", payload=payload)
    yield Event(time_s=until_s, kind="waiting", payload={"duration_s": waited_s, "reason": reason, "is_planned": is_planned})


def _decision(job: Job, time_s: float, action: str, reason: str, num_workers: int) -> Iterator[Event]:
    yield Event(time_s=time_s, kind="recovery", payload={"action": action, "reason": reason, "num_workers": num_workers})


def _return(attempt: int, until_s: float, took_s: tuple[float, float, float], step: int, action: str, num_workers: int, is_disk: bool) -> Iterator[Event]:
    """The way back, as far as it went, as workers tell it."""
    at_s = until_s - sum(took_s)
    yield _attempt(at_s, attempt, num_workers, "reform" if action == "reform" else "start")
    scope = {"attempt": attempt, "rank": 0}
    for phase, phase_s in zip(("joined", "restored", "compiled"), took_s, strict=True):
        at_s += phase_s
        if phase_s:
            told = {"step": step, "source": "disk" if is_disk else "ram"} if phase == "restored" else {}
            yield Event(time_s=min(at_s, until_s), kind="worker_phase", scope=scope, payload={"phase": phase, "duration_s": phase_s, **told})


def _recovered(job: Job, resumed_s: float, row: IncidentRow) -> Iterator[Event]:
    detect_s, _, start_s, restore_s, compile_s = row.parts_s
    payload = {
        "from_step": row.from_step,
        "to_step": row.to_step,
        "lost_steps": row.from_step - row.to_step,
        "downtime_s": resumed_s - row.time_s,
        "detect_s": detect_s,
        "start_s": start_s,
        "compile_s": compile_s,
        "restore_s": restore_s,
        "first_step_s": 0.0,
        "compilations": 0,
    }
    yield Event(time_s=resumed_s, kind="recovered", payload=payload)


_TOLD: dict[str, Callable[..., Iterator[Event]]] = {"steps": _steps, "fault": _fault, "wait": _wait, "recovery": _decision, "recovered": _recovered}

"""A replica's log in the one event schema, with steps told by the span."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from colossus.spec.causes import Cause
from colossus.spec.event import Event
from colossus.twin.training import BOOK, IncidentRow, Job

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
        if kind == "steps":
            yield from _steps(*row)
        elif kind == "fault":
            yield _fault(job, *row)
        elif kind == "recovery":
            time_s, action, reason, num_workers = row
            yield Event(time_s=time_s, kind="recovery", payload={"action": action, "reason": reason, "num_workers": num_workers})
        else:
            attempt += 1
            yield from _recovered(attempt, *row)
    status = "done" if job.is_done else "failed" if job.failed else "interrupted"
    payload = {"status": status, "step": int(job.progress.at), "reason": job.failed or ("" if job.is_done else "the horizon was reached")}
    yield Event(time_s=job.wall_s, kind="run_ended", payload=payload)


def _attempt(time_s: float, attempt: int, num_workers: int, how: str) -> Event:
    payload = {"attempt": attempt, "num_workers": num_workers, "how": how, "pids": []}
    return Event(time_s=time_s, kind="attempt_started", scope={"attempt": attempt}, payload=payload)


def _steps(end_s: float, first: int, last: int, spent: list[float], num_saves: int) -> Iterator[Event]:
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


def _fault(job: Job, began_s: float, known_s: float, name: str, kind: int | None, node: int | None) -> Event:
    payload: dict[str, Any] = {"cause": name, "rank": node, "detail": "", "detected_s": known_s - began_s}
    if kind is not None:
        each = job.setting.profile.classes[kind]
        payload |= {"component": each.component.value, "detail": each.effect.value, "node": node}
    return Event(time_s=known_s, kind="fault", payload=payload)


def _recovered(attempt: int, resumed_s: float, row: IncidentRow, num_workers: int) -> Iterator[Event]:
    """The way back, told as workers tell it; the waits lie before it."""
    detect_s, wait_s, start_s, restore_s, compile_s = row.parts_s
    began_s = resumed_s - start_s - restore_s - compile_s
    if wait_s:
        yield Event(time_s=began_s, kind="waiting", payload={"duration_s": wait_s, "reason": row.reason or row.name})
    yield _attempt(began_s, attempt, num_workers, "reform" if row.action == "reform" else "start")
    scope = {"attempt": attempt, "rank": 0}
    for phase, at_s, took_s in (
        ("joined", began_s + start_s, start_s),
        ("restored", began_s + start_s + restore_s, restore_s),
        ("compiled", resumed_s, compile_s),
    ):
        told = {"step": row.to_step, "source": row.source} if phase == "restored" else {}
        yield Event(time_s=at_s, kind="worker_phase", scope=scope, payload={"phase": phase, "duration_s": took_s, **told})
    yield Event(
        time_s=resumed_s,
        kind="recovered",
        payload={
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
        },
    )

"""A replica's log in the one event schema, with steps told by the span."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from colossus.spec.causes import Cause
from colossus.spec.event import Event
from colossus.twin.training import BOOK, Job

_PLACE = {cause: place for place, cause in enumerate(BOOK)}


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

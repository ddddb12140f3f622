"""The user's own runs as calibration reads them: what each took, beside what its plan says now, and why some cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossus.spec.errors import ColossusError, DataError
from colossus.spec.event import Event, read_events
from colossus.spec.machine import Machine
from colossus.spec.plan import OwnFit, Plan
from colossus.spec.run import Run, open_run, write_atomic

if TYPE_CHECKING:
    from colossus.plan.own_runs import OwnRun

_WARM_STEPS, _LEAST_STEPS = 2, 3


def calibrate_on(folders: Sequence[Path], runs: Path) -> tuple[OwnFit, list[OwnRun], dict[str, str]]:
    """The fit, written where the next plan finds it, the runs behind it, and by folder why others were left out."""
    from datetime import date

    from colossus.cli.hardware import known_machine, own_file
    from colossus.plan.own_runs import fit_own
    from colossus.plan.step_time import basis_of

    machine = known_machine(runs, measure=False)
    used, left_out = [], {}
    for folder in folders:
        try:
            used.append(_read(open_run(folder, runs), machine))
        except ColossusError as error:
            left_out[str(folder)] = f"{error}; {error.hint}" if error.hint else str(error)
    if not used:
        told = "\n  ".join(f"{folder}: {reason}" for folder, reason in left_out.items())
        raise DataError(f"none of {len(left_out)} runs can be used:\n  {told}")
    found = fit_own(used, machine=machine.identity, basis=basis_of(machine), date=date.today().isoformat())
    own_file(runs).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(own_file(runs), found.to_json())
    return found, used, left_out


def _read(run: Run, machine: Machine) -> OwnRun:
    from colossus.plan.own_runs import OwnRun
    from colossus.plan.step_time import step_estimate

    there = run.load_machine()
    if there.identity != machine.identity:
        raise DataError(f"ran on another machine ({there.identity})", hint="calibrate there")
    if not run.card.exists():
        raise DataError("trained a program of its own, whose step is not planned")
    plan, job = run.load_plan(), run.load_job()
    planned = step_estimate(job, run.load_card(), machine, plan.layout, plan.num_workers)
    if planned is None:
        raise DataError("has no planned step time", hint="measure this machine first: colossus machine --measure")
    events = list(read_events(run.events))
    steps_s = _steps_s(events, plan)
    if len(steps_s) < _LEAST_STEPS:
        raise DataError(f"has {len(steps_s)} steps of the planned gang after the first {_WARM_STEPS}", hint=f"at least {_LEAST_STEPS} are needed")
    profiled = [event.payload["parts_s"] for event in events if event.kind == "step_parts"]
    return OwnRun(name=str(run.folder), planned=planned, steps_s=steps_s, parts_s=profiled[-1] if profiled else {})


def _steps_s(events: Sequence[Event], plan: Plan) -> list[float]:
    """Of the last session and of gangs as large as planned, without each gang's first steps."""
    found: list[float] = []
    counts, since = False, 0
    for event in events:
        if event.kind == "run_started":
            found.clear()
        if event.kind == "attempt_started":
            counts, since = event.payload["num_workers"] == plan.num_workers, 0
        if event.kind == "step" and counts:
            since += 1
            if since > _WARM_STEPS:
                found.append(float(event.payload["duration_s"]))
    return found

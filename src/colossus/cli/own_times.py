"""How long the parts of real runs took on this machine, learned by ``colossus calibrate RUN`` and kept for its twin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colossus.spec.errors import ColossusError, DataError
from colossus.spec.event import read_events
from colossus.spec.job import RecoverySpec, TrainJob
from colossus.spec.machine import How, Machine
from colossus.spec.run import Run, open_run, write_atomic
from colossus.spec.times import RunTimes

_FEW_STEPS = 3


def times_file(runs: Path) -> Path:
    return runs / ".cache" / "times.json"


def known_times(runs: Path) -> RunTimes | None:
    """What ``colossus calibrate RUN`` learned of this machine; None where it never ran or its file is damaged."""
    try:
        return RunTimes.from_data(json.loads(times_file(runs).read_text()), origin=str(times_file(runs)))
    except (OSError, ValueError, ColossusError):
        return None


def learn_times(folders: Sequence[Path], runs: Path) -> RunTimes | None:
    """Times of the real runs on this machine, written where its twin finds them; None where none of them can tell any."""
    from datetime import date

    from colossus.cli.hardware import known_machine
    from colossus.plan.run_times import times_of

    machine = known_machine(runs, measure=False)
    used = [run for folder in folders if (run := _run_here(folder, runs, machine)) is not None]
    if not used:
        return None
    names, job, before = [str(run.folder) for run in used], used[-1].load_job(), known_times(runs)
    about: dict[str, Any] = {"machine": machine.identity, "how": How.MEASURED, "source": f"colossus calibrate on {', '.join(names)}"}
    about |= {"date": date.today().isoformat(), "runs": names, "job": job_digest(job), "data": data_digest(job)}
    try:
        found = times_of([list(read_events(run.events)) for run in used], known=before if before and before.machine == machine.identity else None, **about)
    except DataError:
        return None
    times_file(runs).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(times_file(runs), found.to_json())
    return found


def _run_here(folder: Path, runs: Path, machine: Machine) -> Run | None:
    """A run that was made on this machine, and has steps; what is against another is told where steps are fitted."""
    try:
        run = open_run(folder, runs)
        is_here = run.load_machine().identity == machine.identity
    except ColossusError:
        return None
    num_steps = sum(event.kind == "step" for event in read_events(run.events)) if is_here and run.events.exists() else 0
    return run if num_steps > _FEW_STEPS else None


def job_digest(job: TrainJob) -> str:
    """Jobs of one digest take the same times: the number of steps and what is done about faults change none."""
    program = job.program and _program_digest(job.program)
    free = {
        "program": program,
        "num_steps": 1_000_000,
        "recovery": RecoverySpec(),
        "name": "x",
        "optimizer": job.optimizer.model_copy(update={"warmup_steps": 0}),
    }
    return job.model_copy(
        update=free | {"checkpoint": type(job.checkpoint)(), "evaluation": type(job.evaluation)(num_batches=job.evaluation.num_batches)}
    ).digest()


def _program_digest(program: str) -> str:
    """Each run keeps a copy of its program's file in its own folder."""
    place, _, function = program.rpartition(":")
    file = Path(place)
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}:{function}" if place.endswith(".py") and file.exists() else program


def data_digest(job: TrainJob) -> str:
    return "" if job.data is None else job.data.digest()

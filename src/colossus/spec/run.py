"""A run is a folder; this names its parts and tells a run from a simulated one and from a foreign folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from colossus.spec.base import Spec, read_toml
from colossus.spec.errors import Problem, RunError, SpecError
from colossus.spec.job import TrainJob
from colossus.spec.machine import Machine
from colossus.spec.model import ModelCard
from colossus.spec.plan import Plan

MARKER = {"schema": 1, "kind": "colossus-run"}
SIMULATION_MARKER = MARKER | {"kind": "colossus-simulation"}
_S = TypeVar("_S", bound=Spec)


class Inputs(Spec):
    """What a decoder's run reads: the prepared corpus, and the folder of pretrained weights it began with."""

    corpus: Path
    weights: Path | None = None


@dataclass(frozen=True)
class Run:
    """Paths of one run's folder."""

    folder: Path

    @property
    def marker(self) -> Path:
        return self.folder / "run.json"

    @property
    def is_simulation(self) -> bool:
        """Whether its marker says that no machine did what its events tell."""
        try:
            return bool(json.loads(self.marker.read_text()).get("kind") == SIMULATION_MARKER["kind"])
        except (OSError, ValueError, AttributeError):
            return False

    @property
    def simulation(self) -> Path:
        return self.folder / "simulation.json"

    @property
    def job(self) -> Path:
        return self.folder / "job.toml"

    @property
    def machine(self) -> Path:
        return self.folder / "machine.json"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def report_json(self) -> Path:
        return self.folder / "report.json"

    @property
    def report_html(self) -> Path:
        return self.folder / "report.html"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def card(self) -> Path:
        return self.folder / "model.json"

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs.json"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    def load_card(self) -> ModelCard:
        return _load(ModelCard, self.card, hint=_LOST)

    def load_inputs(self) -> Inputs:
        return _load(Inputs, self.inputs, hint=_LOST)

    def load_job(self) -> TrainJob:
        return TrainJob.from_data(read_toml(self.job), origin=str(self.job))

    def load_plan(self) -> Plan:
        return _load(Plan, self.plan, hint=f"written anew by: colossus resume {self.folder}")

    def load_machine(self) -> Machine:
        return _load(Machine, self.machine, hint=f"written anew by: colossus resume {self.folder}")


_LOST = "put a copy of it back, or start another run with: colossus train JOB.toml"


def _load(cls: type[_S], path: Path, *, hint: str) -> _S:
    """What a file of a run holds; a missing or damaged one is a SpecError that says how to mend it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        rule = "does not exist"
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
    except ValueError as error:
        rule = f"is not JSON: {error}"
    else:
        return cls.from_data(data, origin=str(path))
    raise SpecError(str(path), [Problem(path="file", value=str(path), rule=rule)], hint=hint)


def create_run(root: Path, job: TrainJob) -> Run:
    """Makes ``root/<name>-<n>`` with the next free number; two callers never get the same folder."""
    return _create(root, job.name, job, MARKER)


def create_simulation(root: Path, name: str, job: TrainJob | None = None) -> Run:
    """Makes ``root/<name>-twin-<n>``, a folder like a run's that says it is a simulation."""
    return _create(root, f"{name}-twin", job, SIMULATION_MARKER)


def _create(root: Path, stem: str, job: TrainJob | None, marker: Mapping[str, object]) -> Run:
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = root / f"{stem}-{number}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        run = Run(folder)
        if job is not None:
            write_atomic(run.job, job.to_toml())
        write_atomic(run.marker, json.dumps(marker) + "\n")
    except OSError as error:
        raise RunError(f"cannot make a run folder under {root}: {error}", hint="give another place with --runs DIR") from None
    return run


def open_run(folder: Path, runs: Path = Path("runs"), *, or_simulation: bool = False) -> Run:
    """The run at ``folder`` (``last``: the newest under ``runs``); raises RunError when it is none of ours or cannot be read.

    ``or_simulation``: a simulation's folder will do as well; without, it is refused, since it holds no trained state.
    """
    run = Run(_newest(runs, or_simulation) if str(folder) == "last" and not folder.exists() else folder)
    folder = run.folder
    try:
        marker = json.loads(run.marker.read_text())
    except FileNotFoundError:
        what = "is not a run of Colossus (no run.json)" if folder.is_dir() else "does not exist"
        raise RunError(f"{folder} {what}", hint=_nearby(folder)) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} cannot be read as a run: {error}", hint=_nearby(folder)) from None
    kind = marker.get("kind") if isinstance(marker, dict) else None
    if kind == SIMULATION_MARKER["kind"] and not or_simulation:
        raise RunError(
            f"{folder} is a simulation: nothing was trained, so there is nothing to go on from",
            hint=f"colossus report {folder} and colossus compare RUN {folder} read it",
        )
    if kind not in (MARKER["kind"], SIMULATION_MARKER["kind"]):
        raise RunError(f"{folder} holds a run.json of some other program", hint=_nearby(folder))
    if marker.get("schema") != MARKER["schema"]:
        raise RunError(f"{folder} was written with schema {marker.get('schema')}; this version reads schema 1")
    return run


def _newest(runs: Path, or_simulation: bool) -> Path:
    """The run that began last."""
    found = [marker.parent for marker in runs.glob("*/run.json") if or_simulation or not Run(marker.parent).is_simulation]
    if not found:
        raise RunError(f"there is no run under {runs.absolute()}", hint="start one with: colossus train JOB.toml")
    return max(found, key=lambda folder: (folder / "run.json").stat().st_mtime)


def _nearby(folder: Path) -> str | None:
    runs = sorted({path.parent for place in (folder.parent, Path("runs")) for path in place.glob("*/run.json")})
    return "runs here: " + ", ".join(str(path) for path in runs[-8:]) if runs else "start one with: colossus train JOB.toml"


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes the whole file or nothing: a reader never sees a half, a full disk harms no older version."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise

"""Writers beside events.jsonl, each through its own library: TensorBoard files, a Weights & Biases project."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from colossus.spec.errors import Problem, SpecError
from colossus.spec.event import Event
from colossus.spec.job import TrackingSpec

_SCALARS = {"step": ("loss", "grad_norm", "learning_rate", "duration_s", "memory_bytes"), "evaluation": ("loss", "perplexity")}


class Tracker(Protocol):
    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Scalars of steps and evaluations as TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _missing("tracking.tensorboard", "true", "tensorboard") from None
        self._writer = SummaryWriter(str(folder))

    def write(self, event: Event) -> None:
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, event.payload["step"], walltime=event.time_s)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """The same scalars to Weights & Biases; WANDB_MODE=offline keeps them in the run's folder."""

    def __init__(self, folder: Path, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("tracking.wandb_project", project, "wandb") from None
        self._run = wandb.init(project=project, name=folder.name, dir=str(folder), id=folder.name, resume="allow")

    def write(self, event: Event) -> None:
        values = scalars(event)
        if values:
            self._run.log(values, step=event.payload["step"])

    def close(self) -> None:
        self._run.finish()


def open_trackers(spec: TrackingSpec, folder: Path) -> tuple[Tracker, ...]:
    """The writers that a job asks for; raises SpecError when a library is not installed."""
    found: list[Tracker] = []
    if spec.tensorboard:
        found.append(TensorBoardTracker(folder / "tensorboard"))
    if spec.wandb_project is not None:
        found.append(WandbTracker(folder, spec.wandb_project))
    return tuple(found)


def scalars(event: Event) -> dict[str, float]:
    """The numbers of a step or evaluation, named ``train/loss``, ``validation/loss`` and so on; else none."""
    group = {"step": "train", "evaluation": "validation"}.get(event.kind)
    if group is None:
        return {}
    values = {name: event.payload[name] for name in _SCALARS[event.kind] if event.payload.get(name) is not None}
    values |= {name: value for name, value in (event.payload.get("metrics") or {}).items() if value is not None}
    return {f"{group}/{name}": float(value) for name, value in values.items()}


def _missing(path: str, value: str, extra: str) -> SpecError:
    return SpecError("job", [Problem(path=path, value=value, rule=f"needs the {extra} library", hint=f"pip install 'colossus[{extra}]'")])

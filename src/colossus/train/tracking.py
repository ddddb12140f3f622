"""Writers beside events.jsonl, each through its own library: TensorBoard files, a Weights & Biases project."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from colossus.spec.errors import Problem, SpecError
from colossus.spec.event import Event, read_events
from colossus.spec.job import TrackingSpec
from colossus.spec.run import Run

_SCALARS = {"step": ("loss", "grad_norm", "learning_rate", "duration_s", "memory_bytes"), "evaluation": ("loss", "perplexity")}
_MOST_WAITING = 10_000
_FLUSH_S = 10.0
_LOG = logging.getLogger(__name__)  # its warnings go to stderr, which is the worker's log
# A library may hold one run a process, so a gang's trackers open when those of the gang before have closed.
_TURN = threading.Lock()


class Tracker(Protocol):
    def write(self, event: Event) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Scalars of steps and evaluations as a TensorBoard event file.

    tensorboardX's SummaryWriter is passed over for the writer beneath it: its own thread dies on a full disk without a
    word, and its next calls then wait for ever.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed_s = 0.0

    def write(self, event: Event) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars(event).items()]
        self._writer.write_event(event_pb2.Event(wall_time=event.time_s, step=event.payload["step"], summary=summary_pb2.Summary(value=values)))
        if event.time_s > self._flushed_s + _FLUSH_S:
            self._writer.flush()
            self._flushed_s = event.time_s

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """The same scalars to Weights & Biases; WANDB_MODE=offline keeps them in the run's folder."""

    def __init__(self, run: Run, project: str) -> None:
        import wandb

        self._run = wandb.init(project=project, name=run.folder.name, dir=str(run.folder), id=identity(run), resume="allow")

    def write(self, event: Event) -> None:
        self._run.log(scalars(event), step=event.payload["step"])

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Feeds trackers from one thread of its own, so that none can slow or stop training.

    A tracker that fails is given up; events beyond ``_MOST_WAITING`` are dropped. Either is said once, in the log.
    """

    def __init__(self, openers: dict[str, Callable[[], Tracker]]) -> None:
        self._openers = openers
        self._open: dict[str, Tracker] = {}
        self._waiting: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._behind = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="trackers")
        self._thread.start()

    def write(self, event: Event) -> None:
        """Hands over what there is to track of an event; returns at once."""
        if not scalars(event):
            return
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put(event)
        elif not self._behind:
            self._behind = True
            _LOG.warning("%s: cannot keep up, and what it does not take is dropped; events.jsonl has it all", " and ".join(self._openers))

    def close(self, wait_s: float) -> None:
        """Lets the trackers write what waits and close their files, but waits for them no longer than this."""
        self._waiting.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        with _TURN:
            for name in self._openers:
                self._try(name, partial(self._begin, name))
            while (event := self._waiting.get()) is not None:
                for name, tracker in list(self._open.items()):
                    self._try(name, partial(tracker.write, event))
            for name, tracker in list(self._open.items()):
                self._try(name, tracker.close)

    def _begin(self, name: str) -> None:
        self._open[name] = self._openers[name]()

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracker meets, training goes on without it
            self._open.pop(name, None)
            _LOG.warning("%s: given up after %s: %s; events.jsonl has it all", name, type(error).__name__, error)


def open_trackers(spec: TrackingSpec, run: Run) -> Trackers | None:
    """The writers that a job asks for; raises SpecError when a library is not installed."""
    openers: dict[str, Callable[[], Tracker]] = {}
    if spec.tensorboard:
        _require("tensorboardX", "tracking.tensorboard", "true", "tensorboard")
        openers["tensorboard"] = partial(TensorBoardTracker, run.folder / "tensorboard")
    if spec.wandb_project is not None:
        _require("wandb", "tracking.wandb_project", spec.wandb_project, "wandb")
        openers["wandb"] = partial(WandbTracker, run, spec.wandb_project)
    return Trackers(openers) if openers else None


def identity(run: Run) -> str:
    """A name that no other run has, on whatever machine, and that a resume finds again: the digest of its first event."""
    first = next(read_events(run.events))
    return hashlib.sha256(first.to_line().encode()).hexdigest()[:16]


def scalars(event: Event) -> dict[str, float]:
    """The numbers of a step or evaluation, named ``train/loss``, ``validation/loss`` and so on; else none."""
    group = {"step": "train", "evaluation": "validation"}.get(event.kind)
    if group is None:
        return {}
    values = {name: event.payload[name] for name in _SCALARS[event.kind] if event.payload.get(name) is not None}
    values |= {name: value for name, value in (event.payload.get("metrics") or {}).items() if value is not None}
    return {f"{group}/{name}": float(value) for name, value in values.items()}


def _require(module: str, path: str, value: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise SpecError("job", [Problem(path=path, value=value, rule=f"needs the {extra} library", hint=f"pip install 'colossus[{extra}]'")])

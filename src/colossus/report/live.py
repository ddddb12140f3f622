"""Follows a run's ``events.jsonl`` while it is written: the state that a progress display shows, and its pictures.

A display polls and draws; this module neither sleeps, prints nor reads a clock:

    follower = Follower(run.events)
    with rich.live.Live(console=err, auto_refresh=False) as live:      # a terminal
        while working:
            live.update(progress(follower.poll(), now_s=time.time()), refresh=True)

    lines = PlainLines(every_s=5)                                       # a pipe or a file
    for line in lines.take(follower.poll(), now_s=time.time()):
        err.print(line)
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossus.report import words
from colossus.spec.event import Event

if TYPE_CHECKING:
    from rich.console import Group

_BAR = 40
_RECENT_STEPS = 16
# What a worker has done last, in the order of train/session.py, and what it does then.
_DOES_NEXT = {"starting": "starting workers", "joined": "compiling", "compiled": "preparing the state", "restored": "first step"}


@dataclass
class LiveState:
    """Where a run stands, by its events so far. ``notes``: lines worth saying once, oldest first."""

    name: str = ""
    phase: str = "preparing data"
    num_steps: int | None = None
    num_workers: int | None = None
    tokens_per_step: int | None = None
    step: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    num_faults: int = 0
    num_recovered: int = 0
    num_checkpoints: int = 0
    attempt: int = 0
    worker_phases: dict[int, str] = field(default_factory=dict)
    started_s: float | None = None
    last_s: float | None = None
    ended: str | None = None
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=400))
    notes: list[str] = field(default_factory=list)

    @property
    def step_s(self) -> float | None:
        """Mean wall time of the last steps."""
        return sum(self.recent_s) / len(self.recent_s) if self.recent_s else None

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens_per_step / self.step_s if self.tokens_per_step and self.step_s else None

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / self.num_steps) if self.num_steps else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Steps to go at the pace of the last ones."""
        return (self.num_steps - self.step) * self.step_s if self.num_steps is not None and self.step_s is not None else None

    def apply(self, event: Event) -> None:
        """Takes one event."""
        self.started_s = event.time_s if self.started_s is None else self.started_s
        self.last_s = event.time_s
        handler = getattr(self, f"_{event.kind}", None)
        if handler is not None:
            handler(event.payload, event.scope)

    def _run_started(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.name, self.num_steps, self.num_workers = payload["name"], payload["num_steps"], payload["num_workers"]
        self.tokens_per_step = payload.get("tokens_per_step")
        self.ended, self.phase, self.started_s = None, "preparing data", self.last_s

    def _data_ready(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        how = "from the cache" if payload["cached"] else f"in {words.duration(payload['duration_s'])}"
        self.notes.append(
            f"data ready {how}: {payload['num_tokens']:,} tokens, {payload['num_validation_tokens']:,} held out, vocabulary {payload['vocab_size']:,}"
        )
        self.phase = "starting workers"

    def _attempt_started(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.attempt, self.num_workers = payload["attempt"], payload["num_workers"]
        self.worker_phases = dict.fromkeys(range(payload["num_workers"]), "starting")
        self.phase = "starting workers"

    def _worker_phase(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        rank = scope.get("rank")
        if rank not in self.worker_phases or self.phase == "training":
            return
        self.worker_phases[rank] = payload["phase"]
        self.phase = next((words for phase, words in _DOES_NEXT.items() if phase in self.worker_phases.values()), "first step")

    def _step(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.step, self.phase = payload["step"], "training"
        if payload["loss"] is not None:
            self.loss = payload["loss"]
            self.losses.append(payload["loss"])
        self.recent_s.append(payload["duration_s"])

    def _steps(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.step, self.phase = payload["to_step"], "training"
        self.recent_s.append(payload["duration_s"] / max(1, payload["to_step"] - payload["from_step"]))

    def _waiting(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.notes.append(f"stood still for {words.duration(payload['duration_s'])}: {payload['reason']}")

    def _evaluation(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.validation_loss = payload["loss"]
        perplexity = f", perplexity {payload['perplexity']:.4g}" if payload.get("perplexity") else ""
        self.notes.append(f"step {payload['step']}: validation loss {words.number(payload['loss'])}{perplexity}")

    def _checkpoint_saved(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.num_checkpoints += 1

    def _checkpoint_failed(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.notes.append(f"checkpoint of step {payload['step']} failed: {payload['reason']}")

    def _checkpoint_rejected(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.notes.append(f"checkpoint of step {payload['step']} is damaged and not used: {payload['reason']}")

    def _bad_step(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.notes.append(f"step {payload['step']} skipped: {payload['reason']}")

    def _rollback(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.notes.append(f"back from step {payload['from_step']} to {payload['to_step']}: {payload['reason']}")

    def _injected(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.notes.append(f"{payload['what']} sent to worker {payload['rank']} (process {payload['pid']}) on purpose")

    def _fault(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.num_faults += 1
        who = f"worker {payload['rank']} " if payload.get("rank") is not None else ""
        self.notes.append(f"fault: {who}{payload['cause']}: {payload['detail']}")
        self.phase = "recovering"

    def _recovery(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.phase = "recovering"
        self.notes.append(f"decision: {payload['action'].replace('_', ' ')} with {words.count(payload['num_workers'], 'worker')}, since {payload['reason']}")

    def _recovered(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.num_recovered = self.num_faults
        lost = words.count(payload["lost_steps"], "step") + " done again"
        self.notes.append(f"recovered: training goes on from step {payload['to_step']} after {words.duration(payload['downtime_s'])}, {lost}")

    def _run_ended(self, payload: dict[str, Any], scope: dict[str, Any]) -> None:
        self.ended = self.phase = payload["status"]
        reason = f": {payload['reason']}" if payload.get("reason") else ""
        self.notes.append(f"{payload['status']} at step {payload['step']}{reason}")


class Follower:
    """Reads what was appended since the last look; a line still being written waits for its end, a torn one is skipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = LiveState()
        self._offset = 0

    def poll(self) -> LiveState:
        """The state after all whole lines written so far; an absent file is an empty one."""
        for event in self.new_events():
            self.state.apply(event)
        return self.state

    def new_events(self) -> list[Event]:
        """The events appended since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for event in map(_parse, whole.splitlines()) if event is not None]


def _parse(line: bytes) -> Event | None:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError, AttributeError):
        return None


def status_line(state: LiveState, *, now_s: float) -> str:
    """One plain line: phase, step, loss, speed, time to go, faults."""
    phase = state.phase if state.phase != "training" else ""
    return "  ".join(part for part in (phase, _steps(state), *_numbers(state, now_s)) if part)


def _steps(state: LiveState) -> str:
    return f"step {state.step:,}/{state.num_steps:,}" if state.num_steps is not None else ""


def _numbers(state: LiveState, now_s: float) -> list[str]:
    parts = [f"loss {state.loss:.4f}"] if state.loss is not None else []
    if state.tokens_per_s:
        parts.append(f"{state.tokens_per_s:,.0f} tokens/s")
    elif state.step_s:
        parts.append(f"{words.duration(state.step_s)} a step")
    parts += _clock(state, now_s)
    if state.num_faults:
        parts.append(f"{words.count(state.num_faults, 'fault')}, {state.num_recovered} recovered")
    return parts


def _clock(state: LiveState, now_s: float) -> list[str]:
    if state.started_s is None:
        return []
    elapsed = words.whole_duration(max(0.0, now_s - state.started_s))
    if state.remaining_s is None or state.ended:
        return [elapsed]
    return [f"{elapsed}, {words.whole_duration(state.remaining_s)} to go"]


class PlainLines:
    """For an output that is no terminal: every note at once, and a status line each ``every_s`` seconds."""

    def __init__(self, *, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self._told = 0
        self._last_s: float | None = None

    def take(self, state: LiveState, *, now_s: float) -> list[str]:
        """The lines due now."""
        lines = state.notes[self._told :]
        self._told = len(state.notes)
        if state.ended is None and (self._last_s is None or now_s - self._last_s >= self.every_s):
            self._last_s = now_s
            lines = [*lines, status_line(state, now_s=now_s)]
        return [line for line in lines if line]


def progress(state: LiveState, *, now_s: float, num_notes: int = 0) -> Group:
    """A bar, below it the numbers, and the workers' phases while they start; above it the last ``num_notes`` notes."""
    from rich.console import Group, RenderableType
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=state.num_steps or 1, completed=state.step, width=_BAR, pulse=state.phase != "training" and not state.ended, animation_time=now_s)
    grid.add_row(bar, Text(f"{state.fraction * 100:3.0f} %"), Text(f"{_steps(state)}  {state.phase}".strip()))
    rows: list[RenderableType] = [
        *(Text(f"  {note}", style="dim") for note in state.notes[len(state.notes) - num_notes :]),
        grid,
        Text("  ".join(_numbers(state, now_s))),
    ]
    if state.phase not in ("training", "preparing data", "recovering") and not state.ended and state.worker_phases:
        phases = "  ".join(f"worker {rank} {phase}" for rank, phase in sorted(state.worker_phases.items())[:8])
        rows.append(Text(f"  {phases}", style="dim"))
    return Group(*rows)

"""Makes event streams such as a real run writes: for tests only, with the true times known by construction."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from colossus.spec.event import KINDS, Event

START_S = 1_790_000_000.0


@dataclass
class Stream:
    """A small run on a made-up clock. ``kill_after``: steps after which a worker is killed, once each."""

    num_steps: int = 60
    step_s: float = 0.12
    interval_steps: int = 10
    evaluation_steps: int = 20
    kill_after: tuple[int, ...] = ()
    seed: int = 0
    now_s: float = START_S
    events: list[Event] = field(default_factory=list)
    blocked_s: float = 0.0
    untold: dict[str, Any] = field(default_factory=dict)

    def emit(self, kind: str, *, of: int | None = None, **payload: Any) -> None:
        scope = {} if of is None else {"rank": of}
        self.events.append(Event(time_s=round(self.now_s, 6), kind=kind, scope=scope, payload=payload))

    def run(self) -> list[Event]:
        self.begin()
        self.train(0, {step: index for index, step in enumerate(self.kill_after)})
        return self.events

    def begin(self) -> None:
        self.emit(
            "run_started",
            name="demo",
            num_workers=2,
            num_steps=self.num_steps,
            layout={"dp": 2, "fsdp": 1, "tp": 1, "remat": "none", "num_microbatches": 1},
            platform="cpu",
            tokens_per_step=4096,
            model_flop_per_token=8.1e6,
            peak_flop_per_s=3.4e11,
            peak_how="measured",
        )
        self.now_s += 1.5
        self.emit("data_ready", num_tokens=1_500_000, num_validation_tokens=30_000, vocab_size=4096, cached=False, duration_s=1.4)
        self.now_s += 0.1
        self.gang(1, "start", step=0, source="init", compile_s=2.2, compilations=3)

    def gang(self, attempt: int, how: str, *, step: int, source: str, compile_s: float, compilations: int) -> None:
        self.emit("attempt_started", attempt=attempt, num_workers=2, how=how, pids=[100 + 2 * attempt, 101 + 2 * attempt])
        for phase, duration_s in (("joined", 1.4), ("compiled", compile_s), ("restored", 0.2)):
            for rank in range(2):
                self.now_s += duration_s / 2
                extra: dict[str, Any] = {"compilations": compilations} if phase == "compiled" else {}
                if phase == "restored":
                    extra = {"step": step, "source": source}
                self.emit("worker_phase", of=rank, phase=phase, duration_s=duration_s, **extra)

    def train(self, step: int, kills: dict[int, int], attempt: int = 1) -> None:
        saved = step
        while step < self.num_steps:
            step += 1
            self.step(step)
            if self.untold:
                self.emit("recovered", **self.untold, first_step_s=self.step_s)
                self.untold = {}
            if step % self.interval_steps == 0:
                saved = self.checkpoint(step)
            if step % self.evaluation_steps == 0:
                self.evaluate(step)
            if step in kills:
                attempt += 1
                self.kill(step, saved, attempt, kills.pop(step))
                step = saved
        self.now_s += 0.3
        self.emit("run_ended", status="done", step=step)

    def step(self, step: int, *, applied: bool = True) -> None:
        rng = random.Random(step)
        duration_s = self.step_s * rng.uniform(0.95, 1.15)
        self.now_s += duration_s
        loss = 2.2 + 6.1 * math.exp(-step / (self.num_steps / 4)) + rng.gauss(0, 0.04)
        self.emit(
            "step",
            of=0,
            step=step,
            loss=loss,
            grad_norm=rng.uniform(0.4, 1.2),
            learning_rate=1e-3,
            duration_s=duration_s,
            data_s=0.002,
            blocked_s=self.blocked_s,
            memory_bytes=400_000_000 + 1000 * step,
            applied=applied,
        )
        self.blocked_s = 0.0

    def checkpoint(self, step: int) -> int:
        self.now_s += 0.01
        self.blocked_s = 0.01
        self.emit("checkpoint_started", of=0, step=step, tier="disk", blocked_s=0.01)
        self.emit("checkpoint_saved", of=0, step=step, tier="disk", duration_s=0.2, size_bytes=56_000_000)
        return step

    def evaluate(self, step: int) -> None:
        self.now_s += 0.2
        loss = 2.35 + 6.0 * math.exp(-step / (self.num_steps / 4))
        self.emit("evaluation", of=0, step=step, loss=loss, perplexity=math.exp(loss), duration_s=0.2)

    def kill(self, step: int, saved: int, attempt: int, victim: int) -> None:
        rank = victim % 2
        last_s = self.now_s
        self.now_s += self.step_s / 2
        self.emit("injected", what="SIGKILL", rank=rank, pid=98 + 2 * attempt + rank)
        self.now_s += 0.08
        self.emit("fault", cause="killed", rank=rank, detail="by SIGKILL", detected_s=0.08)
        self.now_s += 0.01
        self.emit("recovery", action="restart", reason="the first fault; a gang of 2 fits", num_workers=2)
        start_s = self.now_s
        self.gang(attempt, "standby", step=saved, source="disk", compile_s=0.1, compilations=0)
        downtime_s = self.now_s - last_s
        self.untold = {
            "from_step": step,
            "to_step": saved,
            "lost_steps": step - saved,
            "downtime_s": downtime_s,
            "detect_s": 0.08,
            "start_s": self.now_s - start_s - 0.3,
            "restore_s": 0.2,
            "compile_s": 0.1,
            "compilations": 0,
        }


def example(kind: str) -> dict[str, Any]:
    """A payload with every field of a kind, of the types that real writers use."""
    return {name.removesuffix("?"): _EXAMPLES.get(name.removesuffix("?"), 1) for name in KINDS[kind]}


_EXAMPLES: dict[str, Any] = {
    "applied": True,
    "cached": False,
    "cause": "exited (1)",
    "component": "hbm",
    "detail": "",
    "how": "start",
    "layout": {"dp": 2},
    "loss": 1.0,
    "metrics": {},
    "name": "x",
    "phase": "joined",
    "pids": [1],
    "platform": "cpu",
    "reason": "because",
    "source": "disk",
    "status": "done",
    "tier": "disk",
    "what": "SIGKILL",
    "action": "restart",
    "peak_how": "measured",
}

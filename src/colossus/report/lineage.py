"""The steps that count: each once, in order, though kills and rollbacks made the run do some of them again.

An entry is one step, or a span of equal ones that a simulation tells together.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Any

from colossus.report.accounting import micros, steps_in
from colossus.report.ledger import MICRO
from colossus.report.record import Curve
from colossus.spec.event import Event


class Lineage:
    """The history of the state that the run holds now; steps behind a rewind are kept only to compare their replay."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.counts = array("q")
        self.losses: list[float | None] = []
        self.durations_us = array("q")
        self.num_tokens = 0
        self.evaluations: list[Event] = []
        self.replayed: set[int] = set()
        self.mismatches: set[int] = set()
        self._first: dict[tuple[int, Hashable], float | None] = {}
        self._dropped: set[int] = set()
        self._gangs: list[Hashable] = []
        self._tokens = array("q")

    def rewind(self, to_step: int) -> tuple[int, int]:
        """Drops the steps after ``to_step``, which will be done again; gives how many, and the microseconds they took."""
        lost_steps = lost_us = 0
        while self.steps and self.steps[-1] > to_step:
            step, count, loss, gang = self.steps.pop(), self.counts.pop(), self.losses.pop(), self._gangs.pop()
            tokens, duration_us = self._tokens.pop(), self.durations_us.pop()
            kept = max(0, to_step - (step - count))
            if kept:  # the first steps of a span
                self._append(to_step, loss, gang, num_tokens=tokens * kept // count, duration_us=duration_us * kept // count, count=kept)
            elif count == 1:
                self._first.setdefault((step, gang), loss)
            self.num_tokens -= tokens
            self._dropped.update(range(step - count + kept + 1, step + 1))
            lost_us += duration_us - duration_us * kept // count
            lost_steps += count - kept
        while self.evaluations and self.evaluations[-1].payload["step"] > to_step:
            self.evaluations.pop()
        return lost_steps, lost_us

    def add(self, payload: dict[str, Any], *, tokens_per_step: int, gang: Hashable) -> None:
        """Takes a step. A replay must give the first loss bit for bit, as long as the ``gang`` is of the same form."""
        step, loss = int(payload["step"]), payload["loss"]
        if step in self._dropped:
            self.replayed.add(step)
        if self._first.get((step, gang), loss) != loss:
            self.mismatches.add(step)
        self._append(step, loss, gang, num_tokens=tokens_per_step if payload["applied"] else 0, duration_us=micros(payload["duration_s"]))

    def add_span(self, payload: dict[str, Any], *, tokens_per_step: int, gang: Hashable) -> None:
        """Takes a span of steps, whose losses nobody knows."""
        step, count = int(payload["to_step"]), steps_in(payload)
        if self._dropped:
            self.replayed.update(self._dropped.intersection(range(step - count + 1, step + 1)))
        self._append(step, None, gang, num_tokens=count * tokens_per_step, duration_us=micros(payload["duration_s"]), count=count)

    def _append(self, step: int, loss: float | None, gang: Hashable, *, num_tokens: int, duration_us: int, count: int = 1) -> None:
        self.steps.append(step)
        self.counts.append(count)
        self.losses.append(loss)
        self._gangs.append(gang)
        self.durations_us.append(duration_us)
        self._tokens.append(num_tokens)
        self.num_tokens += num_tokens

    @property
    def last_step(self) -> int:
        return self.steps[-1] if self.steps else 0

    def loss_curve(self) -> Curve:
        return Curve(steps=list(self.steps), values=self.losses)

    def validation_curve(self) -> Curve:
        by_step = {event.payload["step"]: event.payload["loss"] for event in self.evaluations}
        return Curve(steps=list(by_step), values=list(by_step.values()))

    def median_step_s(self) -> float | None:
        """The middle one of the steps' wall times, of the lower two when they are even; a span's steps count as equal."""
        if len(self.counts) == sum(self.counts):
            alone = sorted(self.durations_us)
            return alone[(len(alone) - 1) // 2] / MICRO if alone else None
        ordered = sorted((duration_us / count, count) for duration_us, count in zip(self.durations_us, self.counts, strict=True))
        behind = (sum(self.counts) - 1) // 2
        for duration_us, count in ordered:
            behind -= count
            if behind < 0:
                return duration_us / MICRO
        return None

"""The steps that count: each once, in order, though kills and rollbacks made the run do some of them again."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Any

from colossus.report.accounting import micros
from colossus.report.ledger import MICRO
from colossus.report.record import Curve
from colossus.spec.event import Event


class Lineage:
    """The history of the state that the run holds now; steps behind a rewind are kept only to compare their replay."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.losses: list[float | None] = []
        self.durations_us = array("q")
        self.tokens = array("q")
        self.evaluations: list[Event] = []
        self.replayed: set[int] = set()
        self.mismatches: set[int] = set()
        self._first: dict[tuple[int, Hashable], float | None] = {}
        self._dropped: set[int] = set()
        self._gangs: list[Hashable] = []

    def rewind(self, to_step: int) -> tuple[int, int]:
        """Drops the steps after ``to_step``, which will be done again; gives how many, and the microseconds they took."""
        lost_steps = lost_us = 0
        while self.steps and self.steps[-1] > to_step:
            step = self.steps.pop()
            self._dropped.add(step)
            self._first.setdefault((step, self._gangs.pop()), self.losses.pop())
            self.tokens.pop()
            lost_us += self.durations_us.pop()
            lost_steps += 1
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
        self.steps.append(step)
        self.losses.append(loss)
        self._gangs.append(gang)
        self.durations_us.append(micros(payload["duration_s"]))
        self.tokens.append(tokens_per_step if payload["applied"] else 0)

    @property
    def last_step(self) -> int:
        return self.steps[-1] if self.steps else 0

    def loss_curve(self) -> Curve:
        return Curve(steps=list(self.steps), values=self.losses)

    def validation_curve(self) -> Curve:
        by_step = {event.payload["step"]: event.payload["loss"] for event in self.evaluations}
        return Curve(steps=list(by_step), values=list(by_step.values()))

    def median_step_s(self) -> float | None:
        """The middle one of the steps' wall times, of the lower two when they are even."""
        ordered = sorted(self.durations_us)
        return ordered[(len(ordered) - 1) // 2] / MICRO if ordered else None

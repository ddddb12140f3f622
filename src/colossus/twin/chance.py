"""Durations of recovery, drawn by the hundred."""

from __future__ import annotations

from colossus.spec.faults import Duration
from colossus.spec.scenario import RecoveryScenario
from colossus.twin.streams import draw, stream


class Chance:
    """One stream for all of them, in the order they are asked for."""

    __slots__ = ("_drain", "_evict", "_recovery", "_rng", "_start", "_swap")

    def __init__(self, seed: int, scenario: RecoveryScenario) -> None:
        self._rng = stream(seed, "recovery")
        self._recovery = scenario
        self._swap: list[float] = []
        self._start: list[float] = []
        self._drain: list[float] = []
        self._evict: list[float] = []

    def _next(self, kept: list[float], duration: Duration) -> float:
        if not kept:
            kept.extend(draw(duration, self._rng, 64).tolist())
        return kept.pop()

    def swap_s(self) -> float:
        return self._next(self._swap, self._recovery.swap)

    def start_s(self) -> float:
        return self._next(self._start, self._recovery.start)

    def drain_s(self) -> float:
        return self._next(self._drain, self._recovery.drain_repair)

    def evict_s(self) -> float:
        return self._next(self._evict, self._recovery.evict_detect)

"""Durations of recovery, drawn by the dozen."""

from __future__ import annotations

from colossus.spec.faults import Duration
from colossus.spec.scenario import RecoveryScenario
from colossus.twin.streams import draw, stream


class Chance:
    """One stream for all of them, in the order they are asked for. ``swaps`` and ``starts``: those drawn and not used yet."""

    __slots__ = ("_recovery", "_rng", "starts", "swaps")

    def __init__(self, seed: int, scenario: RecoveryScenario) -> None:
        self._rng = stream(seed, "recovery")
        self._recovery = scenario
        self.swaps: list[float] = []
        self.starts: list[float] = []

    def next_of(self, drawn: list[float]) -> float:
        """The last of ``swaps`` or ``starts``, which stays there; draws more where there is none."""
        if not drawn:
            drawn.extend(draw(self._recovery.swap if drawn is self.swaps else self._recovery.start, self._rng, 64).tolist())
        return drawn[-1]

    def one(self, duration: Duration) -> float:
        return float(draw(duration, self._rng, 1)[0])

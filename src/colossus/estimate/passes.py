"""Seconds forward and backward, which most parts of a layer have."""

from __future__ import annotations

from dataclasses import dataclass

from colossus.estimate.shape import Numbers


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Seconds of a forward and a backward pass through something."""

    forward_s: Numbers
    backward_s: Numbers

    def __add__(self, other: Pass) -> Pass:
        return Pass(forward_s=self.forward_s + other.forward_s, backward_s=self.backward_s + other.backward_s)

    def __mul__(self, factor: Numbers) -> Pass:
        return Pass(forward_s=self.forward_s * factor, backward_s=self.backward_s * factor)

    @property
    def both_s(self) -> Numbers:
        return self.forward_s + self.backward_s

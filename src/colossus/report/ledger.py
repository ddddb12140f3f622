"""Tiles a run's wall time with causes: every microsecond has exactly one.

Integer microseconds make the sum exact: goodput plus every named badput is the wall time, always.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from colossus.spec.causes import CAUSES, Cause

MICRO = 1_000_000
_CODE = {cause: code for code, cause in enumerate(CAUSES)}
_PRODUCTIVE, _LOST = _CODE[Cause.PRODUCTIVE], _CODE[Cause.LOST_WORK]
_NO_STEP = -1


class Ledger:
    """Spans that follow one another from 0 to ``now_us``; a span of step work names its last step, and how many steps it holds."""

    def __init__(self) -> None:
        self._ends_us = array("q")
        self._codes = bytearray()
        self._steps = array("q")
        self._counts = array("q")
        self.now_us = 0
        self._given_us = [0] * len(CAUSES)
        self._lost_us = 0

    def fill(self, until_us: int, cause: Cause, step: int = _NO_STEP, *, num_steps: int = 1) -> None:
        """Gives what is not yet given, up to ``until_us``, to ``cause``; nothing when that has passed."""
        if until_us <= self.now_us:
            return
        self._given_us[_CODE[cause]] += until_us - self.now_us
        self._ends_us.append(until_us)
        self._codes.append(_CODE[cause])
        self._steps.append(step)
        self._counts.append(num_steps)
        self.now_us = until_us

    def rewind(self, to_step: int) -> None:
        """Turns productive time of the steps after ``to_step`` into lost work: they will be done again. A span around ``to_step`` is cut."""
        for index in range(len(self._codes) - 1, -1, -1):
            if self._codes[index] != _PRODUCTIVE:
                continue
            if self._steps[index] <= to_step:
                return
            self._codes[index] = _LOST
            self._lost_us += self._ends_us[index] - (self._ends_us[index - 1] if index else 0)
            kept = to_step - (self._steps[index] - self._counts[index])
            if kept > 0:
                self._keep(index, to_step, kept)
                return

    def _keep(self, index: int, step: int, num_steps: int) -> None:
        """The first steps of a lost span are productive all the same."""
        begin_us = self._ends_us[index - 1] if index else 0
        kept_us = (self._ends_us[index] - begin_us) * num_steps // self._counts[index]
        self._lost_us -= kept_us
        self._ends_us.insert(index, begin_us + kept_us)
        self._codes.insert(index, _PRODUCTIVE)
        self._steps.insert(index, step)
        self._counts.insert(index, num_steps)
        self._counts[index + 1] -= num_steps

    def given_us(self, cause: Cause) -> int:
        """What was given to a cause so far, as it was given: rewinds do not count."""
        return self._given_us[_CODE[cause]]

    def totals_us(self) -> dict[Cause, int]:
        """Microseconds by cause; their sum is ``now_us``."""
        totals = list(self._given_us)
        totals[_PRODUCTIVE] -= self._lost_us
        totals[_LOST] += self._lost_us
        return dict(zip(CAUSES, totals, strict=True))

    def bins(self, num_bins: int) -> tuple[dict[Cause, list[float]], list[float]]:
        """The wall time cut in equal bins: each cause's share of every bin, and steps done per second in it.

        A step's work is spread evenly over its span. Causes that never occur are left out.
        """
        width_us = self.now_us / num_bins if self.now_us else 1.0
        shares = [[0.0] * num_bins for _ in CAUSES]
        rates = [0.0] * num_bins
        for start_us, end_us, code, step, num_steps in self._spans():
            first, last = int(start_us / width_us), min(int(end_us / width_us), num_bins - 1)
            if first == last:
                shares[code][first] += (end_us - start_us) / width_us
                if step != _NO_STEP:
                    rates[first] += num_steps / width_us * MICRO
                continue
            for index in range(min(first, num_bins - 1), last + 1):
                part_us = min(end_us, (index + 1) * width_us) - max(start_us, index * width_us)
                if part_us <= 0:
                    continue
                shares[code][index] += part_us / width_us
                if step != _NO_STEP:
                    rates[index] += num_steps * part_us / (end_us - start_us) / width_us * MICRO
        present = {cause: row for cause, row in zip(CAUSES, shares, strict=True) if any(row)}
        return present, rates

    def _spans(self) -> Iterator[tuple[int, int, int, int, int]]:
        start_us = 0
        for end_us, code, step, num_steps in zip(self._ends_us, self._codes, self._steps, self._counts, strict=True):
            yield start_us, end_us, code, step, num_steps
            start_us = end_us

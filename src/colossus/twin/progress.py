"""Steps and saves between two events, in closed form: whole cycles of steps and one save at once, however many they are."""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple


class Pace(NamedTuple):
    """What one step takes now, and of what: the estimate, then what makes it longer. All in s.

    ``copy_s``, ``check_s``: copies to memory and checks for corruption, spread over the steps between them. ``is_longer``: than steps and copies.
    """

    step_s: float
    productive_s: float
    straggler_s: float
    fewer_s: float
    cap_s: float
    copy_s: float
    check_s: float
    is_longer: bool

    @classmethod
    def of(cls, *, productive_s: float, copy_s: float, **longer_s: float) -> Pace:
        return cls(
            step_s=productive_s + copy_s + sum(longer_s.values()), productive_s=productive_s, copy_s=copy_s, is_longer=any(longer_s.values()), **longer_s
        )


class Progress:
    """Where the state stands: ``at`` steps (a part of one too), next save, what is on disk.

    A save begins ``interval`` steps after the last; the steps stand still for ``blocked_s`` of it and it is on
    disk ``save_s`` after it began. ``advance`` books the time of one stretch at one pace; it costs the same for a second and for a month.
    """

    __slots__ = ("_begun_s", "at", "base", "blocked_s", "disk", "interval", "left_s", "next_save", "num_saves", "save_s", "saves_here")

    def __init__(self, *, blocked_s: float, save_s: float) -> None:
        self.at = 0.0
        self.base = 0
        self.disk = 0
        self.interval: int | None = None
        self.blocked_s, self.save_s = blocked_s, save_s
        self.next_save = inf
        self.left_s = 0.0
        self.num_saves = 0
        self.saves_here = 0
        self._begun_s = -inf

    def begin(self, step: int, interval: int | None) -> None:
        """A gang goes on from ``step``, with a save every ``interval`` steps from the newest on disk; one that is overdue begins at once."""
        self.at, self.base = float(step), step
        self.interval = interval
        self.next_save = max(step, self.disk + interval) if interval else inf
        self.left_s, self.saves_here, self._begun_s = 0.0, 0, -inf

    def advance(self, now_s: float, elapsed_s: float, step_s: float) -> tuple[float, float]:
        """Goes on for ``elapsed_s`` up to ``now_s``; gives (steps done, seconds blocked by saves)."""
        blocked_s = 0.0
        if self.left_s:
            blocked_s = min(self.left_s, elapsed_s)
            self.left_s -= blocked_s
            elapsed_s -= blocked_s
            if self.left_s or elapsed_s <= 0:
                return 0.0, blocked_s
        before = self.at
        to_save_s = (self.next_save - before) * step_s
        if elapsed_s < to_save_s:
            self.at = before + elapsed_s / step_s
            return self.at - before, blocked_s
        assert self.interval is not None
        cycle_s = self.interval * step_s + self.blocked_s
        whole, rest_s = divmod(elapsed_s - to_save_s, cycle_s)
        cycles = int(whole)
        self.at = self.next_save + cycles * self.interval
        self.next_save = self.at + self.interval
        self.saves_here += cycles + 1
        self.num_saves += cycles + 1
        self._begun_s = now_s - rest_s
        if rest_s < self.blocked_s:
            self.left_s = self.blocked_s - rest_s
            return self.at - before, blocked_s + cycles * self.blocked_s + rest_s
        self.at += (rest_s - self.blocked_s) / step_s
        return self.at - before, blocked_s + (cycles + 1) * self.blocked_s

    def remaining_s(self, num_steps: int, step_s: float) -> float:
        """From here to ``num_steps``, saves on the way included; none at the end."""
        saves = 0
        if self.interval and num_steps > self.next_save:
            saves = ceil((num_steps - self.next_save) / self.interval)
        return self.left_s + (num_steps - self.at) * step_s + saves * self.blocked_s

    def committed(self, now_s: float) -> int:
        """The newest step on disk; saves never overlap, so that the last but one is there for certain."""
        if self.saves_here and self.interval:
            last = int(self.next_save) - self.interval
            if now_s - self._begun_s >= self.save_s:
                self.disk = last
            elif self.saves_here > 1:
                self.disk = last - self.interval
        return self.disk

    def in_memory(self, every: int) -> int:
        """The newest step copied to memory, copies being ``every`` so many steps from where the gang began."""
        return self.base + int(self.at - self.base) // every * every

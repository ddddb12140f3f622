"""When an engine's process that ended is started again: at once after serving, later and later where it fails to start, and when not at all."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
MAX_FAILED_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class LostState:
    """What is known of a process that ended.

    :param num_failed_starts: in a row, this one included, that ended before they were ready; 0 for one that served.
    :param has_served: a process of this place was ready before, so that model and options are known to be good.
    :param permanent: it said itself that no restart can mend it.
    """

    num_failed_starts: int
    has_served: bool
    permanent: bool = False


@dataclass(frozen=True, kw_only=True)
class Restart:
    """After ``delay_s``; None where it is given up."""

    delay_s: float | None


def decide(state: LostState) -> Restart:
    """Doubling delays from the first failed start on; given up where it never served and failed for good, or several times."""
    if not state.has_served and (state.permanent or state.num_failed_starts >= MAX_FAILED_STARTS):
        return Restart(delay_s=None)
    if state.num_failed_starts == 0:
        return Restart(delay_s=0.0)
    return Restart(delay_s=min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(state.num_failed_starts - 1, 16)))

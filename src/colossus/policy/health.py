"""Which nodes to do without though they still work, or work again: lemons, slow ones; and when a smaller gang should grow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, log2


def is_suspect(fault_times_s: Sequence[float], *, now_s: float, window_s: float, num_faults: int | None) -> bool:
    """Whether a node that had faults at these times (ascending, the last included) should be drained for a thorough repair: so many in the window.

    Lemons, 1.2 % of a fleet, made a large job fail in 14 % of cases; without them 4 %: arXiv 2410.21680.
    """
    return num_faults is not None and len(fault_times_s) - bisect_right(fault_times_s, now_s - window_s) >= num_faults


def should_evict(*, slowdown_fraction: float, expected_s: float, swap_s: float) -> bool:
    """Whether to swap a slow node out: a synchronous step waits for it, so that it costs its share of all time while it lasts; swapping costs ``swap_s`` once."""
    return slowdown_fraction * expected_s > swap_s


def should_grow(*, num_workers: int, num_possible: int, expected_s: float, reform_s: float) -> bool:
    """Whether a gang that lost nodes should take back those that are here again, which costs ``reform_s``; ``expected_s``: until the next change, or the end."""
    return num_possible > num_workers and (num_possible / num_workers - 1) * expected_s > reform_s


def rollback_tries(num_saved: int) -> int:
    """How many saved states to restore and check, halving those in question each time, until the newest good one of ``num_saved`` is known: at least the one."""
    return max(1, ceil(log2(num_saved + 1)))

"""A replica's course: from the marks it left to shares of time, nodes and power in equal bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colossus.spec.causes import Cause
from colossus.spec.simulation import Course, NodeState
from colossus.twin.book import BOOK, MARK
from colossus.twin.training import Job

if TYPE_CHECKING:
    from colossus.twin.power import PowerModel

NUM_BINS = 480
_STATES = (NodeState.WORKING, NodeState.STANDING, NodeState.SPARE, NodeState.REPAIR)


def course_of(job: Job, power: PowerModel | None, num_bins: int = NUM_BINS) -> Course:
    """Every line of the book as a curve between marks, cut into bins. Work that was lost later counts as lost when it was done."""
    rows = np.array(job.marks).reshape(-1, len(BOOK) + len(MARK))
    book = {cause: rows[:, place] for place, cause in enumerate(BOOK)}
    time_s, speed, *node_s = (rows[:, len(BOOK) + place] for place in range(len(MARK)))
    edges_s = np.linspace(0.0, max(job.wall_s, 1e-9), num_bins + 1)
    bin_s = edges_s[1]
    worked = book[Cause.PRODUCTIVE] + book[Cause.LOST_WORK]
    lost = _within(time_s, worked, job.rewinds, edges_s)
    spent = {cause: np.diff(np.interp(edges_s, time_s, values)) for cause, values in book.items()}
    spent[Cause.PRODUCTIVE] = np.diff(np.interp(edges_s, time_s, worked)) - lost
    spent[Cause.LOST_WORK] = lost
    nodes = {state: np.diff(np.interp(edges_s, time_s, seconds)) / bin_s for state, seconds in zip(_STATES, node_s, strict=True)}
    middle_s = (edges_s[1:] + edges_s[:-1]) / 2
    working_fraction = nodes[NodeState.WORKING] / job.setting.num_gang
    saving = np.minimum(spent[Cause.CHECKPOINT] / bin_s / np.maximum(working_fraction, 1e-9), 1.0)
    speeds = np.maximum(_speeds(time_s, node_s[0], speed, edges_s), 1e-9)
    stepping, standing, spare, repair = (nodes[state] for state in _STATES)
    site_w = np.zeros(num_bins)
    if power:
        stopped, dark = power.halted(job.limits, edges_s)
        site_w = power.site_w(middle_s, stepping, standing, spare, repair, speeds, saving_fraction=saving, stopped_fraction=stopped, dark_fraction=dark)
    done = spent[Cause.PRODUCTIVE] / job.setting.workload.step_s
    return Course(
        bin_s=float(bin_s),
        shares={cause: _listed(values / bin_s) for cause, values in spent.items() if values.any()},
        nodes={state: _listed(values) for state, values in nodes.items()},
        site_w=_listed(site_w),
        steps_per_s=_listed(done / bin_s),
    )


def _speeds(until_s: np.ndarray, working_s: np.ndarray, speed: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Mean speed in bins, of what has each speed up to its time, while nodes work: an outage has none. 1 where none do."""
    if not len(until_s):
        return np.ones(len(edges_s) - 1)
    at_speed_s = np.cumsum(speed * np.diff(working_s, prepend=0.0))
    slowed, worked = (np.diff(np.interp(edges_s, until_s, curve)) for curve in (at_speed_s, working_s))
    return np.where(worked > 0, slowed / np.where(worked > 0, worked, 1.0), 1.0)


def _within(time_s: np.ndarray, worked: np.ndarray, windows: list[tuple[float, float]], edges_s: np.ndarray) -> np.ndarray:
    """Of ``worked``, a curve over time, what was done inside any of the windows, in each bin."""
    if not windows:
        return np.zeros(len(edges_s) - 1)
    begins, ends = np.array(sorted(windows)).T
    ends = np.maximum.accumulate(ends)
    starts = np.concatenate([[True], begins[1:] > ends[:-1]])  # windows that overlap are one
    begins, ends = begins[starts], ends[np.concatenate([starts[1:], [True]])]
    at_begin, at_end = np.interp(begins, time_s, worked), np.interp(ends, time_s, worked)
    before = np.concatenate([[0.0], np.cumsum(at_end - at_begin)])
    place = np.searchsorted(begins, edges_s, side="right")
    inside = np.zeros(len(edges_s))
    some = place > 0
    last = place[some] - 1
    inside[some] = np.minimum(np.interp(edges_s[some], time_s, worked), at_end[last]) - at_begin[last]
    return np.diff(before[np.maximum(place - 1, 0)] * some + inside)


def _listed(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in np.maximum(values, 0.0).tolist()]

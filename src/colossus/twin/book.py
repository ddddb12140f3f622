"""What a replica keeps: the lines of its book, its incidents, the standstill under way, the steps not logged yet."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from colossus.spec.causes import Cause

# The book's lines. Lost work is told apart at the end of what was once productive.
BOOK = (
    *(Cause.PRODUCTIVE, Cause.CHECKPOINT, Cause.LOST_WORK, Cause.DETECT, Cause.WAIT_NODES, Cause.RESTART, Cause.RESTORE, Cause.RECOMPILE),
    *(Cause.STRAGGLER, Cause.FEWER_NODES, Cause.POWER_CAP, Cause.EVALUATION, Cause.PLANNED_STOP),
)
PRODUCTIVE, CHECKPOINT, LOST, DETECT, WAIT, RESTART, RESTORE, RECOMPILE, STRAGGLER, FEWER, CAP, CHECK, PLANNED = range(len(BOOK))
# A row of the course: the book, then these; of nodes, the seconds in each state so far.
MARK = ("time_s", "speed", "working_s", "standing_s", "spare_s", "repair_s")
# The parts of a standstill.
DETECTING, WAITING, RETURNING = "detecting", "waiting", "returning"


class IncidentRow(NamedTuple):
    """One interruption; ``kind`` None: the grid's, or our own decision, as ``name`` says. Steps and seconds as in spec.simulation."""

    time_s: float
    kind: int | None
    node: int | None
    action: str
    reason: str
    name: str
    from_step: int
    to_step: int
    lost_s: float
    parts_s: tuple[float, ...]  # detect, wait, start, restore, compile
    source: str


class Outage:
    """A standstill as it goes: when it began, why, what is known, and which part it is in.

    ``parts_s``: detect, wait, start, restore, compile so far; ``plan_s``: of the last three, what is still to come. ``fault``: the one that is being looked
    for; ``echoes``: those that came meanwhile, and when. ``saved_s``: when the state that it goes on from is on disk, where it stopped in good order.
    """

    kind: int | None = None
    node: int | None = None
    lost_s = save_s = 0.0
    plan_s = (0.0, 0.0, 0.0)
    action = why = ""
    phase = DETECTING
    fault: tuple[str, int | None, int | None]
    echoes: tuple[tuple[float, str, int, int], ...] = ()
    saved_s = inf
    num_workers = 0
    is_planned = False
    detail = ""

    def __init__(self, now_s: float, reason: str, from_step: int, to_step: int, is_disk: bool) -> None:
        self.begun_s = self.until_s = now_s
        self.reason = reason
        self.from_step, self.to_step = from_step, to_step
        self.is_disk = is_disk
        self.parts_s = [0.0, 0.0, 0.0, 0.0, 0.0]


class Span(NamedTuple):
    """Where steps began that are not logged yet: when, at which step, with what in the book and how many saves."""

    begun_s: float
    step: float
    book: list[float]
    num_saves: int

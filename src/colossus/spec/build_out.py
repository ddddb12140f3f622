"""A site that grows, played out day by day: chips, power, money and compute, and what each day was short of."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field

from colossus.spec.base import Spec


class Supply(Spec):
    """One source of power as the site's file has it."""

    name: str
    kind: str
    begin: datetime.date
    until: datetime.date | None = None
    power_w: float
    stored_j: float | None = None
    source: str


class Growth(Spec):
    """From ``date`` on so many chips of a node's kind."""

    date: datetime.date
    node: str
    num_chips: int
    source: str


class Shortage(Spec):
    """Days in a row on which chips stood dark for want of power. ``limit``: grid, substation or turbines; ``waits_for``: what ended it, or would.

    ``speed_fraction``: what all chips could have done on the worst day, slowed to fit, instead of some at full speed and others dark.
    """

    begin: datetime.date
    end: datetime.date
    num_dark_chips_at_most: int
    most_short_w: float
    limit: str
    waits_for: str | None = None
    speed_fraction: float


class Compared(Spec):
    """A figure that others give for a date, and ours: of facility power or of capital."""

    date: datetime.date
    published_w: float | None = None
    ours_w: float | None = None
    published_usd: float | None = None
    ours_usd: float | None = None
    source: str

    @property
    def what(self) -> str:
        return "capital" if self.published_w is None else "facility power"

    @property
    def published(self) -> float:
        return (self.published_usd if self.published_w is None else self.published_w) or 0.0

    @property
    def ours(self) -> float:
        return (self.ours_usd if self.ours_w is None else self.ours_w) or 0.0

    @property
    def ratio(self) -> float:
        return self.ours / self.published


class JobProgress(Spec):
    """A model trained on all that runs, from ``begin`` on; tokens since then by day, and what they had been if the site had stayed as its first phase left it.

    ``done``, ``done_ungrown``: when ``total_tokens`` are trained, past the last day with the site as it then is; None: not within twenty years, or nobody asked.
    """

    model: str
    begin: datetime.date
    flop_per_token: float
    num_tokens: list[float]
    num_ungrown_tokens: list[float]
    total_tokens: float | None = None
    done: datetime.date | None = None
    done_ungrown: datetime.date | None = None


class BuildOut(Spec):
    """Lists have one value for each day from ``begin`` on. Money and compute are summed since then.

    ``capacity_w``: what the site is built for, rated power and the design day's cooling; ``need_w``: while all chips compute, in the day's hottest hour;
    ``site_w``: the day's mean of what is lit; ``num_grid_chips``: what would be without turbines. ``swing_w``: within a step; ``swing_left_w``: of it after the batteries.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    begin: datetime.date
    mfu_fraction: float
    num_chips: dict[str, list[int]]
    num_dark_chips: list[int]
    num_grid_chips: list[int]
    capacity_w: list[float]
    need_w: list[float]
    it_w: list[float]
    site_w: list[float]
    grid_w: list[float]
    substation_w: list[float]
    turbines_w: list[float]
    battery_w: list[float]
    swing_w: list[float]
    swing_left_w: list[float]
    flop_per_s: list[float]
    total_flop: list[float]
    spent_usd: dict[str, list[float]]
    energy_j: list[float]
    growth: list[Growth]
    supplies: list[Supply]
    shortages: list[Shortage] = Field(default_factory=list)
    compared: list[Compared] = Field(default_factory=list)
    job: JobProgress | None = None
    notes: list[str] = Field(default_factory=list)

    @property
    def num_days(self) -> int:
        return len(self.site_w)

    def day(self, index: int) -> datetime.date:
        return self.begin + datetime.timedelta(days=index)

    def index(self, day: datetime.date) -> int:
        """The list's place of a date, the nearest one that was played out."""
        return min(max((day - self.begin).days, 0), self.num_days - 1)

    def all_chips(self, index: int) -> int:
        return sum(chips[index] for chips in self.num_chips.values())

    def supply_w(self, index: int) -> float:
        return min(self.grid_w[index], self.substation_w[index]) + self.turbines_w[index]

    def total_usd(self, index: int) -> float:
        return sum(usd[index] for usd in self.spent_usd.values())

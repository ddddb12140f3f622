"""Sites that grow: when which chips run, when which source of power comes and goes, one TOML file each."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from colossus.catalog.entry import Entry, UsdFigure, WattFigure
from colossus.catalog.nodes import load_node_entry
from colossus.catalog.prices import SiteEntry
from colossus.spec.base import FiniteSpec
from colossus.spec.machine import Figure, How, Site
from colossus.spec.units import parse_quantity

_MOST_YEARS = 30


class SourceKind(StrEnum):
    """What gives power: a contract with the grid, the substation that it comes through, turbines and batteries on the site."""

    GRID = "grid"
    SUBSTATION = "substation"
    TURBINES = "turbines"
    BATTERY = "battery"


class ChipPhase(FiniteSpec):
    """From ``date`` on, ``num_chips`` of a node's kind run; they arrive evenly since the phase of that kind before it, or since ``since``.

    ``rated_w_per_chip``: what makers rate a node at, by chip, where the catalog's figure was measured; ``hardware_usd_per_chip``: servers and network.
    """

    date: datetime.date
    node: str
    num_chips: Annotated[int, Field(ge=0)]
    since: datetime.date | None = None
    source: Annotated[str, Field(min_length=1)]
    how: How = How.DATASHEET
    rated_w_per_chip: WattFigure | None = None
    hardware_usd_per_chip: UsdFigure | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        load_node_entry(self.node)
        if self.since is not None and self.since > self.date:
            raise ValueError(f"since {self.since} is after its date {self.date}")
        return self


class PowerSource(FiniteSpec):
    """``power_w`` from ``date`` until ``until`` (None: for good), beside all others. ``stored_j``: of a battery.

    Names only tell sources apart: what takes another's place begins where the other's ``until`` says.

    In a file ``power = "150 MW"`` and ``stored = "811 MWh"`` are read too.
    """

    name: Annotated[str, Field(min_length=1)]
    kind: SourceKind
    date: datetime.date
    until: datetime.date | None = None
    power_w: Annotated[float, Field(ge=0)]
    stored_j: Annotated[float, Field(gt=0)] | None = None
    source: Annotated[str, Field(min_length=1)]
    how: How = How.ESTIMATED

    @model_validator(mode="before")
    @classmethod
    def _read_quantities(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        read = dict(data)
        if isinstance(read.get("power_w"), str):
            text = read["power_w"].strip()
            if text.startswith("-"):
                raise ValueError(f"power {text} is below zero; a source that ends has a date until")
            read["power_w"] = parse_quantity(text, "W")
        if isinstance(read.get("stored_j"), str):
            number, _, unit = read["stored_j"].strip().partition(" ")
            scale = {"kWh": 3.6e6, "MWh": 3.6e9, "GWh": 3.6e12}.get(unit)
            if scale is None:
                raise ValueError(f"{read['stored_j']!r} is not a quantity of energy; write a number and one of kWh, MWh, GWh")
            read["stored_j"] = float(number) * scale
        return read

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.until is not None and self.until <= self.date:
            raise ValueError(f"ends on {self.until}, which is not after its beginning on {self.date}")
        if (self.stored_j is not None) != (self.kind is SourceKind.BATTERY):
            raise ValueError("a battery, and nothing else, says stored_j")
        return self


class PublishedPoint(FiniteSpec):
    """What others say of the site at a date. ``power_w`` is a facility's capacity: rated power and the hottest day's cooling, not the mean draw."""

    date: datetime.date
    power_w: Annotated[float, Field(gt=0)] | None = None
    capital_usd: Annotated[float, Field(gt=0)] | None = None
    source: Annotated[str, Field(min_length=1)]


class GrowingSite(Entry):
    """One file of ``catalog/sites``. ``begin``, ``end``: what is played out. ``mfu_fraction``: of the 16-bit peak, what training reaches on all of it.

    ``building_usd_per_w``: of a watt of facility capacity.
    """

    FOLDER: ClassVar[str] = "sites"

    begin: datetime.date
    end: datetime.date
    site: SiteEntry = SiteEntry()
    mfu_fraction: Annotated[float, Field(gt=0, le=1)]
    building_usd_per_w: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    phases: Annotated[list[ChipPhase], Field(min_length=1)]
    sources: Annotated[list[PowerSource], Field(min_length=1)]
    published: list[PublishedPoint] = Field(default_factory=list)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        problems = [
            *_wrong_period(self.begin, self.end),
            *_wrong_order(self.phases),
            *_shrinks(self.phases),
            *_early(self.phases, self.begin),
            *_late(self.phases, self.end),
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def kinds(self) -> dict[str, list[ChipPhase]]:
        """Phases by kind of node, in order."""
        found: dict[str, list[ChipPhase]] = {}
        for phase in self.phases:
            found.setdefault(phase.node, []).append(phase)
        return found

    def site_of(self, node: str) -> Site:
        entry = load_node_entry(node)
        return self.site.to_site(entry.chip, entry.facility)

    def rated_w_per_chip(self, node: str) -> Figure:
        """Of a node with its chips; the file's own figure before the catalog's."""
        own = next((phase.rated_w_per_chip for phase in self.phases if phase.node == node and phase.rated_w_per_chip), None)
        entry = load_node_entry(node)
        if own is not None:
            return own
        assert entry.power_w is not None, f"{node} has no power in the catalog"
        return entry.power_w.model_copy(update={"value": entry.power_w.value / entry.num_chips})


def _wrong_period(begin: datetime.date, end: datetime.date) -> Iterator[str]:
    if end <= begin:
        yield f"end {end} must be after begin {begin}"
    elif (end - begin).days > _MOST_YEARS * 366:
        yield f"from {begin} to {end} is more than {_MOST_YEARS} years"


def _wrong_order(phases: Sequence[ChipPhase]) -> Iterator[str]:
    for before, after in pairwise(phases):
        if after.date < before.date:
            yield f"phases must be in order of their dates: {after.date} ({after.num_chips:,} chips) stands after {before.date} ({before.num_chips:,} chips)"


def _shrinks(phases: Sequence[ChipPhase]) -> Iterator[str]:
    most: dict[str, ChipPhase] = {}
    for phase in phases:
        before = most.get(phase.node)
        if before is not None and phase.num_chips < before.num_chips:
            yield f"a build-out cannot shrink: {phase.node} has {before.num_chips:,} chips on {before.date} and {phase.num_chips:,} on {phase.date}"
        most[phase.node] = phase


def _early(phases: Sequence[ChipPhase], begin: datetime.date) -> Iterator[str]:
    for phase in phases:
        if phase.date < begin:
            yield f"a phase of {phase.date} is before begin {begin}"


def _late(phases: Sequence[ChipPhase], end: datetime.date) -> Iterator[str]:
    first = min(phase.date for phase in phases)
    if first > end:
        yield f"the first phase, of {first}, is after end {end}, so that nothing would run; end on {first} or later"


def site_names() -> list[str]:
    """Every name that ``load_site`` knows, sorted."""
    return GrowingSite.names()


def load_site(name: str) -> GrowingSite:
    """The file called ``name``; CatalogError names the nearest valid names."""
    return GrowingSite.load(name)

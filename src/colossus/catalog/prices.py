"""Rents and purchase prices of chips, energy and carbon by region, overheads of buildings: lists of ``catalog/prices``, one Site of all."""

from __future__ import annotations

from typing import ClassVar

from colossus.catalog.entry import (
    Entry,
    KgCo2ePerJFigure,
    PureFigure,
    UsdFigure,
    UsdPerJFigure,
    UsdPerSFigure,
    WattFigure,
    unknown,
)
from colossus.spec.base import Spec
from colossus.spec.machine import Site


class SiteFigures(Spec):
    """Some figures of a Site, each with its source: a line of a price list, or what a machine's own file says."""

    pue: PureFigure | None = None
    network_w_per_chip: WattFigure | None = None
    purchase_usd_per_chip: UsdFigure | None = None
    construction_usd_per_chip: UsdFigure | None = None
    rent_usd_per_s_per_chip: UsdPerSFigure | None = None
    energy_usd_per_j: UsdPerJFigure | None = None
    carbon_kg_co2e_per_j: KgCo2ePerJFigure | None = None


class SiteEntry(Spec):
    """The site of a machine: names of ``prices/regions.toml`` and ``prices/facilities.toml``, and ``own`` figures before theirs.

    ``facility`` None: the node's usual one.
    """

    region: str = "us"
    facility: str | None = None
    own: SiteFigures = SiteFigures()

    def to_site(self, chip: str, facility: str) -> Site:
        """Of a machine of ``chip``, a name of ``catalog/chips``; a chip that nobody rents or sells has no price."""
        chips = PriceList.load("chips").lines
        places = [find_line("regions", self.region), find_line("facilities", self.facility or facility)]
        parts = [*places, chips.get(chip, SiteFigures()), self.own]
        return Site(**{name: value for part in parts for name, value in part if value is not None})


class PriceList(Entry):
    """One file of ``catalog/prices``; every figure names its own source."""

    FOLDER: ClassVar[str] = "prices"

    lines: dict[str, SiteFigures]


def find_line(listing: str, name: str) -> SiteFigures:
    """One line of a list, e.g. ``find_line("regions", "texas")``; CatalogError names the nearest."""
    lines = PriceList.load(listing).lines
    if name not in lines:
        raise unknown(f"line of prices/{listing}.toml", name, sorted(lines))
    return lines[name]


def region_names() -> list[str]:
    """Every region with a price of energy and its carbon, sorted."""
    return sorted(PriceList.load("regions").lines)

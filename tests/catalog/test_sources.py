"""Every figure of every file has a source and a date; prices and units."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from importlib.resources import files
from typing import Any

import pytest

from colossus.catalog.chips import ChipEntry
from colossus.catalog.entry import Entry
from colossus.catalog.machines import MachineEntry, load_machine, machine_names
from colossus.catalog.networks import NetworkEntry
from colossus.catalog.nodes import NodeEntry
from colossus.catalog.prices import PriceList, SiteFigures, region_names
from colossus.spec.base import Spec
from colossus.spec.errors import SpecError
from colossus.spec.machine import Figure
from colossus.spec.units import parse_quantity

ENTRIES: list[type[Entry]] = [ChipEntry, NetworkEntry, NodeEntry, MachineEntry, PriceList]
FILES = [(entry, name) for entry in ENTRIES for name in entry.names()]


def figures(value: Any, path: str) -> Iterator[tuple[str, Figure]]:
    """All figures inside a record, with where they are."""
    if isinstance(value, Figure):
        yield path, value
    elif isinstance(value, Spec):
        for name, inner in value:
            yield from figures(inner, f"{path}.{name}")
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from figures(inner, f"{path}.{name}")


def without_origin(value: Any, path: str) -> list[str]:
    found = list(figures(value, path))
    return [where for where, figure in found if not figure.source.strip() or not figure.date or not 2010 <= int(figure.date[:4]) <= date.today().year]


@pytest.mark.parametrize(("entry", "name"), FILES, ids=[f"{entry.FOLDER}/{name}" for entry, name in FILES])
def test_every_figure_of_a_file_has_its_source_and_date(entry: type[Entry], name: str) -> None:
    loaded = entry.load(name)
    assert loaded.source and loaded.date
    assert without_origin(loaded, name) == []
    if entry in (ChipEntry, NetworkEntry, PriceList):
        assert list(figures(loaded, name))


@pytest.mark.parametrize("name", machine_names())
def test_every_figure_of_a_machine_has_its_source_and_date(name: str) -> None:
    assert len(list(figures(load_machine(name), name))) >= 6
    assert without_origin(load_machine(name), name) == []


def test_the_walk_itself_can_fail() -> None:
    assert without_origin({"a": Figure(value=1, how="estimated", source=" ", date="2024-01")}, "x") == ["x.a"]
    assert without_origin({"a": Figure(value=1, how="estimated", source="s")}, "x") == ["x.a"]
    assert without_origin(ChipEntry.load("b200").model_copy(update={"power_w": Figure(value=1, how="estimated", source="s")}), "x") == ["x.power_w"]


def test_folders_hold_nothing_else() -> None:
    for entry in ENTRIES:
        assert {file.name for file in (files("colossus.catalog") / entry.FOLDER).iterdir()} == {f"{name}.toml" for name in entry.names()}


def test_a_price_without_source_is_refused() -> None:
    with pytest.raises(SpecError, match="needs a source"):
        SiteFigures.from_data({"rent_usd_per_s_per_chip": "2.99 USD/h"}, origin="prices")


def test_prices_are_plausible() -> None:
    for name, line in PriceList.load("chips").lines.items():
        assert name in ChipEntry.names()
        rent, purchase = line.rent_usd_per_s_per_chip, line.purchase_usd_per_chip
        assert rent or purchase
        assert rent is None or 0.1 < rent.value * 3600 < 15
        assert purchase is None or 1000 < purchase.value < 60_000
    for name in region_names():
        line = PriceList.load("regions").lines[name]
        assert line.energy_usd_per_j and 0.03 < line.energy_usd_per_j.value * 3.6e6 < 0.4
        assert line.carbon_kg_co2e_per_j and 0.02 < line.carbon_kg_co2e_per_j.value * 3.6e6 < 1
    assert {"hyperscale", "google", "average"} <= set(PriceList.load("facilities").lines)


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        ("2.99 USD/h", "USD/s", 2.99 / 3600),
        ("0.0623 USD/kWh", "USD/J", 0.0623 / 3.6e6),
        ("62.3 USD/MWh", "USD/J", 0.0623 / 3.6e6),
        ("0.4 kgCO2e/kWh", "kgCO2e/J", 0.4 / 3.6e6),
        ("400 gCO2e/kWh", "kgCO2e/J", 0.4 / 3.6e6),
        ("31.9 kUSD", "USD", 31_900),
        ("400 Gb/s", "B/s", 50e9),
        ("400 GB/s", "B/s", 400e9),
        ("2.7 us", "s", 2.7e-6),
    ],
)
def test_units_of_contracts_and_links(text: str, base: str, value: float) -> None:
    assert parse_quantity(text, base) == pytest.approx(value)


@pytest.mark.parametrize(("text", "base"), [("2.99 USD", "USD/s"), ("0.06 USD/h", "USD/J"), ("400 Gb", "B"), ("-1 USD/h", "USD/s")])
def test_units_that_do_not_fit(text: str, base: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text, base)

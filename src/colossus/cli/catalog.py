"""Showing entries of the catalog: a table of all, or one with the source, the date and the origin of every figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from colossus.cli.common import paper
from colossus.spec.base import Spec
from colossus.spec.machine import Figure
from colossus.spec.units import format_duration, format_quantity

UNKNOWN = "–"
_WIDEST = 160
_J_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where figures come from that name no source of their own."""

    how: str
    source: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure as people read it."""

    name: str
    value: str
    origin: Origin


def facts_of(spec: Spec, origin: Origin, *, prefix: str = "", skip: tuple[str, ...] = ()) -> Iterator[Fact]:
    """Every figure, number and word of a record and of the records in it, but for the fields of ``skip``."""
    for name, value in spec:
        if name not in skip and value is not None:
            yield from _facts(name, value, origin, prefix)


def fact(name: str, figure: Figure) -> Fact:
    """One figure; its unit is the suffix of ``name``."""
    label, text = said(name, figure.value)
    return Fact(name=label, value=text, origin=Origin(how=figure.how.value, source=figure.source, date=figure.date or ""))


def _facts(name: str, value: Any, origin: Origin, prefix: str) -> Iterator[Fact]:
    if isinstance(value, Figure):
        yield fact(f"{prefix}{name}", value)
    elif isinstance(value, Spec):
        yield from facts_of(value, origin, prefix=f"{prefix}{name} ")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _facts(f"{key} {name}", inner, origin, prefix)
    else:
        label, text = said(f"{prefix}{name}", value)
        yield Fact(name=label, value=text, origin=origin)


# Suffix of a field's name -> how people read it, the longest suffix first.
_UNITS: dict[str, Callable[[float], str]] = {
    "kg_co2e_per_j": lambda value: f"{value * _J_PER_KWH * 1e3:.3g} gCO2e/kWh",
    "bytes_per_s": lambda value: format_quantity(value, "B/s"),
    "flop_per_s": lambda value: format_quantity(value, "FLOP/s"),
    "usd_per_s": lambda value: f"{value * 3600:.3g} USD/h",
    "usd_per_j": lambda value: f"{value * _J_PER_KWH:.3g} USD/kWh",
    "bytes": lambda value: format_quantity(value, "B", binary=True),
    "flop": lambda value: format_quantity(value, "FLOP"),
    "usd": lambda value: f"{value:,.0f} USD",
    "w": lambda value: format_quantity(value, "W"),
    "s": lambda value: f"{value * 1e6:.3g} us" if value < 1e-3 else format_duration(value),
}
_NAME = re.compile(rf"^(?P<stem>.*?)_(?P<unit>{'|'.join(_UNITS)})(?P<scope>_per_(?:chip|node|link|token))?$")


def said(name: str, value: Any) -> tuple[str, str]:
    """``said("power_w", 700.0) == ("power", "700 W")``; the unit is the suffix of the name."""
    found = _NAME.match(name)
    if found is None or isinstance(value, str):
        return _words(name.removeprefix("num_")), _plain(value)
    return _words(found["stem"] + (found["scope"] or "")), _UNITS[found["unit"]](float(value))


def _words(name: str) -> str:
    """A path of field names as words; one that repeats the word before it says it once."""
    words = name.replace(" num_", " ").replace("_", " ").split(" ")
    return " ".join(word for before, word in zip(["", *words], words, strict=False) if word != before)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,g}"
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def in_billions(number: float) -> str:
    """Parameters as people count them: ``in_billions(8.03e9) == "8.03 B"``."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:,.0f}"


def show_all(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """A table of entries; the first ``words`` columns are words, the others figures. A narrow terminal cuts nothing off."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = paper()
    console.width = max(console.width, _WIDEST)
    console.print(table)


def show_one(title: str, notes: str | None, facts: Sequence[Fact]) -> None:
    """One entry: its notes, and its figures under the source that they share."""
    from rich.table import Table
    from rich.text import Text

    console = paper()
    console.print(Text(title, style="bold"))
    if notes:
        console.print(notes)
    for origin in dict.fromkeys(one.origin for one in facts):
        console.print(f"\n{origin.how}, {origin.date}: {origin.source}" if origin.date else f"\n{origin.how}: {origin.source}")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for one in facts:
            if one.origin == origin:
                table.add_row(f"  {one.name}", one.value)
        console.print(table)

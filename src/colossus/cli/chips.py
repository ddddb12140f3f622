"""``colossus chips``: the accelerators of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import json_option, print_json

if TYPE_CHECKING:
    from colossus.catalog.chips import ChipEntry
    from colossus.catalog.prices import SiteFigures
    from colossus.cli.catalog import Fact, Origin
    from colossus.spec.machine import Figure

# Peaks that a column shows: the first of these that a chip has.
_BY_BITS = {16: ("bfloat16", "float16"), 8: ("float8", "int8"), 4: ("float4",)}


@click.command("chips")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the chips of the catalog, or show all that is known of the chip NAME, with sources.

    Peaks are dense; bandwidth is one way, per chip, over all its links.
    """
    from colossus.catalog.chips import chip_names, load_chip_entry

    if name is None:
        _list({known: load_chip_entry(known) for known in chip_names()}, as_json=as_json)
        return
    _show(name, load_chip_entry(name), as_json=as_json)


def _list(entries: dict[str, ChipEntry], *, as_json: bool) -> None:
    from colossus.cli.catalog import show_all

    if as_json:
        print_json([_row(name, entry) for name, entry in entries.items()])
        return
    header = ("chip", "links", "memory", "bandwidth", "16 bits\nTFLOP/s", "8 bits\nTFLOP/s", "4 bits\nTFLOP/s", "TDP")
    show_all(header, [_cells(name, entry) for name, entry in entries.items()], words=2)


def _row(name: str, entry: ChipEntry) -> dict[str, Any]:
    """Plain numbers of one chip in base units."""
    value = lambda figure: None if figure is None else figure.value
    peaks = {f"peak_{bits}_bit_flop_per_s": value(_peak(entry, bits)) for bits in _BY_BITS}
    return {
        "id": name,
        "name": entry.name,
        "kind": entry.kind,
        "memory_bytes": value(entry.memory_bytes),
        "memory_bandwidth_bytes_per_s": value(entry.memory_bandwidth_bytes_per_s),
        **peaks,
        "power_w": value(entry.power_w),
        "network": entry.links.network if entry.links else None,
        "link_bandwidth_bytes_per_s": entry.links.bandwidth().value if entry.links else None,
    }


def _peak(entry: ChipEntry, bits: int) -> Figure | None:
    return next((entry.peak_flop_per_s[dtype] for dtype in _BY_BITS[bits] if dtype in entry.peak_flop_per_s), None)


def _cells(name: str, entry: ChipEntry) -> list[str]:
    from colossus.cli.catalog import UNKNOWN, fact

    text = lambda key, figure: UNKNOWN if figure is None else fact(key, figure).value
    peaks = [UNKNOWN if (peak := _peak(entry, bits)) is None else f"{peak.value / 1e12:,.0f}" for bits in _BY_BITS]
    links = f"{entry.links.network} {text('bandwidth_bytes_per_s', entry.links.bandwidth())}" if entry.links else UNKNOWN
    bandwidth = text("memory_bandwidth_bytes_per_s", entry.memory_bandwidth_bytes_per_s)
    return [name, links, text("memory_bytes", entry.memory_bytes), bandwidth, *peaks, text("power_w", entry.power_w)]


def _show(name: str, entry: ChipEntry, *, as_json: bool) -> None:
    from colossus.catalog.prices import PriceList, SiteFigures
    from colossus.cli.catalog import show_one

    prices = PriceList.load("chips").lines.get(name, SiteFigures())
    curves, origin = _measured_gemms(name)
    if as_json:
        links = {"link_bandwidth_bytes_per_s": entry.links.bandwidth().to_data()} if entry.links else {}
        measured = {"measured_gemm": {"curves": curves, **vars(origin)}} if curves else {}
        print_json({"id": name} | entry.to_data() | links | {"prices": prices.to_data()} | measured)
        return
    show_one(f"{name}: {entry.name}", entry.notes, [*_facts(entry, prices), *_gemm_facts(curves, origin)])


def _facts(entry: ChipEntry, prices: SiteFigures) -> Iterator[Fact]:
    from colossus.cli.catalog import Origin, fact, facts_of

    origin = Origin(how=entry.how.value, source=entry.source, date=entry.date)
    yield from facts_of(entry, origin, skip=("schema_version", "name", "source", "date", "how", "notes", "device_names"))
    if entry.links:
        yield fact("links_bandwidth_bytes_per_s_per_chip", entry.links.bandwidth())
    yield from facts_of(prices, origin)


def _measured_gemms(name: str) -> tuple[dict[str, dict[str, float]], Origin]:
    """Precision -> the curve fitted to this chip's measured GEMMs, and where they come from."""
    import tomllib
    from importlib.resources import files

    from colossus.cli.catalog import Origin

    data = tomllib.loads((files("colossus.catalog") / "measured" / "gemm.toml").read_text(encoding="utf-8"))
    curves = {key.removeprefix(f"{name} "): curve for key, curve in data["curves"].items() if key.startswith(f"{name} ")}
    return curves, Origin(how="measured", source=data["source"], date=data["date"])


def _gemm_facts(curves: dict[str, dict[str, float]], origin: Origin) -> Iterator[Fact]:
    from colossus.cli.catalog import Fact, said

    for precision, curve in curves.items():
        rate = said("gemm_flop_per_s", curve["flop_per_s"])[1]
        fitted = f"{curve['num_shapes']:,.0f} shapes, median residual {100 * curve['median_error_fraction']:.1f} %"
        yield Fact(name=f"{precision} GEMM, as large as can be", value=f"{rate}  ({fitted})", origin=origin)

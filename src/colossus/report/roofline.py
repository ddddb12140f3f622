"""What each kind of operation reaches under the chip's roofs (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colossus.report.labelled import Labelled, Line, Spot, draw
from colossus.report.picture import WIDTH, Picture
from colossus.spec.units import format_quantity

# How far right of the last dot the roofs go on, so that their words have room.
_BEYOND = 25


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of operation: FLOP for each byte that passes the chip's memory, the rate reached, its precision's peak, its share of the step."""

    name: str
    flop_per_byte: float
    flop_per_s: float
    peak_flop_per_s: float
    step_fraction: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """``memory_bytes_per_s`` and ``peak_flop_per_s`` (by dtype, lowest first) are the datasheet's, what-ifs included."""

    memory_bytes_per_s: float
    peak_flop_per_s: Sequence[tuple[str, float]]
    kinds: Sequence[Kind]

    def reached_fraction(self, kind: Kind) -> float:
        """Of the most that an operation of its intensity and precision can reach."""
        return kind.flop_per_s / min(self.memory_bytes_per_s * kind.flop_per_byte, kind.peak_flop_per_s)


def picture(roofline: Roofline, *, chip: str) -> Picture:
    chart = Labelled(
        x_name="arithmetic intensity, FLOP for each byte of the chip's memory",
        y_name="FLOP/s of one chip; the share of the roof that is reached; an area is the share of the step",
        spots=[_spot(kind, roofline) for kind in sorted(roofline.kinds, key=lambda kind: -kind.step_fraction)],
        lines=_roofs(roofline),
        format_y=lambda value: format_quantity(value, "FLOP/s"),
        format_x=lambda value: f"{value:,g}",
    )
    told = "; ".join(_words(kind, roofline) for kind in roofline.kinds)
    height = 400
    return Picture(name="roofline", title=f"Roofline of one {chip}", description=told, height=height, body=draw(chart, width=WIDTH, height=height))


def _spot(kind: Kind, roofline: Roofline) -> Spot:
    """Its area is its share of the step."""
    label = f"{kind.name} {roofline.reached_fraction(kind):.0%}"
    return Spot(x=kind.flop_per_byte, y=kind.flop_per_s, label=label, words=_words(kind, roofline), radius=max(3.0, 16 * kind.step_fraction**0.5))


def cells(roofline: Roofline) -> list[tuple[str, ...]]:
    """A row for each kind, under ``HEADER``."""
    return [
        (
            kind.name,
            _intensity(kind),
            format_quantity(kind.flop_per_s, "FLOP/s"),
            f"{roofline.reached_fraction(kind):.0%}",
            f"{kind.step_fraction:.1%}",
        )
        for kind in roofline.kinds
    ]


def _intensity(kind: Kind) -> str:
    return f"{kind.flop_per_byte:,.0f}" if kind.flop_per_byte >= 10 else f"{kind.flop_per_byte:.2g}"


HEADER = ("operation", "FLOP for each byte", "reached, a chip", "of the roof", "of the step")


def _words(kind: Kind, roofline: Roofline) -> str:
    rate = format_quantity(kind.flop_per_s, "FLOP/s")
    return f"{kind.name}: {rate} at {_intensity(kind)} FLOP/B, {roofline.reached_fraction(kind):.0%} of the roof, {kind.step_fraction:.1%} of the step"


def _roofs(roofline: Roofline) -> list[Line]:
    """The memory's roof as far as the highest peak, and a flat one for each precision in use, from the memory's roof on."""
    right = _BEYOND * max(max(peak for _, peak in roofline.peak_flop_per_s) / roofline.memory_bytes_per_s, *(kind.flop_per_byte for kind in roofline.kinds))
    left = min(0.5 * kind.flop_per_byte for kind in roofline.kinds)
    bandwidth, highest = roofline.memory_bytes_per_s, max(peak for _, peak in roofline.peak_flop_per_s)
    flats = [
        Line(points=[(peak / bandwidth, peak), (right, peak)], css="roof", label=f"peak in {dtype}, {format_quantity(peak, 'FLOP/s')}")
        for dtype, peak in roofline.peak_flop_per_s
    ]
    return [Line(points=[(left, left * bandwidth), (highest / bandwidth, highest)], css="roof"), *flats]

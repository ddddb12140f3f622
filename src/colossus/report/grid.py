"""Grid lines, axes and their texts of a plot, as SVG; texts where they have room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from colossus.report.svg import Scale

CHARACTER = 6.6  # width of one in pixels, at the size that plots are lettered in
_GAP = 8

Tick = tuple[float, str]  # where, and what is said there


def grid(x: Scale, y: Scale, ticks: tuple[Sequence[Tick], Sequence[Tick]], names: tuple[str, str], *, untold: Sequence[float] = ()) -> str:
    """``ticks`` and ``names`` of x and of y. ``untold``: places along x that get a line and no text."""
    x_ticks, y_ticks = list(roomy(ticks[0], x)), ticks[1]
    across = "".join(f"M{x.start:.1f} {y(at):.1f}H{x.end:.1f}" for at, _ in y_ticks)
    up = "".join(f"M{x(at):.1f} {y.start:.1f}V{y.end:.1f}" for at in (*(at for at, _ in x_ticks), *untold))
    texts = [f'<text class="num" x="{x.start - 7:.1f}" y="{y(at) + 4:.1f}" text-anchor="end">{escape(text)}</text>' for at, text in y_ticks]
    texts += [f'<text class="num" x="{x(at):.1f}" y="{y.start + 17:.1f}" text-anchor="middle">{escape(text)}</text>' for at, text in x_ticks]
    return (
        f'<path class="grid" d="{across}{up}"/><path class="axis" d="M{x.start:.1f} {y.end:.1f}V{y.start:.1f}H{x.end:.1f}"/>{"".join(texts)}'
        f'<text class="name" x="{x.end:.1f}" y="{y.start + 34:.1f}" text-anchor="end">{escape(names[0])}</text>'
        f'<text class="name" x="2" y="12">{escape(names[1])}</text>'
    )


def roomy(ticks: Sequence[Tick], x: Scale) -> Iterator[Tick]:
    """Ticks whose texts do not touch the one before."""
    free_from = float("-inf")
    for at, text in ticks:
        half = len(text) * CHARACTER / 2
        if x(at) - half >= free_from:
            yield at, text
            free_from = x(at) + half + _GAP

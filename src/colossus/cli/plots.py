"""Pictures as files: SVG always, PNG beside it where the extra ``png`` is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from colossus.cli.common import talk
from colossus.cli.files import write_bytes, write_file

_PIXELS = 2  # of a PNG for each unit of the picture


def write_plots(folder: Path, drawn: Iterable[tuple[str, str]]) -> None:
    """(name, SVG) as ``folder/name.svg`` and ``.png``; says once where no PNG can be made."""
    render = _renderer()
    for name, text in drawn:
        write_file(folder / f"{name}.svg", text, what="plot")
        if render is not None:
            write_bytes(folder / f"{name}.png", render(text), what="plot")
    if render is None:
        talk().print("SVG only: pip install 'colossus[png]' brings PNG too")


def _renderer() -> Callable[[str], bytes] | None:
    """SVG -> PNG in light colours by resvg; None where it is not installed."""
    from colossus.report.picture import flat

    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return None
    return lambda text: bytes(svg_to_bytes(svg_string=flat(text), zoom=_PIXELS, background="#ffffff"))

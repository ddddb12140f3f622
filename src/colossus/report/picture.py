"""A drawing with its size and words: put into a page that has a style, or on its own with a heading and the style in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from importlib.resources import files

WIDTH = 900
_MARGIN, _HEADING = 18, 48
_VARIABLE = re.compile(r"var\((--[\w-]+)\)")
# Renderers of pictures know no system-ui: fonts that systems carry, by name.
_FONT, _FONTS = re.compile(r"font:12px [^}]*"), 'font-size:12px;font-family:"DejaVu Sans","Liberation Sans","Noto Sans","Segoe UI",Arial,Helvetica,sans-serif'
_SETTING = re.compile(r"--[\w-]+:[^;}]*;")
_SHEETS = ("page.svg.css", "page.plan.css")
_DARK = re.compile(r"@media \(prefers-color-scheme:dark\)\{svg\{[^}]*\}\}")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """SVG elements within ``WIDTH`` x ``height``; ``name`` is that of a file and makes ids unique on a page."""

    name: str
    title: str
    description: str
    height: float
    body: str
    sheets: tuple[str, ...] = _SHEETS

    def inline(self) -> str:
        """For a page that carries ``style()``."""
        return self._open(f"0 0 {WIDTH} {self.height:.0f}") + self.body + "</svg>"

    def _repr_html_(self) -> str:
        """For a notebook: on paper of its own."""
        return f'<style>{scoped()}</style><div class="colossus-plan" style="max-width:900px"><b>{escape(self.title)}</b>{self.inline()}</div>'

    def alone(self, subtitle: str) -> str:
        """A file of its own, for light and dark, on paper, under its title."""
        wide, high = WIDTH + 2 * _MARGIN, self.height + _HEADING + 2 * _MARGIN
        left, top = -_MARGIN, -_MARGIN - _HEADING
        return (
            f"{self._open(f'{left} {top} {wide} {high:.0f}')}<style>{style(self.sheets)}</style>"
            f'<rect class="paper" x="{left}" y="{top}" width="{wide}" height="{high:.0f}"/><text class="title" x="0" y="{-_HEADING + 8}">{escape(self.title)}</text>'
            f'<text class="name" x="0" y="{-_HEADING + 25}">{escape(subtitle)}</text>{self.body}</svg>\n'
        )

    def _open(self, box: str) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-labelledby="{self.name}-t {self.name}-d">'
            f'<title id="{self.name}-t">{escape(self.title)}</title><desc id="{self.name}-d">{escape(self.description)}</desc>'
        )


def style(sheets: tuple[str, ...] = _SHEETS) -> str:
    """The rules that pictures need; of plans unless others are named."""
    return "".join(files("colossus.report").joinpath(name).read_text(encoding="utf-8") for name in sheets)


def scoped() -> str:
    """The same rules for a page that is not ours: they hold within ``colossus-plan`` only."""
    return f".colossus-plan{{{style()}svg{{background:var(--paper);width:100%;height:auto;padding:8px 12px;box-sizing:border-box}}}}"


def flat(svg: str) -> str:
    """A picture's light colours written out, for renderers that know neither variables nor dark mode."""
    plain = _FONT.sub(_FONTS, _DARK.sub("", svg))
    light = dict(pair.split(":", 1) for block in re.findall(r"svg\{([^}]*)\}", plain) for pair in block.split(";") if pair.startswith("--"))
    return _SETTING.sub("", _VARIABLE.sub(lambda found: light.get(found[1], found[0]), plain))

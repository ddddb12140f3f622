"""What every self-contained page begins and ends with."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from colossus.report.picture import style


def document(title: str, sheets: tuple[str, ...], sections: Iterable[str], after: str = "") -> str:
    """A whole page: style ``sheets`` of this package in it, ``sections`` of markup that are not empty, and what comes ``after`` them."""
    body = "\n".join(filter(None, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>\n{style(sheets)}</style></head>\n'
        f"<body><main>\n{body}\n</main>{after}</body></html>\n"
    )

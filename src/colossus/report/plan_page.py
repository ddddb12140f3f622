"""A plan as one self-contained page: what it takes, where a step goes, memory, roofline, what to buy next, how it scales, and the choices."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from colossus.report import roofline as roofs
from colossus.report.picture import Picture, scoped
from colossus.report.plan_plots import Swing, pictures
from colossus.report.plan_words import OPTION_HEADER, count, option_cells, rows, size, verdict
from colossus.report.roofline import Roofline
from colossus.report.shell import document
from colossus.spec.answer import Answer, Choice
from colossus.spec.units import format_quantity

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header, rows
# What is said below a picture.
_REMARKS = {
    "roofline": "Rates reached are the estimate's, roofs the datasheet's. In a pipeline the vocabulary head is left out.",
    "scaling": "The best layout on halves of the machine; a label is the share of the best rate per chip.",
    "front": "No other number of chips is faster, smaller and cheaper at once. Without failures.",
}


def page(
    answer: Answer, *, tornado: Sequence[Swing] = (), scaling: Sequence[Choice] = (), front: Sequence[Choice] = (), roofline: Roofline | None = None
) -> str:
    """The whole page; sections without data are left out."""
    drawn = pictures(answer, tornado=tornado, scaling=scaling, front=front, roofline=roofline)
    tables: dict[str, Table] = {
        name: (OPTION_HEADER, [option_cells(choice) for choice in choices]) for name, choices in (("scaling", scaling), ("front", front))
    }
    if roofline is not None:
        tables["roofline"] = (roofs.HEADER, roofs.cells(roofline))
    remarks = _REMARKS | {"waterfall": f"Limited by {answer.best.limited_by}."}
    sections = [
        f'<header><div class="head"><h1>{escape(answer.model)} on {count(answer.num_chips, "chip")}</h1><span class="pill done">estimated</span></div>'
        f'<p class="verdict">{escape(verdict(answer))}</p><p class="when">{escape(answer.machine)}, {escape(answer.precision)}</p></header>',
        _section("What it takes", _table((), [row for row in rows(answer) if row[0] not in ("layout", "limited by")])),
        *(_pictured(picture, remarks.get(picture.name, ""), tables.get(picture.name)) for picture in drawn),
        _section("The best layouts", _layouts(answer)),
        f"<footer>{escape(' '.join(note[0].upper() + note[1:] + '.' for note in answer.notes))} Every figure is estimated in closed form.</footer>",
    ]
    return document(f"{answer.model} on {answer.machine}", ("page.svg.css", "page.plan.css", "page.css"), sections)


def answer_section(answer: Answer) -> str:
    """For a notebook: the figures as a table, and the pictures of a step and of memory on paper of their own; its rules hold for nothing else there."""
    drawn = "".join(f'<div style="max-width:900px;margin-top:14px"><b>{escape(picture.title)}</b>{picture.inline()}</div>' for picture in pictures(answer))
    cells = "".join(f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:left">{escape(words)}</td></tr>' for name, words in rows(answer))
    title = f"<p><b>{escape(answer.model)} on {count(answer.num_chips, 'chip')} of {escape(answer.machine)}</b>, estimated</p>"
    notes = "".join(f'<p style="max-width:900px">{escape(note[0].upper() + note[1:])}.</p>' for note in answer.notes)
    return f'<style>{scoped()}</style><div class="colossus-plan">{title}<table>{cells}</table>{drawn}{notes}</div>'


def _pictured(picture: Picture, remark: str, table: Table | None) -> str:
    told = f'<p class="soft">{escape(remark)}</p>' if remark else ""
    return _section(picture.title, f'<div class="scroll pic">{picture.inline()}</div>{told}' + (_table(*table) if table else ""))


def _layouts(answer: Answer) -> str:
    header = ("", "layout", "step", "MFU", "memory", "against the first")
    rows = [
        (
            str(number),
            choice.layout.describe(),
            format_quantity(choice.step_s, "s"),
            f"{choice.mfu_fraction:.1%}",
            size(choice.memory_bytes_per_chip),
            choice.why_not_first or "",
        )
        for number, choice in enumerate(answer.choices, 1)
    ]
    return f'<p class="soft">{answer.num_fitting:,} of {answer.num_layouts:,} layouts fit.</p>' + _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="rows">{head}<tbody>{body}</tbody></table></div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"

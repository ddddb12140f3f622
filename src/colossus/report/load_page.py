"""A load test as one page that carries everything: table, percentiles, plots, definitions; light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from colossus.report import load_words as words
from colossus.report import svg
from colossus.report.load_plots import SHEETS, SIZES, beside, charts
from colossus.report.shell import document
from colossus.spec.load import LoadPoint, LoadTest


def page(test: LoadTest, others: Mapping[str, LoadTest] | None = None) -> str:
    """The whole page; ``others`` are tests of other servers, by name, to stand beside it."""
    title = f"Load test of {test.model}"
    sections = [
        _head(title, test),
        _section("Loads", _table(words.header(test), [words.row(test, point) for point in test.points])),
        *_others(test, others or {}),
        *(_chart(name, chart) for name, chart in charts(test)),
        *(_percentiles(point) for point in test.points),
        _section("What the words mean", _meanings(test)),
        f"<footer>{escape(' '.join((words.client_words(test.points), words.warm_up_words(test.points))))}</footer>",
    ]
    script = files("colossus.report").joinpath("page.js").read_text(encoding="utf-8")
    after = f'<div id="tip" aria-hidden="true"></div><script>\n{script}</script>'
    return document(title, (*SHEETS, "page.css"), sections, after)


def _head(title: str, test: LoadTest) -> str:
    when = datetime.fromtimestamp(test.started_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    notes = "".join(f"<li>{escape(note)}</li>" for note in test.notes)
    return (
        f'<header><div class="head"><h1>{escape(title)}</h1><span class="pill done">measured</span></div>'
        f'<p class="verdict">{escape(words.verdict(test))}</p><p class="when">{escape(words.terms(test))}, {when}</p>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "</header>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _others(test: LoadTest, others: Mapping[str, LoadTest]) -> list[str]:
    if not others:
        return []
    tests = words.named(test, others)
    notes = "".join(f"<p>{escape(note)}</p>" for note in words.beside_notes(test, others))
    return [_section("Beside others", _table(words.beside_header(), words.beside_rows(tests)) + notes), *(_chart(name, chart) for name, chart in beside(tests))]


def _chart(name: str, chart: svg.Chart) -> str:
    drawn = (f'<div class="{size}">{svg.draw(chart, width=width, height=height, key=f"{name}-{size}")}</div>' for size, (width, height) in SIZES.items())
    return _section(chart.title, "".join(drawn))


def _percentiles(point: LoadPoint) -> str:
    counts = (
        f"{point.num_completed} of {point.num_requests} requests answered in {words.duration(point.wall_s)}; {point.num_prompt_tokens:,} prompt tokens, "
        f"{point.num_cached_tokens:,} of them from the prefix cache; {point.num_output_tokens:,} output tokens"
    )
    return _section(f"Latencies at {point.label}", _table(words.PERCENTILES, words.percentile_rows(point)) + f'<p class="soft told">{escape(counts)}</p>')


def _meanings(test: LoadTest) -> str:
    rows = [[words.KINDS[kind], meaning] for kind, meaning in words.MEANINGS.items()]
    objective = words.objective_words(test.objectives)
    rows += [["goodput", f"answers a second with {objective}"]] if objective else []
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(meaning)}</td></tr>' for name, meaning in rows)
    return f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td data-name="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(header, row, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

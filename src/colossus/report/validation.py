"""Estimates held against measured runs, in words and tables: what ``colossus validate`` prints, and the data it gives as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from colossus.report import words

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

# What a good ranking is: Spearman's correlation, and the chosen layout over the best.
_RANKED, _CHOSEN = 0.95, 0.03
_MOST_WORST = 10
_ERRORS_NOTE = (
    "Error: estimated over measured step time, less one. Median and 90th percentile of its size; its own median as bias; "
    "inside: how often the measured time lies in the stated interval, which is made to hold 90 %."
)


class RowData(TypedDict):
    """One run. None: not published, or not run, which ``reason`` then explains. The interval holds the measured time 9 times in 10."""

    id: str
    group: str
    model: str
    accelerator: str
    num_chips: float | None
    program: str | None
    measured_step_s: float | None
    estimated_step_s: float | None
    lower_step_s: float | None
    upper_step_s: float | None
    error_fraction: float | None
    is_inside: bool | None
    measured_memory_bytes: float | None
    estimated_memory_bytes: float | None
    memory_error_fraction: float | None
    is_called_infeasible: bool
    reason: str | None


class ErrorsData(TypedDict):
    """Errors of some rows: estimated over measured, less one; median and 90th percentile of its size, median of itself as bias."""

    name: str
    num_rows: int
    median_error_fraction: float
    p90_error_fraction: float
    bias_fraction: float
    inside_fraction: float


class MemoryData(TypedDict):
    """Errors of peak memory, of the rows that publish it."""

    num_rows: int
    median_error_fraction: float | None
    worst_error_fraction: float | None


class SweepData(TypedDict):
    """Layouts of one model on one machine under one program; the last: measured time of the layout estimated fastest over the least, less one."""

    name: str
    num_rows: int
    rank_correlation: float
    chosen_over_best_fraction: float


class ValidationData(TypedDict):
    """A whole validation. ``about``: which rows; ``problems``: thresholds missed."""

    about: str
    whole: ErrorsData
    by_group: list[ErrorsData]
    by_accelerator: list[ErrorsData]
    sweeps: list[SweepData]
    memory: MemoryData
    problems: list[str]
    rows: list[RowData]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first ``num_words`` columns are words, the others figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_words: int = 1
    note: str = ""


def verdict(data: ValidationData) -> str:
    """One sentence: how many runs, how far off, which way, and how often the interval holds."""
    whole = data["whole"]
    if not whole["num_rows"]:
        return f"None of {words.count(len(data['rows']), 'run')} could be estimated."
    return (
        f"{words.count(whole['num_rows'], 'run')} ({data['about']}): step time off by {words.percent(whole['median_error_fraction'])} at the median, "
        f"{words.percent(whole['p90_error_fraction'])} at the 90th percentile, bias {signed(whole['bias_fraction'])}; "
        f"{words.percent(whole['inside_fraction'])} inside the stated interval."
    )


def tables(data: ValidationData) -> Iterator[Table]:
    """Every table that has rows."""
    every = [
        _errors_table("by group", "group", [*data["by_group"], data["whole"]]),
        _errors_table("by accelerator", "accelerator", data["by_accelerator"], note=_ERRORS_NOTE),
        _sweeps_table(data["sweeps"]),
        _memory_table(data),
        _worst_table(data["rows"]),
        _left_out_table(data["rows"]),
    ]
    return (table for table in every if table.rows)


def render(data: ValidationData) -> Group:
    """The validation on a terminal; the caller prints."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(verdict(data), style="bold")]
    for table in tables(data):
        parts += [Text(f"\n{table.title}", style="bold"), _rich(table)]
        if table.note:
            parts.append(Text(table.note, style="dim"))
    return Group(*parts)


def _rich(table: Table) -> RenderableType:
    from rich.table import Table as RichTable

    drawn = RichTable(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(table.header):
        drawn.add_column(name, justify="left" if number < table.num_words else "right", overflow="fold", no_wrap=number >= table.num_words)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def signed(fraction: float | None) -> str:
    """``signed(-0.0421) == "-4.2 %"``."""
    return "–" if fraction is None else f"{100 * fraction:+.1f} %"


def size(num_bytes: float | None) -> str:
    return "–" if num_bytes is None else f"{num_bytes / 2**30:,.1f} GiB"


def _errors_table(title: str, noun: str, some: Sequence[ErrorsData], *, note: str = "") -> Table:
    header = (noun, "runs", "median", "90th pct.", "bias", "inside")
    return Table(title=title, header=header, rows=[_error_cells(errors) for errors in some if errors["num_rows"]], note=note)


def _error_cells(errors: ErrorsData) -> list[str]:
    shares = (words.percent(errors["median_error_fraction"]), words.percent(errors["p90_error_fraction"]), signed(errors["bias_fraction"]))
    return [errors["name"], f"{errors['num_rows']:,}", *shares, words.percent(errors["inside_fraction"])]


def _sweeps_table(sweeps: Sequence[SweepData]) -> Table:
    """The sweeps, the worst ranked first."""
    rows = [
        [sweep["name"], f"{sweep['num_rows']}", f"{sweep['rank_correlation']:.2f}", words.percent(sweep["chosen_over_best_fraction"])]
        for sweep in sorted(sweeps, key=lambda sweep: sweep["rank_correlation"])
    ]
    ranked = sum(sweep["rank_correlation"] >= _RANKED for sweep in sweeps)
    chosen = sum(sweep["chosen_over_best_fraction"] <= _CHOSEN for sweep in sweeps)
    note = (
        f"One model on one machine under one program, at least five layouts: {ranked} of {len(sweeps)} have {_RANKED} or more; in {chosen} the layout estimated fastest "
        f"is within {words.percent(_CHOSEN)} of the best measured, per token."
    )
    return Table(title="rank correlation within sweeps", header=("sweep", "runs", "Spearman", "choice"), rows=rows, note=note)


def _memory_table(data: ValidationData) -> Table:
    """Where memory was published: the worst rows, and all of them."""
    known = sorted((row for row in data["rows"] if row["memory_error_fraction"] is not None), key=lambda row: -abs(row["memory_error_fraction"] or 0.0))
    rows = [
        [row["id"], _what(row), size(row["measured_memory_bytes"]), size(row["estimated_memory_bytes"]), signed(row["memory_error_fraction"])]
        for row in known[:_MOST_WORST]
    ]
    memory = data["memory"]
    told = f"{words.count(memory['num_rows'], 'run')} publish it: off by {words.percent(memory['median_error_fraction'])} at the median, {words.percent(memory['worst_error_fraction'])} at worst."
    return Table(title="peak memory, the worst first", header=("run", "", "measured", "estimated", "error"), rows=rows, num_words=2, note=told)


def _worst_table(rows: Sequence[RowData]) -> Table:
    known = sorted((row for row in rows if row["error_fraction"] is not None), key=lambda row: -abs(row["error_fraction"] or 0.0))
    return Table(
        title="step time, the worst first",
        header=("run", "", "measured", "estimated", "error"),
        rows=[step_cells(row) for row in known[:_MOST_WORST]],
        num_words=2,
    )


def step_cells(row: RowData) -> list[str]:
    """Run, what it was, measured and estimated step time, error."""
    return [row["id"], _what(row), words.duration(row["measured_step_s"]), words.duration(row["estimated_step_s"]), signed(row["error_fraction"])]


def _what(row: RowData) -> str:
    chips = "" if row["num_chips"] is None else f"{row['num_chips']:,.0f} "
    return f"{row['model']} on {chips}{row['accelerator']}"


def _left_out_table(rows: Sequence[RowData]) -> Table:
    left = [[row["id"], row["reason"] or ""] for row in rows if row["reason"] is not None]
    note = f"{len(left)} of {words.count(len(rows), 'run')}." if left else ""
    return Table(title="left out", header=("run", "reason"), rows=left, num_words=2, note=note)

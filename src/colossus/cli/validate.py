"""``colossus validate``: estimates held against published runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from colossus.cli.common import json_option, paper, print_json, talk

if TYPE_CHECKING:
    from colossus.catalog.published import PublishedRun
    from colossus.plan.validate import Row, Summary, Sweep, Validation
    from colossus.report.validation import ErrorsData, RowData, SweepData, ValidationData


@click.command("validate")
@click.option("--rows", "file", type=click.Path(path_type=Path), help="Measured runs of your own: a CSV file with the catalog's columns.")
@click.option("--tier", type=click.Choice(["A", "B", "C", "all"], case_sensitive=False), help="Rows of one tier; default A for the catalog, all for --rows.")
@click.option("--html", "page_file", metavar="FILE", type=click.Path(path_type=Path), help="Write plot and tables as one self-contained page.")
@click.option("--plot", "plot_file", metavar="FILE.svg", type=click.Path(path_type=Path), help="Write the plot of estimated against measured step time.")
@click.option(
    "--plots", "folder", metavar="FOLDER", type=click.Path(path_type=Path), help="Write every plot as SVG, and as PNG where colossus[png] is installed."
)
@json_option
def command(file: Path | None, tier: str | None, page_file: Path | None, plot_file: Path | None, folder: Path | None, as_json: bool) -> None:
    """Estimate every published training run and say how far off the estimates are.

    Without --rows these are the catalog's runs. Tier A (read from their source, configuration complete) has thresholds: the
    exit code is 1 where one is missed. Tier B lacks something, tier C is from memory; they, and --rows, are only reported.
    """
    from colossus.cli.rows import chosen_runs, refuse, unreadable

    wanted = tier or ("A" if file is None else "all")
    runs = chosen_runs(file, wanted)
    bad = unreadable(runs)
    found = _validated(runs, bad)
    is_gate = file is None and wanted == "A"
    data = data_of(found, about=f"tier {wanted}" if file is None else str(file), problems=found.problems() if is_gate else [])
    _write(data, page_file, plot_file)
    if folder:
        from colossus.cli.plots import write_plots
        from colossus.report.validation_page import pictures

        write_plots(folder, pictures(data))
    if as_json:
        print_json(data)
    else:
        from colossus.report.validation import render

        paper().print(render(data))
    refuse(bad, origin=str(file))
    _judge(data["problems"])


def _validated(runs: Sequence[PublishedRun], bad: Mapping[str, str]) -> Validation:
    """All rows in their order; those of ``bad`` are left out with their reason."""
    from colossus.catalog.measured import load_coefficients
    from colossus.plan.validate import Row, summarize, validate

    found = validate([run for run in runs if run.id not in bad], load_coefficients())
    rows = {row.id: row for row in found.rows}
    for run in runs:
        if run.id in bad:
            model, accelerator = run.text("model"), run.text("accelerator")
            rows[run.id] = Row(id=run.id, group=run.group, model=model, accelerator=accelerator, num_chips=None, reason=bad[run.id])
    return summarize([rows[run.id] for run in runs]) if bad else found


def data_of(found: Validation, *, about: str, problems: list[str]) -> ValidationData:
    """A validation as plain data."""
    known = [row for row in found.rows if row.memory_error_fraction is not None]
    return {
        "about": about,
        "whole": _errors(found.whole),
        "by_group": [_errors(summary) for summary in found.by_group],
        "by_accelerator": [_errors(summary) for summary in found.by_accelerator],
        "sweeps": [_sweep(sweep) for sweep in found.sweeps],
        "memory": {
            "num_rows": len(known),
            "median_error_fraction": found.memory_median_error_fraction,
            "worst_error_fraction": found.memory_worst_error_fraction,
        },
        "problems": problems,
        "rows": [_row(row) for row in found.rows],
    }


def _errors(summary: Summary) -> ErrorsData:
    return {
        "name": summary.name,
        "num_rows": summary.num_rows,
        "median_error_fraction": summary.median_error_fraction,
        "p90_error_fraction": summary.p90_error_fraction,
        "bias_fraction": summary.bias_fraction,
        "inside_fraction": summary.inside_fraction,
    }


def _sweep(sweep: Sweep) -> SweepData:
    return {
        "name": sweep.name,
        "num_rows": sweep.num_rows,
        "rank_correlation": sweep.rank_correlation,
        "chosen_over_best_fraction": sweep.chosen_over_best_fraction,
    }


def _row(row: Row) -> RowData:
    return {
        "id": row.id,
        "group": row.group,
        "model": row.model,
        "accelerator": row.accelerator,
        "num_chips": row.num_chips,
        "program": row.program,
        "measured_step_s": row.measured_step_s,
        "estimated_step_s": _finite(row.step_s),
        "lower_step_s": _finite(row.lower_step_s),
        "upper_step_s": _finite(row.upper_step_s),
        "error_fraction": _finite(row.error_fraction),
        "is_inside": row.is_inside,
        "measured_memory_bytes": row.measured_memory_bytes,
        "estimated_memory_bytes": _finite(row.memory_bytes),
        "memory_error_fraction": _finite(row.memory_error_fraction),
        "is_called_infeasible": row.is_called_infeasible,
        "reason": row.reason,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _write(data: ValidationData, page_file: Path | None, plot_file: Path | None) -> None:
    if page_file or plot_file:
        from colossus.cli.files import write_file
        from colossus.report.validation_page import page, picture

        if page_file:
            write_file(page_file, page(data), what="page")
        if plot_file:
            write_file(plot_file, picture(data), what="plot")


def _judge(problems: list[str]) -> None:
    """Exits 1 where a threshold was missed, and says which."""
    for problem in problems:
        talk().print(f"threshold missed: {problem}")
    if problems:
        raise click.exceptions.Exit(1)

"""Showing a run: the report in the terminal, as JSON and as a page."""

from __future__ import annotations

from typing import Any

import click

from colossus.cli.common import paper, print_json, talk
from colossus.report.planned import PART_NAMES
from colossus.spec.plan import Plan, StepEstimate
from colossus.spec.run import Run, write_atomic
from colossus.spec.units import format_quantity


def show_report(run: Run, *, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    """Writes report.json and report.html, and shows the report on stdout."""
    from colossus.report import summarize_run
    from colossus.report.html import page
    from colossus.report.terminal import render

    report = summarize_run(run)
    write_atomic(run.report_json, report.to_json())
    write_atomic(run.report_html, page(report, run))
    if as_json:
        print_json(report.to_data() | {"run": str(run.folder)} | (extra or {}))
        return
    paper().print(render(report, paths=artefacts(run)))


def artefacts(run: Run) -> dict[str, str]:
    """What lies in the folder, by name."""
    named = {"run": run.folder, "page": run.report_html, "events": run.events, "checkpoints": run.checkpoints, "logs": run.logs}
    return {name: str(path) for name, path in named.items() if path.exists()}


def finish(run: Run, status: str, *, as_json: bool) -> None:
    """The end of train and resume: the report, and what to do next."""
    show_report(run, as_json=as_json)
    if status == "interrupted":
        talk().print(f"\nstopped; go on with: colossus resume {run.folder}")
        raise click.exceptions.Exit(130)
    if run.card.exists():
        talk().print(f'\nnext: colossus sample {run.folder} "Once"   or   colossus serve {run.folder}   or   colossus export {run.folder} --to DIR')


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """(what, value) of a plan, for people."""
    rows = [("layout", plan.layout.describe()), ("workers", str(plan.num_workers))]
    if plan.num_parameters is not None:
        rows.append(("parameters", f"{plan.num_parameters:,}"))
    if plan.model_flop_per_token is not None:
        rows.append(("model FLOP per token", format_quantity(plan.model_flop_per_token, "FLOP")))
    if plan.step is not None:
        rows += step_rows(plan.step)
    if plan.memory_per_device is not None:
        parts = plan.memory_per_device.to_data()
        rows.append(("memory per device", format_quantity(plan.memory_per_device.total_bytes, "B", binary=True)))
        rows += [(f"  {name.removesuffix('_bytes')}", format_quantity(size, "B", binary=True)) for name, size in parts.items()]
    return rows + [("note", note) for note in plan.notes]


def step_rows(step: StepEstimate) -> list[tuple[str, str]]:
    """The time of a step: expected, where nine runs in ten end, its parts, longest first, and what it rests on."""
    ends = f"({format_quantity(step.lower_step_s, 's')} to {format_quantity(step.upper_step_s, 's')} holds 9 runs in 10)"
    rows = [("step", f"{format_quantity(step.step_s, 's')}  {ends}")]
    longest = sorted(step.parts_s.items(), key=lambda part: -part[1])
    rows += [(f"  {PART_NAMES.get(name, name)}", f"{format_quantity(seconds, 's')}  {seconds / step.step_s:.0%}") for name, seconds in longest]
    return rows + [("  estimated from", f"{step.source} ({step.how.value})")]

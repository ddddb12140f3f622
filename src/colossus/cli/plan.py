"""``colossus plan``: the layout that a job gets here, said without starting it."""

from __future__ import annotations

from pathlib import Path

import click

from colossus.cli.common import json_option, paper, print_json, runs_option, set_option


@click.command("plan")
@click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))
@click.option("--workers", type=int, help="Worker processes.")
@set_option
@runs_option
@json_option
def command(job_file: Path, workers: int | None, assignments: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Say which layout JOB gets on this machine, and the memory that each device needs."""
    from colossus.cli.hardware import known_machine
    from colossus.cli.launch import load_any_job, make_plan, resolve_model
    from colossus.cli.show import plan_rows

    job = load_any_job(job_file, assignments, workers)
    plan = make_plan(job, known_machine(runs, measure=False), resolve_model(job)[0])
    if as_json:
        print_json(plan.to_data())
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in plan_rows(plan):
        table.add_row(*row)
    paper().print(table)

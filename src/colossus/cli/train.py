"""``colossus train``: a job file, or a Python file that holds one, to a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from colossus.cli.common import json_option, kill_option, runs_option, set_option


@click.command("train")
@click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "engine",
    default="local",
    show_default=True,
    help="Where to run: local; or twin:MACHINE, the same supervisor on a simulated machine: twin:this as calibrated, or of the catalog, e.g. twin:h100-sxm*64.",
)
@click.option("--workers", type=int, help="Worker processes; default: one per core that the job can use, or one that drives all accelerators.")
@set_option
@kill_option
@runs_option
@json_option
def command(job_file: Path, engine: str, workers: int | None, assignments: tuple[str, ...], kills: Any, runs: Path, as_json: bool) -> None:
    """Train the network that JOB describes (a .toml file, or a .py file with JOB and program), through failures, to the end.

    Ctrl-C saves a checkpoint and stops; a second Ctrl-C stops at once. Go on with: colossus resume RUN
    """
    from colossus.cli.launch import TWIN, check_engine, load_any_job, prepare, supervise
    from colossus.cli.show import finish

    check_engine(engine, or_twin=True)
    if engine.startswith(TWIN):
        from colossus.cli.show import show_report
        from colossus.cli.twins import train_on_twin

        run, _ = train_on_twin(engine, job_file, assignments, workers, runs, kills=kills)
        show_report(run, as_json=as_json)
        return
    job = load_any_job(job_file, assignments, workers)
    run = prepare(job, runs, kills=kills)
    status = supervise(run, kills=kills)
    finish(run, status, as_json=as_json)

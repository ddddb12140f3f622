"""``colossus resume``: go on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from colossus.cli.common import json_option, kill_option, run_argument, set_option


@click.command("resume")
@run_argument
@click.option("--on", "engine", default="local", show_default=True, help="Where to run: local.")
@click.option("--workers", type=int, help="Another number of worker processes than before.")
@set_option
@kill_option
@json_option
def command(folder: Path, engine: str, workers: int | None, assignments: tuple[str, ...], kills: Any, as_json: bool) -> None:
    """Go on with RUN from its newest good checkpoint, on as many workers and in whatever layout fits now.

    --set num_steps=N trains further; the model and the data stay as they were.
    """
    from colossus.cli.common import talk
    from colossus.cli.launch import check_engine, is_done, reopen, supervise
    from colossus.cli.show import finish
    from colossus.spec.run import open_run

    check_engine(engine)
    if not assignments and is_done(run := open_run(folder)):
        talk().print(f"{run.folder} has done its {run.load_job().num_steps} steps already; train further with --set num_steps=N")
        finish(run, "done", as_json=as_json)
        return
    run = reopen(folder, assignments, workers, kills=kills)
    status = supervise(run, kills=kills)
    finish(run, status, as_json=as_json)

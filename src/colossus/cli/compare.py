"""``colossus compare``: two runs side by side, or a run and its twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from colossus.cli.common import json_option, paper, print_json, talk

if TYPE_CHECKING:
    from colossus.spec.run import Run

_TWIN = "twin"


@click.command("compare")
@click.argument("first", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("second", metavar="[OTHER]", required=False, type=click.Path(path_type=Path))
@json_option
def command(first: Path, second: Path | None, as_json: bool) -> None:
    """Show RUN and OTHER side by side: losses step by step, speed, goodput, event kinds.

    OTHER: a run, or a simulation (colossus simulate, colossus train --on twin:MACHINE). Without it, or as `twin`: RUN's own job, machine and kills
    are simulated on the spot, and what of the twin is to be calibrated again is named.
    """
    from colossus.report import summarize_run
    from colossus.report.compare import advice, compare, render
    from colossus.spec.run import open_run

    run = open_run(first, or_simulation=True)
    other = _twin_of(run) if second is None or (str(second) == _TWIN and not second.exists()) else open_run(second, or_simulation=True)
    comparison = compare(summarize_run(run), summarize_run(other))
    if as_json:
        print_json(comparison.to_data() | {"runs": [str(run.folder), str(other.folder)]})
        return
    console = paper()
    console.print(render(comparison, names=(run.folder.name, other.folder.name)))
    real = run if not run.is_simulation else other
    for line in advice(comparison, str(real.folder)):
        console.print(line, soft_wrap=True)  # a command that is copied stays whole


def _twin_of(run: Run) -> Run:
    """Simulates what a real run did, beside it."""
    from colossus.cli.twins import play, stage_again
    from colossus.spec.errors import RunError

    if run.is_simulation:
        raise RunError(f"{run.folder} is a simulation itself: name what to compare it with", hint="colossus compare RUN " + str(run.folder))
    twin, _ = play(stage_again(run, run.folder.parent), run.folder.parent, is_quiet=True)
    talk().print(f"simulation: {twin.folder}")
    return twin

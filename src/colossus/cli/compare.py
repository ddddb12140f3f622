"""``colossus compare``: two runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from colossus.cli.common import json_option, paper, print_json


@click.command("compare")
@click.argument("first", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("second", metavar="OTHER", type=click.Path(path_type=Path))
@json_option
def command(first: Path, second: Path, as_json: bool) -> None:
    """Show RUN and OTHER side by side: losses step by step, speed, goodput, event kinds."""
    from colossus.report import summarize_run
    from colossus.report.compare import compare, render
    from colossus.spec.run import open_run

    runs = [open_run(first), open_run(second)]
    comparison = compare(*(summarize_run(run) for run in runs))
    if as_json:
        print_json(comparison.to_data())
        return
    paper().print(render(comparison, names=(str(first), str(second))))

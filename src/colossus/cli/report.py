"""``colossus report``: what a run came to."""

from __future__ import annotations

from pathlib import Path

import click

from colossus.cli.common import json_option, run_argument


@click.command("report")
@run_argument
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Show what RUN came to so far, and write report.json and report.html into its folder."""
    from colossus.cli.show import show_report
    from colossus.spec.run import open_run

    show_report(open_run(folder, or_simulation=True), as_json=as_json)

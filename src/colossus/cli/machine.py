"""``colossus machine``: what this machine is and what it measures."""

from __future__ import annotations

from pathlib import Path

import click

from colossus.cli.common import json_option, paper, print_json, runs_option


@click.command("machine")
@click.option("--no-measure", is_flag=True, help="Describe only; takes no time.")
@runs_option
@json_option
def command(no_measure: bool, runs: Path, as_json: bool) -> None:
    """Describe the machine this runs on: cores, memory, accelerators, and its measured GEMM FLOP/s and memory bandwidth.

    The measurement is kept under the runs folder, and training reports its MFU against it.
    """
    from colossus.cli.hardware import describe, machine_rows, warn_of_idle

    machine = describe(runs, measure=not no_measure)
    warn_of_idle(machine)
    if as_json:
        print_json(machine.to_data())
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in machine_rows(machine):
        table.add_row(*row)
    paper().print(table)

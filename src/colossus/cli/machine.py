"""``colossus machine``: what this machine is and what it measures."""

from __future__ import annotations

from pathlib import Path

import click

from colossus.cli.common import json_option, paper, print_json, runs_option


@click.command("machine")
@click.option(
    "--measure/--no-measure",
    "measure",
    default=None,
    help="--measure: also time the trainer's own kernels, about a minute, so that plans say how long a step takes. --no-measure: describe only. "
    "Without either: a few seconds.",
)
@runs_option
@json_option
def command(measure: bool | None, runs: Path, as_json: bool) -> None:
    """Describe the machine this runs on: cores, memory, accelerators, and its measured GEMM FLOP/s and memory bandwidth.

    The measurement is kept under the runs folder: training reports its MFU against it, and plans the time of its steps by it.
    """
    from colossus.cli.hardware import describe, machine_rows, measure_kernels, warn_of_idle

    machine = measure_kernels(runs) if measure else describe(runs, measure=measure is None)
    warn_of_idle(machine)
    if as_json:
        print_json(machine.to_data())
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in machine_rows(machine):
        table.add_row(*row)
    paper().print(table)

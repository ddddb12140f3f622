"""``colossus plan``: what a job takes on a machine, without starting it: here, or on any machine of the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from colossus.cli.common import json_option, paper, print_json, runs_option, set_option
from colossus.cli.program import program_options


@click.command("plan")
@click.argument("job", metavar="JOB")
@click.option(
    "--on",
    "machine",
    help="A machine of the catalog (colossus machines), or CHIP*COUNT, e.g. h100-sxm*64, COUNT in chips. Without it, or as `this`: this machine.",
)
@click.option("--chips", type=click.IntRange(min=1), help="Use so many chips of the machine.")
@click.option(
    "--objective", type=click.Choice(["time", "cost", "energy"]), default="time", show_default=True, help="cost and energy choose the number of chips too."
)
@click.option("--deadline", metavar="TIME", help="Be done within, e.g. 30d or 12h; with --objective cost the cheapest that is.")
@click.option("--precision", help="bfloat16, float8, mxfp8, nvfp4; default bfloat16.")
@click.option("--program", help="Whose efficiency: a training program that runs were published of (megatron-bridge-26.06, torchtitan, maxtext, ...).")
@click.option("--sequences", type=click.IntRange(min=1), help="Sequences of a step, where JOB is a model; default about 4 M tokens.")
@click.option("--sequence-tokens", type=click.IntRange(min=2), help="Tokens of a sequence, where JOB is a model; default 8192 or the model's most.")
@click.option("--tokens", type=float, help="Tokens to train on; default the job's steps, or 20 for each parameter.")
@click.option("--top", type=click.IntRange(min=1, max=100), default=3, show_default=True, help="How many layouts to show.")
@click.option(
    "--why", metavar="AXES", help="What stands against a layout, e.g. tp=8,pp=4,dp=16,zero_stage=2 or schedule=zb-v, cp_kind=ulysses, offload=optimizer."
)
@click.option("--what-if", "what_if", multiple=True, metavar="FIGURE*FACTOR", help="Plan on a machine with one figure changed, e.g. chip.peak*1.2.")
@click.option("--tornado", is_flag=True, help="Which hardware figure matters most: each 20 % down and up.")
@click.option("--scaling", is_flag=True, help="The best layout on halves of the machine too: time, chips and money.")
@click.option("--pareto", is_flag=True, help="Every number of chips that no other beats in time, chips and money at once.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write the plan as one self-contained page with plots.")
@click.option("--plots", metavar="FOLDER", type=click.Path(path_type=Path), help="Write every plot as SVG, and as PNG where colossus[png] is installed.")
@click.option("--workers", type=int, help="Worker processes, on this machine.")
@program_options
@set_option
@runs_option
@json_option
def command(job: str, machine: str | None, assignments: tuple[str, ...], runs: Path, as_json: bool, workers: int | None, **options: Any) -> None:
    """Say which layout JOB gets, how long it takes, what it needs, draws and costs.

    JOB: a job file, or a model of the catalog or a Hugging Face config.json when --on names a machine.
    """
    machine = None if machine == "this" else machine
    if machine is None and not Path(job).exists():
        _check_is_no_model(job)
    _check_options(needs_machine=machine is None)
    if machine is None:
        _plan_here(Path(job), assignments, workers, runs, as_json=as_json)
        return
    from colossus.cli.planning import ask, show

    asked = ask(job, machine, assignments, runs, options)
    if options["read_program"]:
        from colossus.cli.program import show_program

        show_program(asked, options, as_json=as_json)
        return
    show(asked, options, as_json=as_json)


_HERE_TOO = ("job", "machine", "assignments", "runs", "as_json")


def _check_options(*, needs_machine: bool) -> None:
    """Options that would not be heard are refused: most need a machine of the catalog, workers are this machine's."""
    context = click.get_current_context()
    given = [
        option.opts[-1]
        for option in context.command.params
        if option.name is not None
        and option.name not in _HERE_TOO
        and (option.name != "workers") == needs_machine
        and context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given and needs_machine:
        raise click.UsageError(f"{', '.join(given)}: only for a machine of the catalog; name one, e.g. --on h100-sxm*64 (colossus machines)")
    if given:
        raise click.UsageError("--workers: only for this machine; a machine of the catalog takes --chips")


def _check_is_no_model(job: str) -> None:
    """A model's name, or nearly one, is no job file: it needs a machine."""
    from colossus.catalog.models import model_names
    from colossus.spec.errors import nearest

    if job in model_names():
        raise click.UsageError(f"{job!r} is a model, not a job file; name a machine too: colossus plan {job} --on h100-sxm*64")
    near = nearest(job, model_names()) or ""
    if not Path(job).suffix and near.startswith("did you mean"):
        raise click.UsageError(f"{job!r} is no job file and no model; {near} A model needs a machine too: --on h100-sxm*64")


def _plan_here(job_file: Path, assignments: tuple[str, ...], workers: int | None, runs: Path, *, as_json: bool) -> None:
    from colossus.cli.hardware import known_fit, known_machine
    from colossus.cli.launch import load_any_job, make_plan, resolve_model
    from colossus.cli.show import plan_rows

    job = load_any_job(job_file, assignments, workers)
    plan = make_plan(job, known_machine(runs, measure=False), resolve_model(job)[0], known_fit(runs))
    if as_json:
        print_json(plan.to_data())
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in plan_rows(plan):
        table.add_row(*row)
    paper().print(table)

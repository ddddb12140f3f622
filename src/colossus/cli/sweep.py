"""``colossus sweep``: simulates a job with some values varied, and names the best; what is done is kept, and the same command goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import paper, print_json, talk
from colossus.cli.simulating import simulation_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from colossus.cli.simulating import Ordered
    from colossus.cli.sweeping import Dim, Store, Task
    from colossus.report.simulation_sweep import Objective, Outcome, Point


@click.command("sweep")
@simulation_options
@click.option(
    "--vary",
    "vary",
    multiple=True,
    required=True,
    metavar="NAME=VALUES",
    help="A value of the scenario and what it takes: spares=0,16,64 or checkpoint.interval=10min..4h:5 (equal factors).",
)
@click.option("--replicas", type=click.IntRange(min=1), default=8, show_default=True, help="Play each point so often, with the same seeds at every point.")
@click.option(
    "--objective",
    type=click.Choice(["goodput", "time", "cost"]),
    default="goodput",
    show_default=True,
    help="What is best: most goodput, least time to train, least money a token.",
)
@click.option("--fresh", is_flag=True, help="Simulate all points anew, whatever is done.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write the page here too; it always lies in the sweep's folder.")
@click.option("--plots", metavar="FOLDER", type=click.Path(path_type=Path), help="Write the plot as SVG, and as PNG where colossus[png] is installed.")
def command(job: str, machine: str, vary: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Simulate JOB on a machine with values varied: every combination, with the same seeds, and which is best.

    Interrupted, even killed, it goes on where it stopped when the same command is given again.
    """
    from colossus.cli.simulating import order, scenario_of
    from colossus.cli.sweeping import Store, as_data, check, identity, parse_dim, points_of, tasks
    from colossus.report.simulation_sweep import OBJECTIVES, verdict

    dims = [parse_dim(text) for text in vary]
    all_tasks = tasks(dims, lambda more: scenario_of(options, more))
    ordered = order(job, machine, options)
    check(ordered, all_tasks)
    store = Store(options["runs"] / f"sweep-{_file_name(ordered.workload.name)}-{identity(ordered, options['replicas'])}")
    done = _done(ordered, all_tasks, store, dims, options)
    objective, names = OBJECTIVES[options["objective"]], [dim.name for dim in dims]
    points = points_of(all_tasks, done)
    _write(ordered, store, names, points, objective, options)
    if as_json:
        print_json({"folder": str(store.folder), "objective": objective.name, "verdict": verdict(names, points, objective), "points": as_data(dims, points)})
    else:
        _show(names, points, objective)
    talk().print(f"sweep: {store.folder}")


def _file_name(name: str) -> str:
    from colossus.cli.simulate import _file_name as of

    return of(name)


def _done(ordered: Ordered, all_tasks: Sequence[Task], store: Store, dims: Sequence[Dim], options: dict[str, Any]) -> dict[str, list[Outcome]]:
    """All points, those that were done before and those that are done now."""
    from colossus.cli.simulate import progress
    from colossus.cli.sweeping import run_tasks
    from colossus.report.simulation_sweep import OBJECTIVES, Point, name_of, summary

    done = {} if options["fresh"] else store.read()
    waiting = list({task.key: task for task in all_tasks if task.key not in done}.values())
    objective, names, console = OBJECTIVES[options["objective"]], [dim.name for dim in dims], talk()
    if len(waiting) < len(all_tasks):
        console.print(f"going on: {len(all_tasks) - len(waiting)} of {len(all_tasks)} points are done in {store.folder}")
    try:
        with progress("points", len(all_tasks)) as tell:
            for task, outcomes in run_tasks(ordered, waiting, options["replicas"]):
                store.append(task, outcomes)
                done[task.key] = outcomes
                point = Point(values=task.values, outcomes=tuple(outcomes))
                found = summary(point, objective)
                console.print(f"{name_of(names, point)}: {objective.title} {found.words(objective.tell) if found else 'none'}")
                tell(sum(each.key in done for each in all_tasks))
    except KeyboardInterrupt:
        console.print(f"interrupted: {sum(each.key in done for each in all_tasks)} of {len(all_tasks)} points are kept; the same command goes on")
        raise
    return done


def _write(ordered: Ordered, store: Store, names: Sequence[str], points: Sequence[Point], objective: Objective, options: dict[str, Any]) -> None:
    from colossus.cli.files import write_file
    from colossus.report.simulation_sweep_page import page, plot
    from colossus.spec.run import write_atomic

    workload, scenario = ordered.workload, ordered.scenario
    title = f"{workload.name} on {workload.num_job_chips:,} chips of {ordered.machine.name}"
    terms = f"scenario {scenario.name}, {scenario.horizon_s / 86400:g} days at most, {options['replicas']} replicas a point from seed {scenario.seed}"
    text = page(title, terms, names, points, objective)
    write_atomic(store.folder / "sweep.html", text)
    if options["page"] is not None:
        write_file(options["page"], text, what="page")
    drawn = plot(names, points, objective)
    if options["plots"] is not None and drawn is not None:
        from colossus.cli.plots import write_plots

        write_plots(options["plots"], [(drawn.name, drawn.picture().alone(title))])


def _show(names: Sequence[str], points: Sequence[Point], objective: Objective) -> None:
    """A table as wide as it must be: its rows are read side by side."""
    from colossus.report.simulation_sweep import cells, header, ranked, standings, verdict

    told = {each.point: each for each in standings(points, objective)}
    rows = [header(names, points, objective), *(cells(point, points, objective, told.get(point)) for point in ranked(points, objective))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        paper().print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), soft_wrap=True)
    paper().print("\n" + verdict(names, points, objective))

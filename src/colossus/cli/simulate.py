"""``colossus simulate``: months of a job on a machine, with its faults, recovery, power and money, in seconds."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import paper, print_json, talk
from colossus.cli.simulating import simulation_options

if TYPE_CHECKING:
    from colossus.cli.simulating import Ordered
    from colossus.spec.run import Run
    from colossus.spec.simulation import Simulation

# A bar is shown of what takes longer.
_PATIENCE_S = 2.0
# Of the first replica's standstills, how many are told one by one.
_MOST_INCIDENTS = 20_000
_LIVE_S, _REDRAW_S, _LINE_EVERY_S = 30.0, 0.1, 1.0


@click.command("simulate")
@simulation_options
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Play it so often, each with a chance of its own, and show the spread."
)
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write the page here too; it always lies in the simulation's folder.")
@click.option("--plots", metavar="FOLDER", type=click.Path(path_type=Path), help="Write every plot as SVG, and as PNG where colossus[png] is installed.")
@click.option("--live", is_flag=True, help="Watch it: where time goes, nodes, power, interruptions, played in the terminal. Ctrl-C ends the show.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Of --live: simulated seconds in a second; default so that all takes 30 s.")
def command(job: str, machine: str, page: Path | None, plots: Path | None, as_json: bool, **options: Any) -> None:
    """Simulate JOB on a machine: goodput and every loss, interruptions by cause, time to train, energy and money.

    JOB: a job file, a model of the catalog (colossus models), or a Hugging Face config.json. The plan chooses the layout, as colossus plan does.
    """
    from colossus.cli.simulating import order

    if options["speed"] is not None and not options["live"]:
        raise click.UsageError("--speed: only of --live")
    if options["speed"] is not None and not options["speed"] < math.inf:
        raise click.UsageError(f"--speed {options['speed']:g}: must be a number above zero, e.g. 86400, a day in a second")
    ordered = order(job, machine, options)
    simulation = _simulate(ordered, options["replicas"])
    run = _write(ordered, simulation, options["runs"])
    _write_pictures(simulation, page, plots)
    if options["live"]:
        _play(simulation, options["speed"])
    if as_json:
        print_json(simulation.to_data())
    else:
        show(simulation)
    talk().print(f"simulation: {run.folder}")


def _simulate(ordered: Ordered, num_replicas: int) -> Simulation:
    from colossus.cli.simulating import doubts
    from colossus.twin import simulate

    with progress("replicas", num_replicas) as tell:
        found = simulate(ordered.workload, ordered.machine, ordered.scenario, num_replicas=num_replicas, num_incidents=_MOST_INCIDENTS, on_replica=tell)
    notes = [*doubts(found), *found.notes, *ordered.notes]
    if len(found.incidents) >= _MOST_INCIDENTS:
        notes.append(f"Of the standstills only the {_MOST_INCIDENTS:,} costliest are told one by one.")
    return found.model_copy(update={"notes": notes})


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every few seconds elsewhere, from two seconds on; silent for what is done before. Yields what tells how many are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = talk()
    columns = (TextColumn("simulating {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True)
    task = bars.add_task(what, total=total)
    began_s = said_s = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said_s
        bars.update(task, completed=done)
        now_s = time.monotonic()
        if now_s - began_s < _PATIENCE_S or done >= total:
            return
        if console.is_terminal:
            bars.start()
        elif now_s - said_s > 5 * _PATIENCE_S:
            said_s = now_s
            console.print(f"simulating {what}: {done} of {total}")

    try:
        yield tell
    finally:
        if bars.live.is_started:
            bars.stop()


def _write(ordered: Ordered, simulation: Simulation, runs: Path) -> Run:
    """The folder: what came of it, its events, its page."""
    from colossus.report.simulation_page import page as page_of
    from colossus.spec.run import create_simulation, write_atomic
    from colossus.twin.simulate import simulated_events

    text = page_of(simulation)  # before the folder is there: what cannot be drawn leaves none
    run = create_simulation(runs, _file_name(simulation.name))
    write_atomic(run.simulation, simulation.to_json())
    with run.events.open("w", encoding="utf-8") as file:
        file.writelines(event.to_line() + "\n" for event in simulated_events(ordered.workload, ordered.machine, ordered.scenario))
    write_atomic(run.folder / "simulation.html", text)
    return run


def _file_name(name: str) -> str:
    """Of a job's name, what any file system takes."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "job"


def _write_pictures(simulation: Simulation, page: Path | None, folder: Path | None) -> None:
    from colossus.cli.files import write_file
    from colossus.report.simulation_page import page as page_of
    from colossus.report.simulation_plots import plots
    from colossus.report.simulation_words import heading

    if page is not None:
        write_file(page, page_of(simulation), what="page")
    if folder is not None:
        from colossus.cli.plots import write_plots

        write_plots(folder, [(plot.name, plot.picture().alone(heading(simulation))) for plot in plots(simulation)])


def _play(simulation: Simulation, speed: float | None) -> None:
    """In the terminal, or as plain lines where there is none; Ctrl-C ends the show, not the verb."""
    from colossus.report.simulation_live import Player, clock

    player = Player(simulation)
    speed = speed or max(1.0, player.length_s / _LIVE_S)
    console = talk()
    at_s = 0.0
    try:
        if console.is_terminal:
            from rich.live import Live

            with Live(console=console, auto_refresh=False) as live:
                for at_s in _clock(player.length_s, speed, _REDRAW_S):
                    live.update(_drawn(player, at_s), refresh=True)
            return
        for at_s in _clock(player.length_s, speed, _LINE_EVERY_S):
            console.print(_line(player, at_s))
    except KeyboardInterrupt:
        console.print(f"stopped watching at {clock(at_s)}; what follows is the whole simulation")


def _clock(length_s: float, speed: float, every_s: float) -> Iterator[float]:
    """Moments of the simulated time as real time passes, and the end."""
    began_s = time.monotonic()
    while (at_s := (time.monotonic() - began_s) * speed) < length_s:
        yield at_s
        time.sleep(min(every_s, max(0.0, (length_s - at_s) / speed)))
    yield length_s


def _drawn(player: Any, at_s: float) -> Any:
    from colossus.report.simulation_live import picture

    return picture(player.at(at_s), player.simulation)


def _line(player: Any, at_s: float) -> str:
    from colossus.report.simulation_live import line

    return line(player.at(at_s))


def show(simulation: Simulation) -> None:
    """All that the simulation came to, as text."""
    from colossus.cli.simulating import doubts
    from colossus.report import simulation_words as words

    console = paper()
    console.print(words.heading(simulation))
    console.print(f"{words.terms(simulation)}\n")
    beside = doubts(simulation)
    console.print(" ".join((words.verdict(simulation), *beside)) + "\n")
    console.print(_rows((name, value, remark) for name, value, remark in words.figures(simulation)))
    over, first = words.of_replicas(simulation), words.of_first(simulation)
    console.print(f"\nwhere the time went{over}")
    console.print(_times(simulation))
    if causes := [row for row in words.cause_rows(simulation) if row.is_met]:
        console.print(f"\nwhat interrupted the job{over}" + (f"; lost work and standstill{first}" if first else ""))
        console.print(_causes(simulation, causes))
        if told := words.standstills(simulation):
            console.print(told)
    for title, rows in (
        (f"nodes on average{over}", [(label, f"{mean:,.1f}", meaning) for _, label, mean, meaning in words.node_rows(simulation)]),
        (f"money{over}", [(name, words.money(usd), words.percent(fraction)) for name, usd, fraction, _ in words.money_rows(simulation)]),
        (f"power and money besides{over}", words.bill_rows(simulation)),
        ("what it starts from", words.plan_rows(simulation)),
        ("left open, and what it came to", words.chosen_rows(simulation)),
    ):
        if rows:
            console.print(f"\n{title}")
            console.print(_rows(rows))
    for note in simulation.notes:
        if note not in beside:
            console.print(f"note: {note}")


def _rows(rows: Any) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def _times(simulation: Simulation) -> Any:
    from colossus.report.simulation_words import time_rows
    from colossus.report.words import duration, percent

    rows = time_rows(simulation)
    return _rows((f"  {label}", duration(seconds), percent(fraction), over, "#" * round(40 * fraction)) for _, label, seconds, fraction, over in rows)


def _causes(simulation: Simulation, rows: Any) -> Any:
    from rich.table import Table

    from colossus.report.simulation_words import cause_name
    from colossus.report.words import duration, percent

    several = len(simulation.tallies) > 1
    table = Table("  cause", "times", "share", *(("9 in 10",) if several else ()), "lost work", "standstill", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        ends = (row.over,) if several else ()
        table.add_row(f"  {cause_name(row.cause)}", f"{row.number:,}", percent(row.fraction), *ends, duration(row.lost_s), duration(row.downtime_s))
    return table

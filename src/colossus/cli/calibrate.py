"""``colossus calibrate``: coefficients fitted to measured runs, the user's own included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import DEFAULT_RUNS, json_option, paper, print_json, talk

if TYPE_CHECKING:
    from colossus.catalog.measured import Coefficients
    from colossus.catalog.published import PublishedRun
    from colossus.plan.calibrate import Fit
    from colossus.plan.published import Case

OWN_FILE = Path(".cache") / "coefficients.toml"
_HEADER = "# Written by `colossus calibrate`: measured again, not edited. Meanings and priors: priors.toml beside the catalog's own.\n"
_MOST_TOLD = 8
_RUNS_PER_COEFFICIENT = 2


@click.command("calibrate")
@click.argument("own", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--rows", "files", type=click.Path(path_type=Path), multiple=True, help="Measured runs, a CSV file with the catalog's columns; may be repeated.")
@click.option("--catalog", is_flag=True, help="For maintainers: fit to the catalog's tiers A and B, and write the catalog's own coefficients.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Where to write; default .cache/coefficients.toml under the runs folder.")
@click.option("--runs", "places", type=click.Path(path_type=Path), multiple=True, help="Folder of runs and caches, default runs; or a RUN, may be repeated.")
@json_option
def command(own: tuple[Path, ...], files: tuple[Path, ...], catalog: bool, out: Path | None, places: tuple[Path, ...], as_json: bool) -> None:
    """Fit estimates to measured runs: with RUN, the plans of this machine to real runs on it; with --rows, the coefficients of chips and programs.

    RUN: a run's folder, or `last`, the newest under --runs. A few steps of one are enough: the next plan on this machine uses what was found.

    What the runs do not tell stays at its prior; no coefficient belongs to a run or a model. Chips and programs that the
    runs do not name keep the catalog's coefficients. About half a minute for 500 runs.
    """
    from colossus.catalog.measured import load_coefficients
    from colossus.cli.files import write_file

    folders, runs = own_places(own, places)
    if folders:
        _fit_own(folders, runs, as_json=as_json)
    if not (files or catalog):
        if not folders:
            raise click.UsageError("nothing to fit to: give RUN, a run's folder, or --rows FILE.csv with measured runs")
        return
    cases, left_out = _cases(_runs(files, catalog=catalog))
    known = load_coefficients()
    talk().print(f"fitting to {len(cases)} runs ({len(left_out)} left out), {_wait_words(len(cases))} ...")
    found = _fit(cases, _without_values(known) if catalog else known)
    about = [*(["published/training.csv, tiers A and B"] if catalog else []), *map(str, files)]
    data = coefficients_data(found, cases, about, kept=None if catalog else known)
    path = out or (_catalog_file() if catalog else runs / OWN_FILE)
    import tomli_w

    write_file(path, _HEADER + tomli_w.dumps(data), what="coefficients")
    _show(path, data, _errors_before(cases, known), left_out, as_json=as_json)
    _warn_of_few(found.num_effective, len(cases))


def _warn_of_few(num_decided: float, num_runs: int) -> None:
    """Runs that decide nearly as many coefficients as there are runs are matched, not learned from."""
    if num_runs < _RUNS_PER_COEFFICIENT * num_decided:
        talk().print(
            f"warning: {num_runs} {'run' if num_runs == 1 else 'runs'} decided {num_decided:.1f} coefficients' worth: the errors above flatter them, other layouts "
            f"may be further off than before; give {math.ceil(_RUNS_PER_COEFFICIENT * num_decided)} runs or more, of several layouts and sizes"
        )


def own_places(own: Sequence[Path], places: Sequence[Path]) -> tuple[list[Path], Path]:
    """The runs to fit to, and the folder of runs whose plans the fit is for; ``--runs`` may name either."""
    is_run = lambda place: str(place) == "last" or (place / "run.json").exists()
    folders = [*[place for place in places if is_run(place)], *own]
    homes = [place for place in places if not is_run(place)]
    if len(homes) > 1:
        raise click.UsageError(f"--runs names two folders that are no runs: {homes[0]} and {homes[1]}")
    near = [folder.parent for folder in folders if str(folder) != "last"]
    return folders, next(iter([*homes, *near]), DEFAULT_RUNS)


def _fit_own(folders: Sequence[Path], runs: Path, *, as_json: bool) -> None:
    from colossus.cli.hardware import own_file
    from colossus.cli.own_runs import calibrate_on
    from colossus.cli.own_times import learn_times, times_file
    from colossus.plan.own_runs import planned_s
    from colossus.spec.errors import DataError
    from colossus.spec.units import format_quantity

    times = learn_times(folders, runs)
    try:
        found, used, left_out = calibrate_on(folders, runs)
    except DataError as error:
        if times is None:
            raise
        if as_json:
            print_json({"times_file": str(times_file(runs)), "times": times.to_data(), "fit": None})
            return
        paper().print(f"{times_file(runs)}: how long the parts of a run take here, for --on twin:this\nno plan of steps was fitted: {error}")
        return
    rows = [
        {"run": run.name, "measured_step_s": run.median_s, "planned_before_s": run.planned.step_s, "planned_after_s": planned_s(run, found.factors)}
        for run in used
    ]
    if as_json:
        print_json(
            {
                "times_file": str(times_file(runs)),
                "times": times and times.to_data(),
                "file": str(own_file(runs)),
                "fit": found.to_data(),
                "runs": rows,
                "left_out": left_out,
            }
        )
        return
    console = paper()
    if times is not None:
        console.print(f"{times_file(runs)}: how long the parts of a run take here, for --on twin:this")
    console.print(f"{own_file(runs)}: fitted to {len(used)} run{'s' if len(used) > 1 else ''}; the next plan on this machine uses it")
    for row, run in zip(rows, used, strict=True):
        after_s, took = planned_s(run, found.factors), format_quantity(run.median_s, "s")
        console.print(f"  {row['run']}: a step took {took}; planned before {format_quantity(run.planned.step_s, 's')}, now {format_quantity(after_s, 's')}")
    console.print("  " + ", ".join(f"{group} x {factor:.2f}" for group, factor in found.factors.items()))
    for folder, reason in left_out.items():
        console.print(f"  left out: {folder}: {reason}")


def _runs(files: Sequence[Path], *, catalog: bool) -> list[PublishedRun]:
    """The runs of all files, and of the catalog's tiers A and B where it is fitted; a file with cells that are no numbers is refused."""
    from colossus.cli.rows import chosen_runs, refuse, unreadable

    runs = [*chosen_runs(None, "A"), *chosen_runs(None, "B")] if catalog else []
    for file in files:
        own = chosen_runs(file, "all")
        refuse(unreadable(own), origin=str(file))
        runs += own
    return runs


def _cases(runs: Sequence[PublishedRun]) -> tuple[list[Case], dict[str, str]]:
    """Runs in our terms, and by id why the others are none; raises DataError where no run is left."""
    from colossus.plan.published import case_of
    from colossus.spec.errors import ColossusError, DataError

    cases, left_out = [], {}
    for run in runs:
        try:
            cases.append(case_of(run))
        except ColossusError as error:
            left_out[run.id] = str(error)
    if not cases:
        told = "\n  ".join(list(left_out.values())[:_MOST_TOLD])
        raise DataError(f"none of {len(left_out)} runs can be estimated:\n  {told}")
    return cases, left_out


def _wait_words(num_cases: int) -> str:
    return "half a minute" if num_cases > 100 else "seconds"


def _without_values(known: Coefficients) -> Coefficients:
    """Priors alone, so that nothing outlives the runs it was fitted to."""
    from dataclasses import replace

    return replace(known, factors={}, spread={}, seen={})


def _fit(cases: Sequence[Case], start: Coefficients) -> Fit:
    from colossus.plan.calibrate import fit

    return fit(cases, start)


def coefficients_data(found: Fit, cases: Sequence[Case], about: Sequence[str], *, kept: Coefficients | None) -> dict[str, Any]:
    """The file's content. ``kept``: coefficients whose factors need not be said again."""
    import numpy as np

    from colossus.catalog.measured import SCHEMA

    factors, spread = found.coefficients.factors, found.coefficients.spread
    residual = np.abs(found.error_fraction)
    return {
        "schema": SCHEMA,
        "source": f"colossus calibrate on {len(cases)} runs of {', '.join(about)}",
        "date": _today(),
        "num_runs": len(cases),
        "num_decided": round(found.num_effective, 1),
        "median_error_fraction": round(float(np.median(residual)), 4),
        "p90_error_fraction": round(float(np.percentile(residual, 90)), 4),
        "factors": _news(factors, kept.factors if kept else {}),
        "spread": {name: list(ends) for name, ends in sorted(spread.items()) if kept is None or kept.spread.get(name) != ends},
        "seen": {name: list(chips) for name, chips in found.coefficients.seen.items() if kept is None or kept.seen.get(name) != chips},
    }


Factors = Mapping[str, Mapping[str, Mapping[str, float]]]


def _news(factors: Factors, known: Factors) -> dict[str, dict[str, dict[str, float]]]:
    """Factors that differ from the known ones, sorted by scope, key and name."""
    news: dict[str, dict[str, dict[str, float]]] = {}
    for scope, entries in sorted(factors.items()):
        for key, named in sorted(entries.items()):
            before = known.get(scope, {}).get(key, {})
            changed = {name: value for name, value in sorted(named.items()) if before.get(name) != value}
            if changed:
                news.setdefault(scope, {})[key] = changed
    return news


def _errors_before(cases: Sequence[Case], known: Coefficients) -> dict[str, float]:
    """Errors on the same runs with the coefficients that held until now."""
    import numpy as np

    from colossus.plan.calibrate import estimate_cases

    measured = np.array([case.step_s for case in cases])
    errors = np.abs(estimate_cases(cases, known).step_s / measured - 1)
    return {"median_error_fraction": float(np.median(errors)), "p90_error_fraction": float(np.percentile(errors, 90))}


def _today() -> str:
    from datetime import date

    return date.today().isoformat()


def _catalog_file() -> Path:
    from importlib.resources import files

    return Path(str(files("colossus.catalog"))) / "measured" / "coefficients.toml"


def _show(path: Path, data: Mapping[str, Any], before: Mapping[str, float], left_out: Mapping[str, str], *, as_json: bool) -> None:
    after = {name: data[name] for name in before}
    if as_json:
        print_json({"file": str(path), "num_runs": data["num_runs"], "before": dict(before), "after": after, "left_out": dict(left_out)})
        return
    percent = lambda errors: f"{errors['median_error_fraction']:.1%} at the median, {errors['p90_error_fraction']:.1%} at the 90th percentile"
    console = paper()
    console.print(f"{path}: fitted to {data['num_runs']} runs")
    console.print(f"  step time off by {percent(after)}; before, by {percent(before)}")
    for name, reason in list(left_out.items())[:_MOST_TOLD]:
        console.print(f"  left out: {name}: {reason}")
    if len(left_out) > _MOST_TOLD:
        console.print(f"  and {len(left_out) - _MOST_TOLD} more left out")

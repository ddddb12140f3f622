"""The work of a sweep: which points there are, which of them are done, and doing the others, on all cores where that pays."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossus import __version__
from colossus.report.simulation_sweep import Outcome, Point
from colossus.spec.errors import Problem, SpecError, StorageError
from colossus.spec.scenario import Scenario
from colossus.spec.scenario_keys import resolve
from colossus.spec.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from colossus.cli.simulating import Ordered

_MOST_POINTS = 10_000
# Work that is over sooner is not worth starting processes for.
_ALONE_S = 4.0
_RANGE = re.compile(r"^(?P<low>[^.]+(?:\.\d[^.]*)?)\.\.(?P<high>.+):(?P<number>\d+)$")
_BASES = (("_bytes_per_s_per_node", "B/s"), ("_bytes_per_s", "B/s"), ("_s", "s"), ("_w", "W"), ("_j", "J"))


@dataclass(frozen=True, kw_only=True)
class Dim:
    """One varied value: as the user called it, its full path, and its values as (what is shown, what is set)."""

    name: str
    path: str
    values: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One point to simulate."""

    values: tuple[str, ...]
    scenario: Scenario

    @property
    def key(self) -> str:
        return self.scenario.digest()


def parse_dim(text: str) -> Dim:
    """``spares=0,16,64`` or ``checkpoint.interval=10min..4h:5``, from the lowest to the highest by equal factors."""
    name, equals, given = (part.strip() for part in text.partition("="))
    if not equals or not name or not given:
        raise _refuse(text, "must look like NAME=A,B,C or NAME=LOW..HIGH:NUMBER")
    path = resolve(name)
    ranged = _RANGE.match(given)
    if ranged is None and ".." in given:
        raise _refuse(text, "is a range without how many values it has", f"write LOW..HIGH:NUMBER, e.g. {name}={given.partition(',')[0].partition(':')[0]}:5")
    values = _range(text, path, ranged) if ranged else [(value.strip(), value.strip()) for value in given.split(",")]
    if twice := sorted({value for value, _ in values if [shown for shown, _ in values].count(value) > 1}):
        raise _refuse(text, f"names {', '.join(twice)} twice")
    if not all(shown for shown, _ in values):
        raise _refuse(text, "has an empty value")
    return Dim(name=name, path=path, values=values)


def _range(text: str, path: str, found: re.Match[str]) -> list[tuple[str, str]]:
    base = next((base for ending, base in _BASES if path.endswith(ending)), "")
    low, high, number = _number(text, found["low"], base), _number(text, found["high"], base), int(found["number"])
    if not high < math.inf:
        raise _refuse(text, f"ends at {found['high']}, to which no factor leads", "write a finite HIGH")
    if number > _MOST_POINTS:
        raise _refuse(text, f"{number:,} values are more than {_MOST_POINTS:,}", "fewer values")
    if not (0 < low < high and number >= 2):
        raise _refuse(text, "a range needs 0 < LOW < HIGH and two values or more", "write values that are zero as a list: 0,16,64")
    values = [low * (high / low) ** (index / (number - 1)) for index in range(number)]
    if path.rpartition(".")[2].startswith("num_") or path == "seed":
        whole = sorted({round(value) for value in values})
        return [(f"{value:,}", str(value)) for value in whole]
    return [(format_quantity(value, base) if base else f"{value:.4g}", repr(value)) for value in values]


def _number(text: str, given: str, base: str) -> float:
    with contextlib.suppress(ValueError):
        return float(given)
    try:
        return parse_quantity(given, base)
    except ValueError as error:
        raise _refuse(text, f"{given!r} is {error}" if base else f"{given!r} is no number") from None


def _refuse(text: str, rule: str, hint: str | None = None) -> SpecError:
    return SpecError("sweep", [Problem(path="--vary", value=repr(text), rule=rule, hint=hint)])


def tasks(dims: Sequence[Dim], scenario_with: Callable[[tuple[str, ...]], Scenario]) -> list[Task]:
    """Every combination, its scenario checked."""
    if twice := sorted({dim.path for dim in dims if [other.path for other in dims].count(dim.path) > 1}):
        raise _refuse(twice[0], "is varied twice; give all its values in one --vary")
    number = math.prod(len(dim.values) for dim in dims)
    if number > _MOST_POINTS:
        raise _refuse(", ".join(dim.name for dim in dims), f"{number:,} combinations are more than {_MOST_POINTS:,}", "fewer values")
    found = []
    for chosen in product(*(dim.values for dim in dims)):
        more = tuple(f"{dim.path}={value}" for dim, (_, value) in zip(dims, chosen, strict=True))
        found.append(Task(values=tuple(shown for shown, _ in chosen), scenario=scenario_with(more)))
    return found


def check(ordered: Ordered, all_tasks: Sequence[Task]) -> None:
    """Each point on this machine, before any is simulated; an error names the first that cannot be."""
    from colossus.twin.simulate import check as check_one

    for task in all_tasks:
        try:
            check_one(ordered.workload, ordered.machine, task.scenario)
        except SpecError as error:
            raise SpecError(f"sweep, at {', '.join(task.values)}", error.problems, hint=error.hint) from None


def identity(ordered: Ordered, num_replicas: int) -> str:
    """Of all that every point shares: another job, machine, scenario, number of replicas or version is another sweep."""
    told = [__version__, asdict(ordered.workload), ordered.machine.to_data(), ordered.scenario.to_data(), num_replicas]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]


class Store:
    """Finished points of a sweep, one JSON line each; what a kill tore off is no point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "points.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the sweep's folder {folder}: {error.strerror or error}", hint="give another place with --runs DIR") from None

    def read(self) -> dict[str, list[Outcome]]:
        """By key; a line that is not whole or not of ours is skipped."""
        found: dict[str, list[Outcome]] = {}
        try:
            lines = self._file.read_bytes().splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                data = json.loads(line)
                found[data["key"]] = [Outcome(**each) for each in data["outcomes"]]
        return found

    def append(self, task: Task, outcomes: Sequence[Outcome]) -> None:
        """Whole or not at all: after a torn line a new one begins."""
        line = json.dumps({"key": task.key, "values": list(task.values), "outcomes": [asdict(one) for one in outcomes]}, separators=(",", ":"))
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" * torn + line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def run_tasks(ordered: Ordered, waiting: Sequence[Task], num_replicas: int) -> Iterator[tuple[Task, list[Outcome]]]:
    """Each as it is done: the first here, the others on all cores where that pays."""
    if not waiting:
        return
    began_s = time.monotonic()
    yield waiting[0], _outcomes(ordered, waiting[0].scenario, num_replicas)
    left_s = (time.monotonic() - began_s) * (len(waiting) - 1)
    cores = len(os.sched_getaffinity(0))
    if cores < 2 or left_s < _ALONE_S:
        for task in waiting[1:]:
            yield task, _outcomes(ordered, task.scenario, num_replicas)
        return
    yield from _on_all_cores(ordered, waiting[1:], num_replicas, min(cores, len(waiting) - 1))


def _on_all_cores(ordered: Ordered, waiting: Sequence[Task], num_replicas: int, num_processes: int) -> Iterator[tuple[Task, list[Outcome]]]:
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=_begin_process)
    futures: dict[Future[list[Outcome]], Task] = {pool.submit(_outcomes, ordered, task.scenario, num_replicas): task for task in waiting}
    processes = list((pool._processes or {}).values())
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:  # interrupted, or one failed: what is under way is of no use
        for process in [*processes, *(pool._processes or {}).values()]:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_process() -> None:
    """Ctrl-C is the parent's to handle; when the parent is gone, however it ended, so is this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _outcomes(ordered: Ordered, scenario: Scenario, num_replicas: int) -> list[Outcome]:
    from colossus.twin import simulate

    simulation = simulate(ordered.workload, ordered.machine, scenario, num_replicas=num_replicas, num_incidents=0)
    return [Outcome.of(one) for one in simulation.tallies]


def points_of(all_tasks: Sequence[Task], done: dict[str, list[Outcome]]) -> list[Point]:
    """Of those that are done, in the order of the sweep."""
    return [Point(values=task.values, outcomes=tuple(done[task.key])) for task in all_tasks if task.key in done]


def as_data(dims: Sequence[Dim], points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {"values": dict(zip((dim.path for dim in dims), point.values, strict=True)), "replicas": [asdict(one) for one in point.outcomes]} for point in points
    ]

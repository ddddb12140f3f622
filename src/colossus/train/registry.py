"""From a job to its Program: a decoder of ours, or a function of the user's."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.job import TrainJob
from colossus.spec.layout import Layout
from colossus.spec.run import Run, write_atomic
from colossus.train.program import Program

_KEPT_FILE = "program.py"  # as cli.launch names its copy
_KEPT_FOLDER = "program_folder.txt"


def load_program(run: Run, job: TrainJob, layout: Layout) -> Program:
    """The job's network, as the run's folder resolved it."""
    if job.program is not None:
        return call_program(job, _kept_function(run, job.program))
    from colossus.train.language import language_program

    inputs = run.load_inputs()
    return language_program(job, run.load_card(), layout, inputs.corpus, inputs.weights)


def call_program(job: TrainJob, function: Callable[..., Any]) -> Program:
    """Calls a program's function with the job's options; what it needs not is not handed over.

    The function may take ``num_sequences`` (examples in a batch) and ``seed`` beside its own options.
    """
    given: dict[str, Any] = {"num_sequences": job.batch.num_sequences, "seed": job.seed}
    taken = inspect.signature(function).parameters
    unknown = [name for name in job.options if name not in taken]
    if unknown:
        problems = [
            Problem(path=f"options.{name}", value=repr(job.options[name]), rule=f"is no parameter of {job.program}", hint=nearest(name, taken))
            for name in unknown
        ]
        raise SpecError("job", problems)
    try:
        program = function(**{name: value for name, value in given.items() if name in taken}, **job.options)
    except SystemExit as ending:
        raise _refuse(str(job.program), f"ended the process (exit code {ending.code}) instead of returning a colossus Program") from ending
    if not isinstance(program, Program):
        raise _refuse(str(job.program), f"must return a colossus Program, not {type(program).__name__}")
    return program


def read_job(path: Path) -> dict[str, Any]:
    """A copy of the ``JOB`` of a Python job file."""
    given = getattr(load_file(path), "JOB", None)
    if not isinstance(given, dict) or not given:
        value = "(absent)" if given is None else repr(given)[:60]
        raise SpecError(str(path), [Problem(path="JOB", value=value, rule="a Python job needs a dict JOB = {...} and a function program(...)")])
    return copy.deepcopy(given)


def find_function(reference: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function that ``module:function`` or ``path/to/file.py:function`` names; ``:function`` defaults to ``program``.

    Modules are imported from ``folder`` first: beside the file, or the current one, where none is given.
    """
    place, name = split_reference(reference)
    folder = folder or _home(place)
    module = load_file(Path(place), folder) if place.endswith(".py") else _import(place, folder)
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise _refuse(reference, f"{place} has no function {name!r}", nearest(name, names))
    return function


def split_reference(reference: str) -> tuple[str, str]:
    """(module or file, function)."""
    place, colon, name = reference.rpartition(":")
    return (place, name) if colon else (reference, "program")


def keep_folder(run: Run, reference: str) -> None:
    """Notes in the run where the program's own imports are found: workers have another current folder, the copy another place."""
    write_atomic(run.folder / _KEPT_FOLDER, f"{_home(split_reference(reference)[0])}\n")


def _kept_function(run: Run, reference: str) -> Callable[..., Any]:
    """The function as the run kept it, wherever the run lies now."""
    place, name = split_reference(reference)
    own, note = run.folder / _KEPT_FILE, run.folder / _KEPT_FOLDER
    folder = Path(note.read_text(encoding="utf-8").strip()) if note.is_file() else None
    return find_function(f"{own.absolute()}:{name}" if place.endswith(".py") and own.is_file() else reference, folder)


def load_file(path: Path, folder: Path | None = None) -> ModuleType:
    """Imports a Python file once; what it imports is looked for in ``folder`` first, beside it where none is given."""
    path = path.absolute()
    if not path.is_file():
        near = nearest(str(path), [str(p) for p in path.parent.glob("*.py")]) if path.parent.is_dir() else None
        raise _refuse(str(path), "no such file", near)
    name = f"colossus_program_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # before it runs: dataclasses look themselves up there
        _look_in(folder or path.parent)
        try:
            with _told(str(path)):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _import(place: str, folder: Path) -> ModuleType:
    _look_in(folder)
    with _told(place):
        return importlib.import_module(place)


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """Whatever a user's file does while it is imported becomes an error in words."""
    try:
        yield
    except SystemExit as ending:
        rule = f"ends the process (exit code {ending.code}) when it is imported"
        raise _refuse(place, rule, "put what it does as a program under: if __name__ == '__main__'") from ending
    except ModuleNotFoundError as error:
        hint = "write module:function or path/to/file.py:function; modules are looked for in the current folder, beside the file, and among the installed"
        raise _refuse(place, f"no module {error.name!r}", hint) from error
    except Exception as error:
        raise _refuse(place, f"cannot be imported: {type(error).__name__}: {error}") from error


def _home(place: str) -> Path:
    return Path(place).absolute().parent if place.endswith(".py") else Path.cwd()


def _look_in(folder: Path) -> None:
    """Puts a folder first among those that modules are imported from."""
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    importlib.invalidate_caches()


def _refuse(reference: str, rule: str, hint: str | None = None) -> SpecError:
    return SpecError("job", [Problem(path="program", value=reference, rule=rule, hint=hint)])

"""From a job to its Program: a decoder of ours, or a function of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.job import TrainJob
from colossus.spec.layout import Layout
from colossus.spec.run import Run
from colossus.train.program import Program


def load_program(run: Run, job: TrainJob, layout: Layout) -> Program:
    """The job's network, as the run's folder resolved it."""
    if job.program is not None:
        return call_program(job)
    from colossus.train.language import language_program

    inputs = run.load_inputs()
    return language_program(job, run.load_card(), layout, inputs.corpus, inputs.weights)


def call_program(job: TrainJob) -> Program:
    """Calls ``module:function`` or ``file.py:function`` with the job's options; what it needs not is not handed over.

    The function may take ``num_sequences`` (examples in a batch) and ``seed`` beside its own options.
    """
    function = find_function(job.program or "")
    given: dict[str, Any] = {"num_sequences": job.batch.num_sequences, "seed": job.seed}
    taken = inspect.signature(function).parameters
    unknown = [name for name in job.options if name not in taken]
    if unknown:
        problems = [
            Problem(path=f"options.{name}", value=repr(job.options[name]), rule=f"is no parameter of {job.program}", hint=nearest(name, taken))
            for name in unknown
        ]
        raise SpecError("job", problems)
    program = function(**{name: value for name, value in given.items() if name in taken}, **job.options)
    if not isinstance(program, Program):
        raise SpecError("job", [Problem(path="program", value=str(job.program), rule=f"must return a colossus Program, not {type(program).__name__}")])
    return program


def find_function(reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``path/to/file.py:function`` names; ``:function`` defaults to ``program``."""
    place, name = split_reference(reference)
    module = load_file(Path(place)) if place.endswith(".py") else _import(place, reference)
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise SpecError("job", [Problem(path="program", value=reference, rule=f"{place} has no function {name!r}", hint=nearest(name, names))])
    return function


def split_reference(reference: str) -> tuple[str, str]:
    """(module or file, function)."""
    place, colon, name = reference.rpartition(":")
    return (place, name) if colon else (reference, "program")


def _import(place: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        rule = f"no module {error.name!r}"
        raise SpecError("job", [Problem(path="program", value=reference, rule=rule, hint="write module:function or path/to/file.py:function")]) from None


def load_file(path: Path) -> ModuleType:
    """Imports a Python file once."""
    if not path.is_file():
        near = nearest(str(path), [str(p) for p in path.parent.glob("*.py")]) if path.parent.is_dir() else None
        raise SpecError("job", [Problem(path="program", value=str(path), rule="no such file", hint=near)])
    name = f"colossus_program_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            problem = Problem(path="program", value=str(path), rule=f"cannot be imported: {type(error).__name__}: {error}")
            raise SpecError("job", [problem]) from error
        sys.modules[name] = module
    return sys.modules[name]

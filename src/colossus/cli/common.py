"""What several verbs share: options, consoles, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DEFAULT_RUNS = Path("runs")
ADDRESS = re.compile(r"(https?://\S+|([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}(/\S*)?)")  # of a server; all else may be a model


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")(function)


def runs_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--runs", type=click.Path(path_type=Path), default=DEFAULT_RUNS, show_default=True, help="Folder of runs and caches.")(function)


def set_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--set", "assignments", multiple=True, metavar="PATH=VALUE", help="Change one value of the job file; may be repeated.")(function)


def run_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))(function)


def print_json(data: Any) -> None:
    """Data on stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
    sys.stdout.flush()


class _Stderr:
    """stderr as a console's file. When its other end is gone (a closed terminal, a pipe without reader), talk is lost, not the run."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except BlockingIOError:  # its reader is slow
            pass
        except OSError:
            with contextlib.suppress(OSError):  # what waits in its buffer must not fail at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def talk() -> Any:
    """The console for people: stderr."""
    from rich.console import Console

    stderr: Any = _Stderr()
    return Console(file=stderr, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())


def paper() -> Any:
    """The console for results: stdout."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)


class KillType(click.ParamType[Any]):
    """``RANK@STEP``."""

    name = "rank@step"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        rank, at, step = str(value).partition("@")
        if not (at and rank.isdigit() and step.isdigit()):
            self.fail(f"{value!r} must look like RANK@STEP, e.g. 1@100", param, ctx)
        return int(rank), int(step)


kill_option = click.option("--kill", "kills", type=KillType(), multiple=True, help="SIGKILL a worker once that step is done, to see the run survive it.")

"""Driving the real command line from tests: start it, follow its events, find its workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from colossus.spec.event import Event, read_events

JOB = Path(__file__).parent / "linear_job.py"
_PATIENCE_S = 240.0


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return kept | {"JAX_PLATFORMS": "cpu", "COLUMNS": "120"}


def start(*arguments: Any, runs: Path) -> subprocess.Popen[str]:
    """``colossus ARGUMENTS --runs RUNS`` in the background."""
    command = [sys.executable, "-m", "colossus.cli", *map(str, arguments)]
    if arguments[0] in ("train", "machine", "plan"):
        command += ["--runs", str(runs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def finish(process: subprocess.Popen[str], *, code: int | None = 0) -> tuple[str, str]:
    """Waits for its end; (stdout, stderr)."""
    out, err = process.communicate(timeout=_PATIENCE_S)
    assert code is None or process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def run(*arguments: Any, runs: Path, code: int | None = 0) -> tuple[str, str]:
    return finish(start(*arguments, runs=runs), code=code)


def train(runs: Path, *arguments: Any) -> dict[str, Any]:
    """Trains the linear job to its end and returns its report."""
    return json.loads(run("train", JOB, "--json", *arguments, runs=runs)[0])


def events(folder: Path, kind: str | None = None) -> list[Event]:
    if not (folder / "events.jsonl").exists():
        return []
    return [event for event in read_events(folder / "events.jsonl") if kind in (None, event.kind)]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, what: str = "") -> Any:
    """Polls until ``condition`` gives something; fails when the process ends first or nothing comes."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended before {what}: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def step_of(folder: Path) -> int:
    return max((event.payload["step"] for event in events(folder, "step")), default=0)


def gang(folder: Path) -> list[int]:
    """Process ids of the newest gang, by rank."""
    return events(folder, "attempt_started")[-1].payload["pids"]


def alive(pids: list[int]) -> list[int]:
    """Those that still run (a zombie does not)."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def children(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step; a step done twice must have given the same bits."""
    found: dict[int, float] = {}
    for event in events(folder, "step"):
        loss = found.setdefault(event.payload["step"], event.payload["loss"])
        assert loss == event.payload["loss"], event
    return found

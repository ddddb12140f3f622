"""Has gangs of workers time the trainer's kernels (train/probe.py), each with the threads, cores and memory that workers get."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossus.engine.coordination import CoordinationService
from colossus.engine.process import share_of_cores
from colossus.spec.errors import ColossusError, EngineError
from colossus.spec.kernels import Probe, ProbeOrder

_GRACE_S = 600.0
_LOOK_S = 0.05


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A measuring worker. What it says goes to files, which never fill up as an unread pipe does."""

    rank: int
    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def last_words(self) -> str:
        """The last line of its errors, or else how it ended."""
        lines = self.err.read_text(errors="replace").strip().splitlines()
        code = self.process.poll() or 0
        return lines[-1][:300] if lines else f"killed by {signal.Signals(-code).name}" if code < 0 else "ended without a word"


def time_kernels(sizes: list[int], *, duration_s: float, environment: Mapping[str, str], on_gang: Callable[[int], None] = lambda _: None) -> list[Probe]:
    """One gang after the other, of so many workers each; about ``duration_s`` in all, and some seconds to compile."""
    probes = []
    for num_workers in sizes:
        on_gang(num_workers)
        probes.append(_probe(num_workers, duration_s / len(sizes), environment))
    return probes


def _probe(num_workers: int, duration_s: float, environment: Mapping[str, str]) -> Probe:
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(CoordinationService(num_workers)) if num_workers > 1 else None
        address = None if service is None else service.address
        orders = [
            ProbeOrder(rank=rank, num_workers=num_workers, address=address, cores=share_of_cores(rank, num_workers), duration_s=duration_s)
            for rank in range(num_workers)
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="colossus-kernels-")))
        children: list[_Child] = []
        stack.callback(_end, children)
        for order in orders:
            children.append(_start(order, environment, folder))
        return _answer(children)


def _command(order: ProbeOrder) -> list[str]:
    return [sys.executable, "-m", "colossus.train.probe", json.dumps(order.to_data())]


def _start(order: ProbeOrder, environment: Mapping[str, str], folder: Path) -> _Child:
    out, err = folder / f"{order.rank}.out", folder / f"{order.rank}.err"
    with out.open("wb") as said, err.open("wb") as complained:
        process = subprocess.Popen(_command(order), stdin=subprocess.DEVNULL, stdout=said, stderr=complained, env=os.environ | dict(environment))
    return _Child(rank=order.rank, process=process, out=out, err=err)


def _answer(children: Sequence[_Child]) -> Probe:
    """What rank 0 says in the end; where a child fails, at once EngineError with that child's last words."""
    until_s = time.monotonic() + _GRACE_S
    while (code := children[0].process.poll()) is None:
        _refuse_failed(children)
        if time.monotonic() > until_s:
            raise _failure(f"no answer in {_GRACE_S:.0f} s")
        time.sleep(_LOOK_S)
    if code != 0:
        _refuse_failed(children)
    try:
        return Probe.from_data(json.loads(children[0].out.read_text().strip().splitlines()[-1]), origin="probe")
    except (ValueError, IndexError, ColossusError):
        raise _failure(children[0].last_words) from None


def _refuse_failed(children: Sequence[_Child]) -> None:
    """Blames the child that fell silent first: others may have died of its death."""
    if failures := [child for child in children if child.process.poll() not in (None, 0)]:
        failed = min(failures, key=lambda child: child.err.stat().st_mtime_ns)
        raise _failure((f"rank {failed.rank}: " if len(children) > 1 else "") + failed.last_words)


def _failure(words: str) -> EngineError:
    return EngineError(f"measuring the trainer's kernels failed: {words}", hint="plan without them: colossus machine")


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.kill()
    for child in children:
        child.process.wait()

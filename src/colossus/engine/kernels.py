"""Has gangs of workers time the trainer's kernels (train/probe.py), each with the threads, cores and memory that workers get."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from colossus.engine.coordination import CoordinationService
from colossus.engine.process import share_of_cores
from colossus.spec.errors import ColossusError, EngineError
from colossus.spec.kernels import Probe, ProbeOrder

_GRACE_S = 600.0


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
        children = [_start(order, environment) for order in orders]
        stack.callback(_end, children)
        return _answer(children)


def _start(order: ProbeOrder, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "colossus.train.probe", json.dumps(order.to_data())]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=os.environ | dict(environment))


def _answer(children: list[subprocess.Popen[str]]) -> Probe:
    """What rank 0 says; where a child fails, EngineError with its last words."""
    try:
        out, err = children[0].communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        out, err = "", f"no answer in {_GRACE_S:.0f} s"
    try:
        return Probe.from_data(json.loads(out.strip().splitlines()[-1]), origin="probe")
    except (ValueError, IndexError, ColossusError):
        words = (err.strip().splitlines() or ["ended without a word"])[-1]
        raise EngineError(f"measuring the trainer's kernels failed: {words[:300]}", hint="plan without them: colossus machine") from None


def _end(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        child.kill()
        child.communicate()

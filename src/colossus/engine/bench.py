"""Runs the probe on all cores: one child a core at once, then one child on all; the higher GEMM rate is the peak."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colossus.spec.errors import EngineError

# Shares of the time: one child a core (GEMM, triad), one child on all cores (GEMM).
_GEMM_SHARE, _TRIAD_SHARE, _TOGETHER_SHARE = 0.4, 0.3, 0.3
_GRACE_S = 120.0
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates of all cores together, and how each was obtained."""

    gemm_flop_per_s: float
    gemm_source: str
    triad_bytes_per_s: float
    triad_source: str


def measure_cores(cores: list[int], memory_bytes: int, seconds: float) -> Measured:
    """Raises EngineError with a child's last words when one fails."""
    mebibytes = _array_mebibytes(len(cores), memory_bytes)
    apart = _probe([str(core) for core in cores], 1, [seconds * _GEMM_SHARE, seconds * _TRIAD_SHARE, mebibytes])
    together = _probe(["all"], len(cores), [seconds * _TOGETHER_SHARE, 0, mebibytes])
    sum_flop_per_s = sum(answer["gemm_flop_per_s"] for answer in apart)
    all_flop_per_s = together[0]["gemm_flop_per_s"]
    how = "one process per core, per CPU second" if sum_flop_per_s >= all_flop_per_s else "one process on all cores"
    cores_words = f"{len(cores)} core{'s' if len(cores) > 1 else ''}"
    return Measured(
        gemm_flop_per_s=max(sum_flop_per_s, all_flop_per_s),
        gemm_source=f"best NumPy float32 GEMM, {cores_words}, {how}",
        triad_bytes_per_s=sum(answer["triad_bytes_per_s"] for answer in apart),
        triad_source=f"triad a = b + s c over {mebibytes} MiB arrays, {cores_words}, one process per core",
    )


def _probe(cores: list[str], num_threads: int, arguments: list[float]) -> list[dict[str, float]]:
    """Starts one child for each of ``cores``, lets all go once all are ready, and gathers their answers."""
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
    commands = [[sys.executable, "-m", "colossus.engine.probe", core, *map(str, arguments)] for core in cores]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_child(command, environment)) for command in commands]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        for child in children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # of a child that is gone; its last words are read below
                child.stdin.write("go\n")
                child.stdin.flush()
        return [_answer(child) for child in children]


@contextlib.contextmanager
def _child(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def _answer(child: subprocess.Popen[str]) -> dict[str, float]:
    try:
        out, err = child.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        out, err = "", f"no answer in {_GRACE_S:.0f} s"
    try:
        rates: dict[str, float] = json.loads(out)
        return rates
    except ValueError:
        words = (err.strip().splitlines() or ["ended without a word"])[-1]
        raise EngineError(f"measuring this machine failed: {words}", hint="describe it without measuring: colossus machine --no-measure") from None


def _array_mebibytes(num_cores: int, memory_bytes: int) -> int:
    """Each child's arrays: together four times the last-level cache, at least 16 MiB each, at most an eighth of memory."""
    cache_mebibytes = _last_level_cache_bytes() / 2**20
    wanted = max(16, 4 * cache_mebibytes / num_cores)
    return max(1, int(min(wanted, memory_bytes / 2**20 / 8 / 3 / num_cores)))


def _last_level_cache_bytes() -> int:
    """The largest cache that Linux tells of, 32 MiB where it tells of none."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        scale = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=32 * 2**20)

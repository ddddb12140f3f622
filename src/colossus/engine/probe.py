"""A child process that measures what its cores can do: ``python -m colossus.engine.probe CORE GEMM_S TRIAD_S MIB``.

CORE is a core's number, or "all". It says "ready", waits for a line, measures, and answers with one line of JSON. One
child a core, all let go at once, load the machine as one training process per core does. Rates on one core are per
second of the child's own CPU time, so that neighbours on the machine lower them little; on all cores per wall second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

# (M, K, N): large, square and as wide as transformer layers are; libraries differ in which they like.
_GEMM_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 1024), (4096, 1024, 512), (3072, 3072, 3072))
# Elements of a block of the triad: three blocks of float64 stay in a core's second-level cache.
_TRIAD_BLOCK = 16384


def gemm_flop_per_s(clock: Callable[[], float], duration_s: float) -> float:
    """Best rate of 2 M K N over the time of C = A B in float32, each shape at least once, until the time is over."""
    best, begin = 0.0, time.monotonic()
    while True:
        for m, k, n in _GEMM_SHAPES:
            one, other, out = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.empty((m, n), np.float32)
            np.matmul(one[:256], other, out=out[:256])
            start = clock()
            np.matmul(one, other, out=out)
            best = max(best, 2.0 * m * k * n / (clock() - start))
            if time.monotonic() - begin > duration_s and best > 0:
                return best


def triad_bytes_per_s(clock: Callable[[], float], duration_s: float, num_bytes: int) -> float:
    """Best rate of a = b + s c over arrays that no cache holds, counted as STREAM does: 3 x 8 bytes an element.

    J. McCalpin, "Memory bandwidth and machine balance in current high performance computers", IEEE TCCA (1995). Block
    by block, so that NumPy's temporary stays in cache. The write's own fetch from memory is not counted. Every page is
    written once before the clock starts: on a fresh virtual machine a page's first touch costs ten times its use.
    """
    size = num_bytes // 8
    a, b, c = np.ones(size), np.ones(size), np.ones(size)
    best, begin = 0.0, time.monotonic()
    while True:
        start = clock()
        for low in range(0, size, _TRIAD_BLOCK):
            block = slice(low, low + _TRIAD_BLOCK)
            np.multiply(c[block], 3.0, out=a[block])
            np.add(a[block], b[block], out=a[block])
        best = max(best, 24.0 * size / (clock() - start))
        if time.monotonic() - begin > duration_s:
            return best


def main(core: str, gemm_s: float, triad_s: float, mebibytes: int) -> None:
    clock = time.perf_counter if core == "all" else time.process_time
    if core != "all" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    answer = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    if gemm_s > 0:
        answer["gemm_flop_per_s"] = gemm_flop_per_s(clock, gemm_s)
    if triad_s > 0:
        answer["triad_bytes_per_s"] = triad_bytes_per_s(clock, triad_s, mebibytes * 2**20)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))

"""The trainer's kernels timed by real gangs, and what a failing one says."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from colossus.engine import kernels
from colossus.engine.process import worker_environment
from colossus.estimate.kernel_fit import rates_of
from colossus.spec.errors import EngineError


@pytest.mark.slow
def test_a_gang_of_two_times_everything_that_a_step_is_made_of():
    (probe,) = kernels.time_kernels([2], duration_s=1.0, environment=worker_environment("cpu"))
    assert {timing.kind for timing in probe.timings} == {
        *("product", "attention", "head", "elementwise", "slices", "update", "reduce", "gather", "step", "compile"),
    }
    assert {timing.variant for timing in probe.timings if timing.kind == "step"} == {"dp", "fsdp"}
    rates = rates_of(probe)
    assert 1e8 < rates.gemm_flop_per_s < 1e13 and rates.reduce_bytes_per_s and rates.gather_bytes_per_s
    assert rates.lower_fraction <= 1 <= rates.upper_fraction


def test_a_child_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(kernels, "share_of_cores", lambda rank, num_workers: [100_000])
    with pytest.raises(EngineError, match="Invalid argument"):
        kernels.time_kernels([1], duration_s=1.0, environment=worker_environment("cpu"))


def test_the_disk_is_timed_and_left_clean(tmp_path):
    assert kernels.disk_bytes_per_s(tmp_path) > 1e5
    assert not list(tmp_path.iterdir())


_FAULTS = """
import resource
import jax, jax.numpy as jnp
x = jnp.ones((2048, 2048))
step = jax.jit(lambda x: [jnp.sin(x + i) @ x for i in range(8)])
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    before = faults()
    jax.block_until_ready(step(x))
print(faults() - before)
"""


@pytest.mark.slow
def test_workers_keep_the_memory_of_a_step():
    """A step's temporaries come from pages that the process already has; given back and taken anew they cost a third of a step (LAB.md)."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc reads the tunables")
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | worker_environment("cpu")
    done = subprocess.run([sys.executable, "-c", _FAULTS], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100

"""The trainer's kernels timed by real gangs, and what a failing one says."""

from __future__ import annotations

import pytest

from colossus.engine import kernels
from colossus.engine.process import worker_environment
from colossus.estimate.kernel_fit import rates_of
from colossus.spec.errors import EngineError


@pytest.mark.slow
def test_a_gang_of_two_times_everything_that_a_step_is_made_of(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # a worker has one device
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

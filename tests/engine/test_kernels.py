"""The trainer's kernels timed by real gangs, and what a failing one says."""

from __future__ import annotations

import json
import sys
import time

import pytest

from colossus.engine import kernels
from colossus.engine.process import worker_environment
from colossus.estimate.kernel_fit import rates_of
from colossus.spec.errors import EngineError
from colossus.spec.kernels import Probe
from colossus.spec.model import ModelCard


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


def stand_ins(monkeypatch, *programs: str) -> Probe:
    """Children that run these programs, one a rank."""
    monkeypatch.setattr(kernels, "_command", lambda order: [sys.executable, "-c", programs[order.rank]])
    (probe,) = kernels.time_kernels([len(programs)], duration_s=1.0, environment={})
    return probe


WAITS = "import time; time.sleep(60)"
PROBE = Probe(
    num_workers=2,
    num_rounds=1,
    fused=False,
    step_card=ModelCard(vocab_size=8, num_layers=1, model_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, ffn_dim=8),
    timings=[],
)


@pytest.mark.parametrize(
    ("death", "words"),
    [("import sys; sys.exit('the disk is on fire')", "rank 1: the disk is on fire"), ("import os; os.kill(os.getpid(), 9)", "rank 1: killed by SIGKILL")],
)
def test_any_child_that_fails_ends_the_wait_with_its_words(monkeypatch, death, words):
    begin = time.monotonic()
    with pytest.raises(EngineError, match=words):
        stand_ins(monkeypatch, WAITS, death)
    assert time.monotonic() - begin < 20


def test_children_that_talk_much_block_nobody(monkeypatch, tmp_path):
    done = tmp_path / "done"
    talks = f"import sys, pathlib; sys.stderr.write('x' * 2**20); sys.stdout.write('y' * 2**20); pathlib.Path({str(done)!r}).touch()"
    answers = f"import pathlib, time\nwhile not pathlib.Path({str(done)!r}).exists(): time.sleep(0.05)\nprint({json.dumps(PROBE.to_data())!r})"
    monkeypatch.setattr(kernels, "_GRACE_S", 20.0)
    assert stand_ins(monkeypatch, answers, talks) == PROBE


def test_children_that_say_nothing_are_given_up(monkeypatch):
    monkeypatch.setattr(kernels, "_GRACE_S", 1.0)
    with pytest.raises(EngineError, match="no answer in 1 s"):
        stand_ins(monkeypatch, WAITS)


def test_the_first_to_die_is_blamed_not_those_who_died_of_it(monkeypatch):
    late = "import sys, time; time.sleep({}); sys.exit('{}')"
    monkeypatch.setattr(kernels, "_LOOK_S", 2.0)
    with pytest.raises(EngineError, match="rank 1: out of memory"):
        stand_ins(monkeypatch, late.format(0.7, "connection closed by peer"), late.format(0.2, "out of memory"))

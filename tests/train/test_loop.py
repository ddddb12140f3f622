"""The step loop on its own: what a step's duration holds."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from colossus.report import summarize
from colossus.spec.causes import Cause
from colossus.spec.event import Event, read_events
from colossus.spec.job import TrainJob
from colossus.train import loop
from colossus.train.checkpoint import _name
from colossus.train.profile import StepProfile

PROFILING_S = 0.2


@contextlib.contextmanager
def slow_profile(program: Any):
    """Takes PROFILING_S to begin and again to end."""
    profile = StepProfile()
    time.sleep(PROFILING_S)
    yield profile
    time.sleep(PROFILING_S)
    profile.parts_s = {"gemm": 0.001}


def run_loop(folder: Path) -> list[Event]:
    data = {
        "name": "a",
        "num_steps": 8,
        "model": "llama-3m",
        "data": {"sources": ["x.txt"]},
        "batch": {"num_sequences": 8, "sequence_tokens": 16},
        "optimizer": {"warmup_steps": 0},
    }
    measured = {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 1e-3, "applied": True, "metrics": {}, "requests": np.zeros(len(loop.REQUESTS))}
    log = loop.EventLog(folder / "events.jsonl", {"rank": 0})
    setup = loop.Setup(
        job=TrainJob.from_data(data, origin="test"),
        step=lambda state, batch, limit, requests: (state, measured),
        evaluate=lambda params, batch: None,
        feed=cast("Any", SimpleNamespace(train=lambda step: None)),
        requests_sharding=NamedSharding(Mesh(np.array(jax.devices()[:1]), ("dp",)), PartitionSpec("dp")),
        agree=lambda name, value: value or "",
        on_busy=lambda what: None,
        restore=lambda step: (None, {}),
        disk=cast("Any", SimpleNamespace(busy=False, failure=None, wait=lambda: None, save=lambda *_: 0.0, room_problem=lambda state: None)),
        ram=None,
        log=log,
        is_leader=True,
        mtbf_s=1e6,
        checkpoint_folder=folder,
        profiles=True,
    )
    log.tell("run_started", name="a", num_workers=1, num_steps=8, layout={}, platform="cpu")
    loop.Loop(setup, {"step": 0}, {}, on_disk=False, on_progress=lambda step, step_s: None).run()
    return list(read_events(folder / "events.jsonl"))


def test_profiling_a_step_is_not_the_steps_time(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "profiled", slow_profile)
    events = run_loop(tmp_path)
    steps = {event.payload["step"]: event for event in events if event.kind == "step"}
    parts = next(event for event in events if event.kind == "step_parts")
    assert parts.payload["step"] == 6 and len(steps) == 8
    assert max(step.payload["duration_s"] for step in steps.values()) < PROFILING_S / 2
    assert steps[6].time_s - steps[5].time_s == pytest.approx(PROFILING_S, abs=PROFILING_S / 2)
    found = summarize(events)
    assert found.badput_s[Cause.OTHER] > 1.9 * PROFILING_S
    assert found.goodput_s + sum(found.badput_s.values()) == pytest.approx(found.wall_s)


def test_a_given_interval_counts_from_the_newest_save_not_from_the_last_recovery(tmp_path):
    assert loop.last_asked(tmp_path, 0, 100) == 0
    for step in (100, 200, 400):
        (tmp_path / f"{_name(step)}.json").write_text("{}")
    assert loop.last_asked(tmp_path, 390, 100) == 200
    assert loop.last_asked(tmp_path, 400, 100) == 400
    assert loop.last_asked(tmp_path, 390, None) == 390

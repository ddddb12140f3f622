"""``colossus calibrate RUN`` and ``plan --on this``: runs of this machine, the next plan, and what cannot be used."""

from __future__ import annotations

import json
import time

import pytest

from colossus.cli.calibrate import own_places
from colossus.cli.launch import make_plan, resolve_model
from colossus.engine.machine import describe_machine
from colossus.spec.event import Event, append_events
from colossus.spec.job import load_job
from colossus.spec.kernels import Kernels
from colossus.spec.machine import Machine
from colossus.spec.run import Inputs, Run, create_run, write_atomic
from tests.cli.calling import call, write_job
from tests.plan.rates import RATES

STEP_S = 0.5


@pytest.fixture
def machine(tmp_path) -> Machine:
    """This machine as if its kernels had been measured, remembered in the folder of runs."""
    found = describe_machine(measure=False)
    found = found.model_copy(update={"kernels": Kernels(date="2026-11-25", source="test", gangs=[RATES])})
    folder = tmp_path / "runs" / ".cache"
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(found.to_json())
    return found


def made_run(tmp_path, machine: Machine, *, steps: int = 8, **changes: str) -> Run:
    """A run whose every step took STEP_S."""
    text = tmp_path / "corpus.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    job = load_job(write_job(tmp_path, text, num_workers="1", **changes))
    card = resolve_model(job)[0]
    assert card is not None
    run = create_run(tmp_path / "runs", job)
    write_atomic(run.card, card.to_json())
    write_atomic(run.inputs, Inputs(corpus=tmp_path).to_json())
    write_atomic(run.machine, machine.to_json())
    plan = make_plan(job, machine, card)
    write_atomic(run.plan, plan.to_json())
    tell = lambda kind, **payload: append_events(run.events, [Event(time_s=time.time(), kind=kind, payload=payload)])
    started = {"name": "small", "num_workers": 1, "num_steps": 30, "layout": "x", "platform": "cpu", "planned": plan.expectation().to_data()}
    tell("run_started", **started)
    tell("attempt_started", attempt=1, num_workers=1, how="start", pids=[1])
    for step in range(1, steps + 1):
        took = {"duration_s": STEP_S, "data_s": 0.0, "blocked_s": 0.0, "memory_bytes": 10**9}
        tell("step", step=step, loss=3.0, grad_norm=1.0, learning_rate=1e-3, applied=True, **took)
    return run


@pytest.fixture
def say(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def do(*arguments, code=0):
        found, out, err = call(capsys, monkeypatch, *arguments)
        assert found == code and "Traceback" not in err, err
        return out if code == 0 else err

    return do


def planned_step(say, tmp_path) -> dict:
    return json.loads(say("plan", tmp_path / "job.toml", "--on", "this", "--workers", 1, "--runs", tmp_path / "runs", "--json"))["step"]


def test_after_one_run_the_next_plan_is_this_machines(say, tmp_path, machine):
    run = made_run(tmp_path, machine)
    before = planned_step(say, tmp_path)["step_s"]
    assert before != pytest.approx(STEP_S, rel=0.2)
    told = json.loads(say("calibrate", "--runs", run.folder, "--json"))
    assert told["fit"]["num_runs"] == 1 and told["runs"][0]["planned_before_s"] == pytest.approx(before)
    after = planned_step(say, tmp_path)
    assert after["step_s"] == pytest.approx(STEP_S, rel=0.05) and "calibrated on 1 run" in after["source"]
    again = json.loads(say("calibrate", run.folder, "--json"))
    assert again["fit"]["factors"] == told["fit"]["factors"], "fitted to plans without the last fit"


def test_the_report_of_a_run_shows_its_plan_and_what_to_do(say, tmp_path, machine):
    run = made_run(tmp_path, machine)
    told = say("report", run.folder)
    assert "planned against measured" in told and "colossus calibrate" in told
    rows = {row["name"]: row for row in json.loads(run.report_json.read_text())["planned"]}
    assert rows["step"]["measured"] == STEP_S and rows["peak memory"]["planned"]
    assert "Planned against measured" in run.report_html.read_text()


@pytest.mark.parametrize(("spoil", "reason"), [("steps", "2 steps"), ("machine", "another machine"), ("card", "program of its own"), ("folder", "not a run")])
def test_runs_that_cannot_be_used_are_left_out_with_their_reason(say, tmp_path, machine, spoil, reason):
    good = made_run(tmp_path, machine)
    bad = made_run(tmp_path, machine, steps=4 if spoil == "steps" else 8)
    if spoil == "machine":
        write_atomic(bad.machine, machine.model_copy(update={"name": "elsewhere"}).to_json())
    if spoil == "card":
        bad.card.unlink()
    if spoil == "folder":
        bad.marker.unlink()
    assert reason in say("calibrate", good.folder, bad.folder)
    assert reason in say("calibrate", bad.folder, code=1)


def test_a_machine_that_was_never_measured_is_told_to_be(say, tmp_path, machine):
    run = made_run(tmp_path, machine)
    (tmp_path / "runs" / ".cache" / "machine.json").unlink()
    assert "colossus machine --measure" in say("calibrate", run.folder, code=1)


def test_last_is_the_newest_of_the_runs_that_are_named(say, tmp_path, machine):
    run = made_run(tmp_path, machine)
    elsewhere = (tmp_path / "runs").rename(tmp_path / "elsewhere")
    create_run(tmp_path / "runs", Run(elsewhere / run.folder.name).load_job())  # where `last` looks unless told
    told = json.loads(say("calibrate", "last", "--runs", elsewhere, "--json"))
    assert [row["run"] for row in told["runs"]] == [str(elsewhere / run.folder.name)]


def test_runs_may_be_given_as_places_or_in_a_row(tmp_path):
    one, two = tmp_path / "a" / "one", tmp_path / "a" / "two"
    for folder in (one, two):
        folder.mkdir(parents=True)
        (folder / "run.json").touch()
    assert own_places([two], [one]) == ([one, two], tmp_path / "a")
    assert own_places([], [tmp_path]) == ([], tmp_path)
    assert own_places([one], [tmp_path]) == ([one], tmp_path)

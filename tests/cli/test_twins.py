"""``--on twin:MACHINE``, what calibrate learns for it, and a run compared with its twin."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from colossus.cli.launch import make_plan, resolve_model
from colossus.cli.own_times import data_digest, job_digest, known_times, times_file
from colossus.engine.machine import describe_machine
from colossus.report import summarize_run
from colossus.spec.event import read_events
from colossus.spec.job import TrainJob, load_job
from colossus.spec.kernels import Kernels
from colossus.spec.machine import Machine
from colossus.spec.run import MARKER, Run, write_atomic
from colossus.spec.times import RunTimes
from tests.cli.calling import call, write_job
from tests.engine.driving import run as run_for_real
from tests.engine.driving import train
from tests.engine.test_twin import TIMES
from tests.plan.rates import RATES


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """This machine as if its kernels had been measured, remembered in the folder of runs."""
    found = describe_machine(measure=False)
    found = found.model_copy(update={"kernels": Kernels(date="2026-11-25", source="test", gangs=[RATES])})
    (tmp_path / "runs" / ".cache").mkdir(parents=True)
    (tmp_path / "runs" / ".cache" / "machine.json").write_text(found.to_json())
    return found


@pytest.fixture
def say(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def do(*arguments, code=0):
        found, out, err = call(capsys, monkeypatch, *arguments)
        assert found == code and "Traceback" not in err, err
        return out if code == 0 else err

    return do


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    text = tmp_path / "corpus.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return write_job(tmp_path, text, num_workers="2", num_steps="100", evaluation="{ interval_steps = 40 }")


def calibrated(tmp_path: Path, machine: Machine, job_file: Path) -> RunTimes:
    """Times of this machine as if calibrate had learned them from a run of the job."""
    job = load_job(job_file)
    plan = make_plan(job, machine, resolve_model(job)[0])
    assert plan.step is not None
    facts = {"num_tokens": 1000, "num_validation_tokens": 20, "vocab_size": 300, "data_s": 0.25, "launch_s": 0.125}
    more = {"step_s": plan.step.step_s, "machine": machine.identity, "job": job_digest(job), "data": data_digest(job), "save_bytes": plan.save_bytes}
    times = TIMES.model_copy(update=facts | more)
    write_atomic(times_file(tmp_path / "runs"), times.to_json())
    return times


def test_a_twin_that_was_never_calibrated_says_how_to(say, tmp_path, machine, job_file):
    said = say("train", job_file, "--on", "twin:this", "--runs", tmp_path / "runs", code=1)
    assert "colossus calibrate" in said and not list((tmp_path / "runs").glob("small*"))


@pytest.mark.parametrize(("engine", "word"), [("twin:h100*64", "h100-sxm"), ("twin", "local"), ("loca", "local"), ("twin:", "local")])
def test_a_machine_or_engine_that_is_none_names_the_nearest(say, tmp_path, machine, job_file, engine, word):
    assert word in say("train", job_file, "--on", engine, "--runs", tmp_path / "runs", code=1)


def test_a_twin_of_this_machine_writes_a_runs_events_in_a_folder_of_its_own(say, tmp_path, machine, job_file):
    calibrated(tmp_path, machine, job_file)
    told = json.loads(say("train", job_file, "--on", "twin:this", "--kill", "1@50", "--runs", tmp_path / "runs", "--json"))
    run = Run(tmp_path / "runs" / "small-twin-1")
    assert told["how"] == "simulated" and told["steps"] == 100 and len(told["incidents"]) == 1
    assert run.is_simulation and summarize_run(run).to_data()["wall_s"] == told["wall_s"]
    assert round(told["goodput_s"] + sum(told["badput_s"].values()), 6) == told["wall_s"]
    first = run.events.read_bytes()
    say("train", job_file, "--on", "twin:this", "--kill", "1@50", "--runs", tmp_path / "runs")
    assert Run(tmp_path / "runs" / "small-twin-2").events.read_bytes() == first


def test_a_simulation_is_shown_but_not_gone_on_from(say, tmp_path, machine, job_file):
    calibrated(tmp_path, machine, job_file)
    say("train", job_file, "--on", "twin:this", "--runs", tmp_path / "runs")
    folder = tmp_path / "runs" / "small-twin-1"
    assert "simulated" in say("report", folder, "--json") and "small-twin-1" in say("compare", folder, folder)
    for verb in (("resume", folder), ("sample", folder, "x"), ("export", folder, "--to", "out")):
        assert "is a simulation" in say(*verb, code=1)
    assert "is a simulation" in say("calibrate", folder, code=1)
    assert "no run under" in say("resume", "last", code=1)
    assert "no state to go on from" in say("resume", folder, "--on", "twin:this", code=1)


def test_calibrating_on_a_run_gives_the_times_that_it_had(say, tmp_path, machine, job_file):
    """The twin's own events, taken for a real run's, tell the times that the twin was given; so run and twin agree."""
    given = calibrated(tmp_path, machine, job_file)
    say("train", job_file, "--on", "twin:this", "--kill", "1@50", "--runs", tmp_path / "runs")
    run = Run(tmp_path / "runs" / "small-twin-1")
    write_atomic(run.marker, json.dumps(MARKER))
    say("calibrate", run.folder, "--runs", tmp_path / "runs", "--json")
    found = known_times(tmp_path / "runs")
    assert found is not None and found.runs == [str(run.folder)]
    names = [name for name in RunTimes.model_fields if name.endswith("_s") and name not in ("restore_disk_s", "peer_s", "evaluation_s", "end_s")]
    assert {name: getattr(found, name) for name in names} == pytest.approx({name: getattr(given, name) for name in names}, abs=1e-6)
    told = json.loads(say("compare", run.folder, "--json"))
    figures = {row["name"]: row for row in told["figures"]}
    assert figures["wall time"]["ratio"] == pytest.approx(1, abs=0.01) and told["recalibrate"] == []
    assert all(row["ratio"] == 1 for row in told["kinds"] if row["unit"] == "count" and not row["name"].startswith("checkpoint_started"))


def test_what_is_off_is_named_with_the_command(say, tmp_path, machine, job_file):
    times = calibrated(tmp_path, machine, job_file)
    say("train", job_file, "--on", "twin:this", "--runs", tmp_path / "runs")
    run = Run(tmp_path / "runs" / "small-twin-1")
    write_atomic(run.marker, json.dumps(MARKER))
    write_atomic(times_file(tmp_path / "runs"), times.model_copy(update={"compile_s": 9.0}).to_json())
    said = say("compare", run.folder, "twin")
    assert "worker_phase: compiled: simulated 9 s, measured 2.5 s" in said and f"colossus calibrate {run.folder}" in said


def test_a_machine_of_the_catalog_lives_through_its_faults(say, tmp_path, job_file):
    """To its end, long after the scenario's horizon; a killed node's copies in memory are gone with it."""
    file = tmp_path / "large.toml"
    text = 'name = "large"\nnum_steps = 3_000_000\nmodel = "llama-3-70b"\nprecision = "bfloat16"\n[data]\nsources = ["x"]\n'
    file.write_text(text + "[batch]\nnum_sequences = 512\nsequence_tokens = 8192\n[recovery]\nnum_standbys = 8\n")
    told = json.loads(say("train", file, "--on", "twin:h100-sxm*1024", "--set", "checkpoint.interval_steps=2000", "--runs", tmp_path / "runs", "--json"))
    assert told["status"] == "done" and told["steps"] == 3_000_000 and told["num_workers"] == 128
    assert len(told["incidents"]) > 10 and told["kinds"]["steps"]["num_steps"] >= 3_000_000
    assert round(told["goodput_s"] + sum(told["badput_s"].values()), 3) == pytest.approx(told["wall_s"], abs=2e-3)
    events = list(read_events(Run(tmp_path / "runs" / "large-twin-1").events))
    assert told["wall_s"] > 120 * 86400 and max(event.time_s for event in events if event.kind == "fault") > 100 * 86400
    sources = Counter(event.payload["source"] for event in events if event.kind == "worker_phase" and event.payload["phase"] == "restored")
    killed = sum(event.kind == "fault" and event.payload["cause"] in ("killed", "hung") for event in events)
    assert sources["disk"] >= 0.9 * killed > 9 and sources["ram"] > 0  # the first may come before a save


@pytest.mark.slow
def test_a_real_run_and_its_twin_tell_the_same_kinds(tmp_path):
    """Two ranks, a kill, a tiny job: what happens and how often is the same; how long it takes is in a test of its own (benchmarks/twin_compare.py)."""
    train(tmp_path, "--kill", "1@410", "--set", "num_steps=500")  # long enough for a standby to be ready, and not while a save is under way
    folder = tmp_path / "linear-1"
    run_for_real("calibrate", folder, "--runs", tmp_path, runs=tmp_path)
    told = json.loads(run_for_real("compare", folder, "--json", runs=tmp_path)[0])
    real, twin = (Counter(event.kind for event in read_events(Run(Path(path)).events)) for path in told["runs"])
    assert real.keys() == twin.keys()
    same = real.keys() - {"step", "checkpoint_started", "checkpoint_saved", "standby_ready", "interval_chosen"}
    assert {kind: real[kind] for kind in same} == {kind: twin[kind] for kind in same}
    reports = [summarize_run(Run(Path(path))) for path in told["runs"]]
    assert [report.steps for report in reports] == [500, 500] and all(report.num_faults == 1 for report in reports)
    assert all(round(report.goodput_s + sum(report.badput_s.values()), 6) == report.wall_s for report in reports)


def test_jobs_that_take_the_same_times_have_one_digest(job_file):
    job: TrainJob = load_job(job_file)
    assert job_digest(load_job(job_file, ("num_steps=50", "recovery.num_standbys=3", "checkpoint.interval_steps=7"))) == job_digest(job)
    assert job_digest(load_job(job_file, ("batch.num_sequences=8",))) != job_digest(job)

"""Places that cannot be written, runs that lost a part, a terminal that is gone: told in words, and no run is harmed."""

import os
import subprocess
import sys

import pytest

from colossus.cli.hardware import known_machine
from colossus.cli.launch import make_plan, num_devices_used, resolve_model
from colossus.cli.watch import Watch
from colossus.engine import machine as engine_machine
from colossus.engine.machine import describe_machine
from colossus.engine.process import LocalEngine
from colossus.spec.job import load_job
from colossus.spec.machine import Chip, Machine, Node
from colossus.spec.run import Inputs, Run, create_run, write_atomic
from tests.cli.calling import call, write_job


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return path


@pytest.fixture
def runs(tmp_path):
    """A folder of runs that knows this machine, so that nothing is measured."""
    remember(tmp_path / "runs", describe_machine(measure=False))
    return tmp_path / "runs"


def remember(runs, machine: Machine) -> None:
    (runs / ".cache").mkdir(parents=True)
    (runs / ".cache" / "machine.json").write_text(machine.to_json())


@pytest.fixture
def run(tmp_path, runs, text) -> Run:
    """A run that was prepared and never trained."""
    job = load_job(write_job(tmp_path, text))
    card, machine = resolve_model(job)[0], describe_machine(measure=False)
    made = create_run(runs, job)
    write_atomic(made.card, card.to_json())
    write_atomic(made.inputs, Inputs(corpus=tmp_path).to_json())
    write_atomic(made.machine, machine.to_json())
    write_atomic(made.plan, make_plan(job, machine, card).to_json())
    made.events.touch()
    return made


@pytest.fixture
def complain(capsys, monkeypatch):
    def do(*arguments):
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert (code, out) == (1, ""), err
        assert "error: " in err and "Traceback" not in err
        return err

    return do


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_runs_folder_that_cannot_be(complain, tmp_path, text, place):
    (tmp_path / "file").touch()
    for arguments in (["machine"], ["train", write_job(tmp_path, text)]):
        err = complain(*arguments, "--runs", tmp_path / place)
        assert str(tmp_path / place) in err and "--runs DIR" in err
        assert "measuring" not in err


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "folder"])
@pytest.mark.parametrize(("verb", "part"), [("resume", "model.json"), ("resume", "inputs.json"), ("sample", "machine.json")])
def test_a_lost_part_is_named_with_the_way_to_mend_it(complain, run, verb, part, damage):
    spoil(run.folder / part, damage)
    err = complain(verb, run.folder, *(["Once"] if verb == "sample" else []))
    assert str(run.folder / part) in err
    assert damage == "foreign" or "hint: " in err


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "folder"])
@pytest.mark.parametrize("part", ["model.json", "inputs.json", "machine.json", "plan.json", "job.toml"])
def test_a_report_needs_events_only(capsys, monkeypatch, run, part, damage):
    spoil(run.folder / part, damage)
    for arguments in (["report", run.folder], ["compare", run.folder, run.folder]):
        code, _, err = call(capsys, monkeypatch, *arguments)
        assert code == 0, err


def spoil(path, damage: str) -> None:
    whole = path.read_text()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text(whole[:9] if damage == "torn" else '{"some": "other file"}')


def test_a_folder_in_the_place_of_a_file_is_said(complain, run):
    spoil(run.events, "folder")
    assert f"{run.events}: Is a directory" in complain("report", run.folder)


def test_an_unknown_run_names_those_under_runs(complain, monkeypatch, run):
    monkeypatch.chdir(run.folder.parents[1])
    assert "runs here: runs/small-1" in complain("report", "smal-1")


def test_a_folder_in_the_place_of_a_job_names_the_jobs_in_it(complain, tmp_path, text):
    write_job(tmp_path, text)
    err = complain("plan", tmp_path)
    assert "is a folder" in err and "job.toml" in err


def test_a_kill_of_no_rank_is_refused_before_anything_is_made(complain, tmp_path, text, runs):
    err = complain("train", write_job(tmp_path, text), "--workers", "2", "--kill", "0@3", "--kill", "9@5", "--runs", runs)
    assert "--kill = 9@5: there are ranks 0 to 1 (e.g. --kill 1@5)" in err
    assert [path.name for path in runs.iterdir()] == [".cache"]
    assert [path.name for path in (runs / ".cache").iterdir()] == ["machine.json"]


def test_a_kill_of_no_rank_leaves_a_run_as_it_was(complain, run):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    assert "there is rank 0 only" in complain("resume", run.folder, "--workers", "1", "--kill", "1@5")
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_a_machine_with_another_memory_limit_is_another_machine(tmp_path):
    fresh = describe_machine(measure=False)
    remember(tmp_path, fresh.model_copy(update={"node": fresh.node.model_copy(update={"memory_bytes": fresh.node.memory_bytes * 2})}))
    assert known_machine(tmp_path, measure=False) == fresh


@pytest.mark.parametrize("verb", ["machine", "plan"])
def test_an_accelerator_without_its_plugin_is_said(capsys, monkeypatch, tmp_path, text, runs, verb):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA H100 80GB HBM3, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(engine_machine, "_has_plugin", lambda kind: False)
    arguments = [verb, *(["--no-measure"] if verb == "machine" else [write_job(tmp_path, text)]), "--runs", runs, "--json"]
    for platform, said in (("", True), ("cpu", False)):  # who asks for the CPU is not told
        monkeypatch.setenv("JAX_PLATFORMS", platform)
        code, _, err = call(capsys, monkeypatch, *arguments)
        assert code == 0
        assert ("1 x NVIDIA H100" in err and "pip install 'colossus[cuda]'" in err) == said


@pytest.mark.parametrize("num_cores", [1, 2, 3, 8])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 16])
def test_the_peak_behind_mfu_is_of_the_cores_that_workers_get(monkeypatch, tmp_path, num_cores, num_workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_cores)))
    engine = LocalEngine(tmp_path, [])
    given = [set(engine.cores(rank, num_workers)) or set(range(num_cores)) for rank in range(num_workers)]
    machine = Machine(name="test", node=Node(chip=Chip(name="some", kind="cpu"), num_chips=1, num_cores=num_cores, memory_bytes=2**33))
    assert num_devices_used(machine, num_workers) == len(set.union(*given))


def test_talk_to_a_reader_that_is_gone_is_lost_and_nothing_else():
    ours, theirs = os.pipe()
    os.close(ours)
    code = "from colossus.cli.common import talk; talk().print('x'); talk().print('y'); print('done')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_display_that_fails_does_not_end_the_run(capsys, run):
    spoil(run.events, "folder")
    with Watch(run) as watch:
        watch.update()
        watch.update()
    assert "IsADirectoryError" in capsys.readouterr().err

"""What a user may get wrong: each is told in words (value, rule, nearest fix), exits non-zero, and leaves nothing behind."""

import json
import subprocess
import sys

import pytest

from colossus.engine.machine import describe_machine
from tests.cli.calling import call, write_job


@pytest.fixture
def runs(tmp_path):
    """A runs folder that knows this machine, so that nothing is measured."""
    folder = tmp_path / "runs"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "machine.json").write_text(describe_machine(measure=False).to_json())
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return path


@pytest.fixture
def complain(capsys, monkeypatch, runs):
    """Calls with bad input; returns what was said, once it is sure that it was said well."""

    def do(*arguments, code=1):
        extra = ["--runs", runs] if arguments[0] in ("train", "plan") else []
        got, out, err = call(capsys, monkeypatch, *arguments, *extra)
        assert got == code, err
        assert not out
        assert "Traceback" not in err
        assert [path.name for path in runs.iterdir()] == [".cache"], "a run folder was left behind"
        return err

    return do


def test_a_missing_job_names_its_neighbours(complain, tmp_path, text):
    write_job(tmp_path, text)
    err = complain("train", tmp_path / "jop.toml")
    assert "does not exist" in err
    assert "job.toml" in err


def test_a_job_that_is_no_toml(complain, tmp_path):
    (tmp_path / "job.toml").write_text("name = [")
    assert "is not TOML" in complain("train", tmp_path / "job.toml")


def test_all_problems_of_a_job_at_once(complain, tmp_path, text):
    job = write_job(tmp_path, text, num_steps="0", sead="3", optimizer="{ lerning_rate = 1.0 }")
    err = complain("train", job)
    assert "3 problems" in err
    for words in ("num_steps = 0", "did you mean 'seed'", "did you mean 'learning_rate'"):
        assert words in err


def test_an_unknown_model_names_the_nearest(complain, tmp_path, text):
    assert "llama-3-8b" in complain("train", write_job(tmp_path, text, model='"lama-3-8b"'))


@pytest.mark.parametrize(("model", "part"), [("deepseek-v3", "model.mla"), ("gpt-3-175b", "model.activation"), ("grok-1", "capped logits")])
def test_a_model_that_can_only_be_planned_is_not_trained_as_another(complain, tmp_path, text, model, part):
    assert part in complain("train", write_job(tmp_path, text, model=f'"{model}"'))


def test_a_model_folder_without_a_model(complain, tmp_path, text):
    assert "config.json" in complain("train", write_job(tmp_path, text, model=f'"{tmp_path}"'))


def test_a_missing_corpus(complain, tmp_path):
    assert "nothing.txt" in complain("train", write_job(tmp_path, tmp_path / "nothing.txt"))


def test_an_empty_corpus(complain, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty" in complain("train", write_job(tmp_path, tmp_path / "empty.txt"))


def test_a_corpus_smaller_than_a_batch(complain, tmp_path):
    (tmp_path / "tiny.txt").write_text("A few words only. " * 12)
    err = complain("train", write_job(tmp_path, tmp_path / "tiny.txt", batch="{ num_sequences = 64, sequence_tokens = 64 }"))
    assert "too small" in err or "what fits" in err


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_workers(complain, tmp_path, text, number):
    err = complain("train", write_job(tmp_path, text), "--workers", number)
    assert f"num_workers = {number}" in err
    assert "greater than or equal to 1" in err


def test_workers_that_do_not_divide_the_batch(complain, tmp_path, text):
    err = complain("train", write_job(tmp_path, text), "--workers", "3")
    assert "batch.num_sequences" in err
    assert "hint" in err


def test_a_layout_that_does_not_divide_the_model(complain, tmp_path, text):
    err = complain("train", write_job(tmp_path, text, layout="{ tp = 4 }"), "--workers", "4")
    assert "heads" in err or "tp" in err


def test_a_layout_that_does_not_divide_the_workers(complain, tmp_path, text):
    assert "layout" in complain("train", write_job(tmp_path, text, layout="{ dp = 2, tp = 2 }"), "--workers", "2")


def test_too_little_memory_is_said_before_starting_with_what_would_fit(complain, tmp_path, text):
    err = complain("train", write_job(tmp_path, text, model='"llama-3.1-405b"', data=f'{{ sources = ["{text}"] }}'))
    assert "GiB" in err or "TiB" in err
    assert "can be used" in err


def test_an_unknown_engine(complain, tmp_path, text):
    assert "local" in complain("train", write_job(tmp_path, text), "--on", "lokal")


def test_a_setting_without_a_value(complain, tmp_path, text):
    assert "path.to.key=value" in complain("train", write_job(tmp_path, text), "--set", "num_steps")


def test_a_kill_of_a_rank_that_is_not_there(capsys, monkeypatch, tmp_path, text, runs):
    code, _, err = call(capsys, monkeypatch, "train", write_job(tmp_path, text), "--workers", "2", "--kill", "5@3", "--runs", runs)
    assert code == 1
    assert "ranks 0 to 1" in err


def test_a_kill_that_is_no_rank_and_step(complain, tmp_path, text):
    assert "RANK@STEP" in complain("train", write_job(tmp_path, text), "--kill", "now", code=2)


def test_an_unknown_verb(complain):
    assert "did you mean 'train'" in complain("trian", code=2)


def test_a_program_that_is_not_there(complain, tmp_path):
    (tmp_path / "mine.py").write_text("JOB = {'num_steps': 3, 'batch': {'num_sequences': 4}, 'optimizer': {'warmup_steps': 0}}\ndef programme(): ...\n")
    err = complain("train", tmp_path / "mine.py")
    assert "did you mean 'programme'" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("JOB = 5", "JOB = 5: a Python job needs a dict"),
        ("", "JOB = (absent): a Python job needs a dict"),
        ("import sys; sys.exit()", "ends the process"),
        ("import no_such_helper", "no module 'no_such_helper'"),
    ],
)
def test_a_python_job_that_is_none(complain, tmp_path, text, words):
    (tmp_path / "odd_job.py").write_text(text)
    assert words in complain("train", tmp_path / "odd_job.py")


@pytest.mark.parametrize("verb", [["report"], ["resume"], ["sample", "a"], ["export", "--to", "x"]], ids=lambda verb: verb[0])
def test_folders_that_are_no_run(complain, tmp_path, verb):
    for folder, words in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "not a run")):
        assert words in complain(verb[0], folder, *verb[1:])


def test_a_foreign_run_json(complain, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"kind": "something else"}))
    assert "some other program" in complain("report", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"kind": "colossus-run", "schema": 99}))
    assert "schema 99" in complain("report", tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "cannot be read" in complain("report", tmp_path)


def test_help_answers_without_importing_what_is_heavy():
    words = "import sys; from colossus.cli.main import cli; cli.main(['--help'], standalone_mode=False)"
    check = words + "; heavy = {'jax', 'numpy', 'pydantic', 'rich', 'tokenizers'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout

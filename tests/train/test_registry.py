"""A user's own program is found and imported as Python would, and what is wrong with it is told in words."""

import sys
from textwrap import dedent

import pytest

from colossus.spec.errors import SpecError
from colossus.spec.job import TrainJob
from colossus.spec.layout import Layout
from colossus.spec.run import Run
from colossus.train import registry

PROGRAM = """
    from colossus.train.program import ArrayDataset, Program
    import numpy as np

    def program(num_sequences):
        data = {"x": np.ones((8, 2), np.float32)}
        dataset = ArrayDataset(train=data, validation=data, num_examples=num_sequences)
        return Program(init=lambda key: {}, loss=lambda params, batch: (0.0, {}), dataset=dataset, flop_per_token=FLOP)
"""


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """What a test imports is forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def job(reference, **options):
    return TrainJob(name="own", num_steps=3, program=reference, batch={"num_sequences": 4}, options=options, optimizer={"warmup_steps": 0})


def test_dataclasses_with_postponed_annotations(tmp_path):
    text = """
        from __future__ import annotations
        from dataclasses import dataclass, field

        @dataclass
        class Sizes:
            widths: list[int] = field(default_factory=lambda: [4])

        def program():
            return Sizes()
    """
    assert registry.find_function(f"{write(tmp_path / 'mine.py', text)}:program")().widths == [4]


def test_a_module_beside_the_file(tmp_path):
    write(tmp_path / "beside_a.py", "FLOP = 7.0")
    file = write(tmp_path / "mine.py", "from beside_a import FLOP\n" + dedent(PROGRAM))
    assert registry.find_function(str(file))(num_sequences=4).flop_per_token == 7.0


def test_two_files_of_one_name_are_two(tmp_path):
    first, second = (write(tmp_path / name / "mine.py", f"def program(): return {name!r}") for name in ("a", "b"))
    assert [registry.find_function(str(file))() for file in (first, second)] == ["a", "b"]


def test_a_module_of_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path / "of_this_folder" / "nets.py", "def small(): return 'small'")
    monkeypatch.chdir(tmp_path)
    assert registry.find_function("of_this_folder.nets:small")() == "small"


@pytest.mark.parametrize("reference", ["{folder}/mine_b.py:program", "mine_b:program"])
def test_a_worker_finds_what_the_command_found_wherever_it_and_the_run_are(tmp_path, monkeypatch, reference):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    write(home / "beside_b.py", "FLOP = 3.0")
    mine = write(home / "mine_b.py", "from beside_b import FLOP\n" + dedent(PROGRAM))
    write(elsewhere / "mine_b.py", "raise RuntimeError('another file of this name')")
    write(elsewhere / "beside_b.py", "raise RuntimeError('another file of this name')")
    reference = reference.format(folder=home)
    run = Run(tmp_path / "runs" / "own-1")
    kept = write(run.folder / "program.py", mine.read_text())
    monkeypatch.chdir(home)
    registry.keep_folder(run, reference)
    if ".py" in reference:
        reference = f"{kept}:program"
    monkeypatch.chdir(elsewhere)
    moved = Run(run.folder.rename(tmp_path / "moved"))
    assert registry.load_program(moved, job(reference), Layout()).flop_per_token == 3.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit()", r"ends the process \(exit code None\).*__main__"),
        ("raise SystemExit(3)", r"exit code 3"),
        ("import no_such_thing", "no module 'no_such_thing'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def f(:", "cannot be imported: SyntaxError"),
    ],
)
def test_what_goes_wrong_in_an_import_is_told(tmp_path, monkeypatch, text, words):
    file = write(tmp_path / "bad_one.py", text)
    monkeypatch.chdir(tmp_path)
    for reference in (str(file), "bad_one:program"):
        for _ in range(2):  # a half-imported module is not taken for a whole one
            with pytest.raises(SpecError, match=words):
                registry.find_function(reference)


def test_a_program_that_exits_when_it_is_called(tmp_path):
    file = write(tmp_path / "quits.py", "def program(): raise SystemExit(0)")
    with pytest.raises(SpecError, match="ended the process"):
        registry.call_program(job(str(file)), registry.find_function(str(file)))


@pytest.mark.parametrize("given", ["5", "[1, 2]", "{}", "None", "'num_steps = 3'"])
def test_a_job_that_is_no_dict(tmp_path, given):
    with pytest.raises(SpecError, match=r"JOB = .*: a Python job needs a dict"):
        registry.read_job(write(tmp_path / "mine.py", f"JOB = {given}"))


def test_changes_to_a_job_leave_the_file_s_own_alone(tmp_path):
    file = write(tmp_path / "mine.py", "JOB = {'options': {'width': 3}}")
    registry.read_job(file)["options"]["width"] = 4
    assert registry.read_job(file) == {"options": {"width": 3}}

"""``colossus validate`` and ``calibrate``: what they say of the catalog's runs, of a user's own, and of files that are none."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path

import pytest

from colossus.catalog.measured import load_coefficients
from colossus.catalog.published import read_published
from colossus.plan.validate import validate
from colossus.report.validation import ErrorsData, MemoryData, RowData, ValidationData
from tests.cli.calling import call

RUNS = read_published()
COLUMNS = list(RUNS[0].cells)
BASE = next(run.cells for run in RUNS if run.group == "simumax-b200")


def write_rows(path: Path, *rows: dict[str, str], columns: list[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def like_base(name: str, **cells: str) -> dict[str, str]:
    return BASE | {"id": name} | cells


@pytest.fixture
def run(capsys, monkeypatch):
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


def keys(record: type) -> set[str]:
    return set(record.__annotations__)


def test_every_row_of_tier_a_is_reported(run):
    code, out, err = run("validate", "--json")
    data = json.loads(out)
    found = validate([one for one in RUNS if one.text("tier") == "A"], load_coefficients())
    assert code == (1 if found.problems() else 0)
    assert [row["id"] for row in data["rows"]] == [row.id for row in found.rows]
    assert data["problems"] == found.problems() and all(problem in err for problem in found.problems())
    assert keys(ValidationData) == data.keys() and keys(RowData) == data["rows"][0].keys()
    assert keys(ErrorsData) == data["whole"].keys() and keys(MemoryData) == data["memory"].keys()
    for row in data["rows"]:
        assert (row["reason"] is None) == (row["estimated_step_s"] is not None and row["estimated_memory_bytes"] is not None)
        assert row["reason"] or 0 < row["lower_step_s"] < row["upper_step_s"]
    assert sum(errors["num_rows"] for errors in data["by_group"]) == data["whole"]["num_rows"] == sum(e["num_rows"] for e in data["by_accelerator"])


def test_the_tables_of_tier_a(run):
    _, out, _ = run("validate")
    groups = {one.group for one in RUNS if one.text("tier") == "A"}
    accelerators = {one.text("accelerator") for one in RUNS if one.text("tier") == "A"}
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in groups | accelerators)
    for words in ("90th pct.", "bias", "inside", "Spearman", "peak memory", "publish it"):
        assert words in out


@pytest.mark.parametrize(("tier", "num_rows"), [("all", 769), ("B", 236), ("C", 39), ("c", 39)])
def test_other_tiers_are_only_reported(run, tier, num_rows):
    code, out, _ = run("validate", "--tier", tier, "--json")
    data = json.loads(out)
    assert (code, data["problems"], len(data["rows"])) == (0, [], num_rows)
    assert all(row["reason"] for row in data["rows"] if row["estimated_step_s"] is None)


def test_rows_of_ones_own(run, tmp_path):
    odd = like_base("odd", accelerator="Wafer 9", tier="")
    far = like_base("far", step_time_s="1000", tier="B")
    file = write_rows(tmp_path / "mine.csv", like_base("near"), far, odd)
    code, out, _ = run("validate", "--rows", file, "--json")
    data = json.loads(out)
    rows = {row["id"]: row for row in data["rows"]}
    assert (code, data["problems"], list(rows)) == (0, [], ["near", "far", "odd"])
    assert rows["far"]["estimated_step_s"] == rows["near"]["estimated_step_s"] and not rows["far"]["is_inside"]
    assert "Wafer 9" in rows["odd"]["reason"] and rows["odd"]["estimated_step_s"] is None
    _, out, _ = run("validate", "--rows", file)
    assert "left out" in out and "Wafer 9" in out
    assert len(json.loads(run("validate", "--rows", file, "--tier", "A", "--json")[1])["rows"]) == 1


def test_the_page_and_the_plot(run, tmp_path):
    file = write_rows(tmp_path / "mine.csv", like_base("near"), like_base("other", global_batch_seqs="64"))
    code, out, err = run("validate", "--rows", file, "--html", tmp_path / "new" / "page.html", "--plot", tmp_path / "plot.svg")
    assert code == 0 and "near" in out
    assert str(tmp_path / "plot.svg") in err
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "plot.svg").read_text().startswith("<svg ")


def test_a_folder_of_plots(run, tmp_path):
    file = write_rows(tmp_path / "mine.csv", like_base("near"), like_base("other", global_batch_seqs="64"))
    assert run("validate", "--rows", file, "--plots", tmp_path / "plots")[0] == 0
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"validation", "ratios"}


def test_a_plot_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("validate", "--rows", write_rows(tmp_path / "mine.csv", like_base("near")), "--plot", tmp_path / "file" / "plot.svg")
    assert code == 1 and "cannot be written" in err and "Traceback" not in err


@pytest.mark.parametrize("verb", ["validate", "calibrate"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.csv", None, "No such file"),
        ("folder", "folder", "Is a directory"),
        ("empty.csv", b"", "no column 'id'"),
        ("header.csv", ",".join(COLUMNS).encode(), "no rows"),
        ("typo.csv", ",".join(COLUMNS).replace("heads,", "haeds,", 1).encode(), "did you mean 'haeds'"),
        ("binary.csv", bytes(range(256)), "cannot be read"),
    ],
)
def test_files_that_are_no_rows(run, tmp_path, verb, name, content, words):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = run(verb, "--rows", tmp_path / name)
    assert (code, out) == (1, "")
    assert words in err and "Traceback" not in err and name in err


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("layers", "many", "'many' is not a number"),
        ("n_accel", "lots", "'lots' is not a number"),
        ("seq_len", "nan", "finite"),
        ("hidden", "1e400", "finite"),
        ("heads", "0", "above zero"),
        ("micro_batch", "-1", "above zero"),
        ("peak_mem_gib", "0", "above zero"),
    ],
)
def test_cells_that_are_no_numbers(run, tmp_path, column, value, words):
    """The other rows are reported all the same, this one with its reason, and the file is called bad."""
    file = write_rows(tmp_path / "mine.csv", like_base("good"), like_base("bad", **{column: value}))
    code, out, err = run("validate", "--rows", file, "--json")
    good, bad = json.loads(out)["rows"]
    assert code == 1 and words in err and f"row bad: {column}" in err
    assert good["estimated_step_s"] and words in bad["reason"] and bad["estimated_step_s"] is None
    code, out, err = run("calibrate", "--rows", file, "--out", tmp_path / "own.toml")
    assert (code, out) == (1, "") and words in err and not (tmp_path / "own.toml").exists()


def test_rows_without_an_id_of_their_own(run, tmp_path):
    for rows in ((like_base("same"), like_base("same")), (like_base(""),)):
        code, out, err = run("validate", "--rows", write_rows(tmp_path / "mine.csv", *rows))
        assert (code, out) == (1, "") and "id of its own" in err


def test_a_tier_that_a_file_lacks(run, tmp_path):
    code, _, err = run("validate", "--rows", write_rows(tmp_path / "mine.csv", like_base("near", tier="")), "--tier", "A")
    assert code == 1 and "--tier all" in err
    assert run("validate", "--tier", "D")[0] == 2


def test_calibrating_brings_ones_own_runs_nearer(run, tmp_path):
    rows = [
        run_.cells | {"step_time_s": str(2 * float(run_.cells["step_time_s"]))} for run_ in RUNS if run_.group == "simumax-b200" and run_.cells["step_time_s"]
    ]
    file = write_rows(tmp_path / "mine.csv", *rows[:3], like_base("odd", accelerator="Wafer 9"))
    code, out, err = run("calibrate", "--rows", file, "--runs", tmp_path / "runs", "--json")
    data = json.loads(out)
    assert code == 0, err
    assert data["after"]["median_error_fraction"] < 0.1 < data["before"]["median_error_fraction"]
    assert list(data["left_out"]) == ["odd"] and data["num_runs"] == 3
    assert "3 runs decided" in err and "runs or more" in err
    own = tmp_path / "runs" / ".cache" / "coefficients.toml"
    assert data["file"] == str(own)
    written = tomllib.loads(own.read_text())
    assert written["source"].endswith("mine.csv") and written["date"] and written["num_runs"] == 3
    slower = {"chip": "b200", "precision": "bfloat16", "program": "megatron-plain"}
    assert load_coefficients(own).get("gemm_fraction", **slower) < load_coefficients().get("gemm_fraction", **slower)
    assert load_coefficients(own).spread["torchtitan"] == load_coefficients().spread["torchtitan"]


def test_calibrating_needs_runs(run, tmp_path):
    code, _, err = run("calibrate")
    assert code == 2 and "--rows" in err
    code, _, err = run("calibrate", "--rows", write_rows(tmp_path / "mine.csv", like_base("odd", accelerator="Wafer 9")), "--out", tmp_path / "own.toml")
    assert code == 1 and "Wafer 9" in err and not (tmp_path / "own.toml").exists()


def test_the_committed_coefficients_say_what_they_were_fitted_to():
    data = tomllib.loads((Path(__file__).parents[2] / "src" / "colossus" / "catalog" / "measured" / "coefficients.toml").read_text())
    assert data["schema"] == 2 and data["source"] and data["date"]
    assert data["num_runs"] > 400 and 0 < data["median_error_fraction"] < data["p90_error_fraction"] < 1
    assert all(0 < low < high for low, high in data["spread"].values())


def test_the_guide_names_every_key_of_the_json():
    text = (Path(__file__).parents[2] / "docs" / "validation.md").read_text()
    missing = [key for record in (ValidationData, RowData, ErrorsData, MemoryData) for key in keys(record) if f"`{key}`" not in text]
    assert not missing

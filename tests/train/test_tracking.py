"""Trackers beside events.jsonl: what they meet neither slows nor stops the loop, and is said once."""

import logging
import shutil
import struct
import subprocess
import sys
import threading
import time

import pytest

from colossus.spec.errors import SpecError
from colossus.spec.event import Event, append_events, read_events
from colossus.spec.job import TrackingSpec
from colossus.spec.run import Run
from colossus.train import tracking
from colossus.train.loop import EventLog
from colossus.train.tracking import Trackers, identity, open_trackers

STEP = {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1, "duration_s": 0.5, "data_s": 0.0, "blocked_s": 0.0, "memory_bytes": 7, "applied": True}
KILL = {"what": "SIGKILL", "rank": 0, "pid": 1}


class Recorder:
    """A tracker that keeps the steps it is given; ``trouble`` is called at each."""

    def __init__(self, trouble=lambda: None):
        self.steps, self.closed, self.trouble = [], False, trouble

    def write(self, event):
        self.trouble()
        self.steps.append(event.payload["step"])

    def close(self):
        self.closed = True


def fail():
    raise ConnectionError("the server is gone")


@pytest.fixture
def log(tmp_path):
    return EventLog(tmp_path / "events.jsonl", {"rank": 0})


@pytest.fixture
def run(tmp_path):
    """A run folder with its first event."""
    folder = tmp_path / "runs" / "small-1"
    folder.mkdir(parents=True)
    run = Run(folder)
    append_events(run.events, [Event(time_s=1.25, kind="injected", payload=KILL)])
    return run


def tell(log, steps):
    for step in steps:
        log.tell("step", step=step, **STEP)


def test_trackers_get_what_has_numbers_and_are_closed(log):
    seen = Recorder()
    log.trackers = Trackers({"seen": lambda: seen})
    tell(log, range(5))
    log.tell("bad_step", step=3, reason="spike", loss=1.0, in_a_row=1)
    log.close(10.0)
    assert (seen.steps, seen.closed) == (list(range(5)), True)


@pytest.mark.parametrize("broken", [lambda: Recorder(fail), fail], ids=["write", "open"])
def test_a_tracker_that_fails_is_given_up_and_said_once(log, caplog, broken):
    seen = Recorder()
    log.trackers = Trackers({"broken": broken, "seen": lambda: seen})
    with caplog.at_level(logging.WARNING):
        tell(log, range(5))
        log.close(10.0)
    assert seen.steps == list(range(5)), "the other goes on"
    assert [record.getMessage() for record in caplog.records] == ["broken: given up after ConnectionError: the server is gone; events.jsonl has it all"]
    assert len(list(read_events(log.path))) == 5


def test_a_tracker_that_hangs_stops_nobody(log, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "_MOST_WAITING", 3)
    go_on = threading.Event()
    hung, after = Recorder(go_on.wait), Recorder()
    log.trackers = Trackers({"hung": lambda: hung})
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        tell(log, range(20))
        log.close(0.0)
    assert time.monotonic() - begin < 5.0
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["hung: cannot keep up"]
    log.trackers = Trackers({"after": lambda: after})  # the next gang's, which opens when these have closed
    tell(log, [20])
    assert not after.steps
    go_on.set()
    log.close(10.0)
    assert hung.closed
    assert after.steps == [20]
    assert len(list(read_events(log.path))) == 21


FULL_DISK = """
import resource, sys, time
from pathlib import Path
from colossus.spec.job import TrackingSpec
from colossus.spec.run import Run
from colossus.train.loop import EventLog
from colossus.train.tracking import open_trackers
from tests.train.test_tracking import tell
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # every file is refused more, as by a full disk
run = Run(Path(sys.argv[1]))
log = EventLog(run.events, {"rank": 0}, open_trackers(TrackingSpec(tensorboard=True), run))
tell(log, range(400))
log.close(20.0)
"""


@pytest.mark.slow
def test_a_full_disk_stops_no_step(tmp_path):
    pytest.importorskip("tensorboardX")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tensorboard: given up after OSError") == 1
    assert len(list(read_events(tmp_path / "events.jsonl"))) > 5


def test_what_tensorboard_reads_is_what_was_told(run):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event as Record

    log = EventLog(run.events, {"rank": 0}, open_trackers(TrackingSpec(tensorboard=True), run))
    tell(log, [1, 2])
    log.close(10.0)
    (file,) = (run.folder / "tensorboard").glob("*tfevents*")
    data, records = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        records.append(Record.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert [record.step for record in records[1:]] == [1, 2]
    assert {value.tag: value.simple_value for value in records[1].summary.value}["train/loss"] == 2.5


def test_a_run_keeps_its_identity_and_shares_it_with_none(run, tmp_path):
    before = identity(run)
    append_events(run.events, [Event(time_s=9.0, kind="injected", payload=KILL)])
    moved = shutil.copytree(run.folder, tmp_path / "elsewhere")
    assert identity(Run(moved)) == before, "a resume finds it again"
    run.events.unlink()
    append_events(run.events, [Event(time_s=1.26, kind="injected", payload=KILL)])
    assert identity(run) != before, "a run of the same name on another machine is another run"


def test_wandb_is_told_the_identity_and_its_failure_is_no_failure_of_the_run(run, tmp_path, monkeypatch, caplog):
    (tmp_path / "wandb.py").write_text("def init(**given):\n    raise PermissionError(given['id'] + ' ' + given['name'])\n")
    monkeypatch.syspath_prepend(tmp_path)
    log = EventLog(run.events, {"rank": 0}, open_trackers(TrackingSpec(wandb_project="mine"), run))
    tell(log, range(3))
    log.close(10.0)
    assert f"wandb: given up after PermissionError: {identity(run)} small-1" in caplog.text
    monkeypatch.delitem(sys.modules, "wandb")


def test_a_library_that_is_missing_is_told_at_once(run, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match="pip install 'colossus\\[wandb\\]'"):
        open_trackers(TrackingSpec(wandb_project="mine"), run)

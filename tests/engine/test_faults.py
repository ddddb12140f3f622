"""What counts as a hang, of real processes that beat or do not."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from colossus.engine.faults import among_living
from colossus.engine.process import LocalWorker
from colossus.spec.job import RecoverySpec

SPEC = RecoverySpec(heartbeat_timeout_s=5.0, startup_timeout_s=60.0)


@pytest.fixture
def worker(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    line, _ = socket.socketpair()
    yield LocalWorker(process=process, line=line, log=tmp_path / "log", started_s=0.0, ready=True, last_progress_s=time.monotonic())
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("phase", "silence_s", "hung"),
    [("stepping", 4, False), ("stepping", 6, True), ("joined", 6, False), ("joined", 61, True), ("compiled", 6, True)],
)
def test_silence_is_a_hang_sooner_where_no_user_code_runs(worker, phase, silence_s, hung):
    worker.phase, worker.last_beat_s = phase, time.monotonic() - silence_s
    fault = among_living([worker], {0: worker}, SPEC, now=time.monotonic(), waited_s=0.0)
    assert (fault is not None and fault.cause == "hung" and fault.ranks == (0,)) is hung


def test_a_stopped_process_is_hung_in_any_phase(worker):
    worker.phase, worker.last_beat_s = "joined", time.monotonic() - 6
    worker.process.send_signal(signal.SIGSTOP)
    while not worker.is_stopped():
        time.sleep(0.01)
    assert among_living([worker], {0: worker}, SPEC, now=time.monotonic(), waited_s=0.0) is not None

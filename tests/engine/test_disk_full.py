"""A real full disk (a small tmpfs) while saving: older checkpoints survive, the user is told, a resume goes on."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest

from tests.engine.driving import JOB, events, finish, run, start, step_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a tmpfs needs root on Linux")]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def test_a_full_disk_harms_no_checkpoint_and_a_resume_goes_on(small_disk):
    process, folder = start("train", JOB, runs=small_disk), small_disk / "linear-1"
    wait_for(lambda: events(folder, "checkpoint_saved"), process, "a checkpoint")
    before = step_of(folder)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while process.poll() is None:  # whatever becomes free is taken at once
            with contextlib.suppress(OSError):
                file.write(bytes(4096))
                continue
            time.sleep(0.005)
    _, err = finish(process, code=1)
    assert "could not be saved" in err or "No space left" in err, err
    assert "free some room" in err
    ballast.unlink()
    saved = sorted((folder / "checkpoints").glob("step-*.json"))
    assert saved
    assert int(saved[0].stem.removeprefix("step-")) <= before + 20
    report = json.loads(run("resume", folder, "--json", runs=small_disk)[0])
    assert report["status"] == "done"
    assert step_of(folder) == 160

"""Two processes as one engine: the answers of one, and one end for both."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from colossus.serve.gang import EXIT_LOST, Gang
from colossus.serve.options import EngineOptions
from colossus.spec.errors import SpecError

PROMPTS = [[5, 9, 3, 1] * 6, [7], [2, 4, 8] * 9]
WISHES = [{"prompt": prompt, "max_tokens": 16, "temperature": 0.0} for prompt in PROMPTS]
WISHES += [
    {"prompt": PROMPTS[0], "max_tokens": 16, "temperature": 0.8, "seed": 3},
    {"prompt": PROMPTS[1], "max_tokens": 9, "temperature": 0.0, "frequency_penalty": 0.7, "logit_bias": {}, "num_logprobs": 2},
]


@contextlib.contextmanager
def leader(**order):
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
    command = [sys.executable, "-m", "tests.serve.gang_member", "lead", json.dumps({"model": "llama", "options": {}, "wishes": WISHES} | order)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, env=os.environ | flags, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def answers(**order):
    with leader(**order) as process:
        said, complained = process.communicate(timeout=150)
    assert process.returncode == 0, complained[-3000:]
    return json.loads(said.splitlines()[-1])


@pytest.mark.slow
def test_the_answers_are_those_of_one_process():
    assert answers(options={"tp": 2, "processes": 2}) == answers()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["follower", "leader"])
def test_one_process_ends_with_the_other(who):
    with leader(options={"tp": 2, "processes": 2, "max_running": 1, "max_step_tokens": 8}, for_ever=True) as process:
        assert "ready\n" in iter(process.stdout.readline, "")  # gloo says something too
        (follower,) = psutil.Process(process.pid).children()
        if who == "leader":
            process.kill()
            follower.wait(30)
            return
        follower.kill()
        _, complained = process.communicate(timeout=30)
        assert process.returncode == EXIT_LOST
        assert "this engine's other processes: process 1 was ended by signal 9" in complained


def test_devices_are_shared_equally():
    with pytest.raises(SpecError, match="tp = 3: must be a multiple of the 2 processes"):
        Gang(EngineOptions(model=Path("tiny"), tp=3, processes=2))

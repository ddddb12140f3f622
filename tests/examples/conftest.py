"""Examples as a user runs them: the real command, real worker processes, a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def colossus(tmp_path):
    """``colossus train JOB ... --json`` with two workers; returns the report."""

    def train(job: Path, *arguments: str) -> dict:
        command = [str(Path(sys.executable).with_name("colossus")), "train", str(job), "--workers", "2", "--json", "--runs", str(tmp_path / "runs"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return train


@pytest.fixture
def script():
    """``python FILE ...``; returns its stdout."""

    def run(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], env=environment(), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def environment() -> dict[str, str]:
    """One real device a process, not the eight fake ones of the suite."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}

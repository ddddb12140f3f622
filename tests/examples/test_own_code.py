"""A user's own code in files of its own, through real workers, a moved run and a resume from another folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import environment

pytestmark = pytest.mark.slow

LAYERS = """
from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Linear:
    width: int

    def __call__(self, params, x):
        return x @ params["w"]

    def init(self) -> dict[str, jnp.ndarray]:
        return {"w": jnp.zeros((4, self.width))}
"""
JOB = """
from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from own_layers import Linear

from colossus import ArrayDataset, Program

JOB = {"name": "own", "num_steps": 4, "batch": {"num_sequences": 4}, "optimizer": {"warmup_steps": 0}, "tracking": {"tensorboard": True}}


@dataclass
class Data:
    x: np.ndarray


def program(num_sequences):
    data = Data(x=np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32))
    layer, parts = Linear(2), {"x": data.x}
    dataset = ArrayDataset(train=parts, validation=parts, num_examples=num_sequences)
    return Program(init=lambda key: layer.init(), loss=lambda params, batch: (jnp.mean((layer(params, batch["x"]) - 1) ** 2), {}), dataset=dataset)
"""
TOML = """
name = "own"
num_steps = 4
program = "own_job:program"
batch = { num_sequences = 4 }
optimizer = { warmup_steps = 0 }
tracking = { tensorboard = true }
"""


@pytest.mark.parametrize("kind", ["file", "module"])
def test_its_modules_are_found_from_anywhere(colossus, tmp_path, kind):
    pytest.importorskip("tensorboardX")
    for name, text in (("own_job.py", JOB), ("own_layers.py", LAYERS), ("own.toml", TOML)):
        (tmp_path / name).write_text(text)
    assert colossus(tmp_path / ("own_job.py" if kind == "file" else "own.toml"))["status"] == "done"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "runs").mkdir(parents=True)
    moved = (tmp_path / "runs" / "own-1").rename(elsewhere / "runs" / "own-1")
    (tmp_path / "runs" / ".cache").rename(elsewhere / "runs" / ".cache")
    command = [str(Path(sys.executable).with_name("colossus")), "resume", str(moved), "--set", "num_steps=8", "--json"]
    done = subprocess.run(command, cwd=elsewhere, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["status"] == "done"
    assert list((moved / "tensorboard").glob("*tfevents*"))

"""The trained weights of a run, whole, on this process: for sampling and export."""

from __future__ import annotations

from typing import Any

import jax

from colossus.nn import sharding
from colossus.spec.errors import CheckpointError
from colossus.spec.layout import Layout
from colossus.spec.run import Run
from colossus.train.checkpoint import DiskTier, newest_good_step
from colossus.train.optimizer import make_optimizer
from colossus.train.registry import load_program
from colossus.train.session import abstract_state


def load_trained(run: Run) -> tuple[int, Any]:
    """(step, parameters) of the newest good checkpoint; raises CheckpointError where there is none."""
    step = newest_good_step(run.checkpoints)
    if step is None:
        raise CheckpointError(f"{run.folder} has no checkpoint that can be read", hint=f"train it further: colossus resume {run.folder}")
    job, layout = run.load_job(), Layout()
    mesh = sharding.make_mesh(layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        abstract = abstract_state(load_program(run, job, layout), make_optimizer(job.optimizer, job.num_steps), layout, mesh)
        return step, DiskTier(run.checkpoints, generation=0).restore(step, abstract)["params"]

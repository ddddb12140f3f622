"""The trained weights of a run, whole, on this process: for sampling and export."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from colossus.nn import sharding
from colossus.nn.parameters import param_shapes
from colossus.spec.errors import CheckpointError
from colossus.spec.layout import Layout
from colossus.spec.run import Run
from colossus.train.checkpoint import newest_good_step, restore_params
from colossus.train.registry import load_program


def load_trained(run: Run) -> tuple[int, Any]:
    """(step, parameters) of the newest good checkpoint; raises CheckpointError where there is none.

    A language model needs nothing but the run's folder; of a program, its function is called for the parameters' shapes.
    """
    step = newest_good_step(run.checkpoints)
    if step is None:
        raise CheckpointError(f"{run.folder} has no checkpoint that can be read", hint=f"train it further: colossus resume {run.folder}")
    mesh = sharding.make_mesh(Layout(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), _shapes(run))
        return step, restore_params(run.checkpoints, step, abstract)


def _shapes(run: Run) -> Any:
    if run.card.exists():
        return param_shapes(run.load_card())
    job = run.load_job()
    program = load_program(run, job, Layout())
    return jax.eval_shape(lambda: program.init(jax.random.key(job.seed)))

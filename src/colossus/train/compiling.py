"""The train step for given shapes, cuts and devices, which need not be here: state as shapes, the step lowered, compiled."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from colossus.nn import sharding
from colossus.spec.layout import Layout
from colossus.train.optimizer import state_specs
from colossus.train.program import Program
from colossus.train.step import REQUESTS, init_state, make_step


def abstract_state(program: Program, optimizer: Any, layout: Layout, mesh: Any) -> Any:
    """Shapes, dtypes and shardings of the training state on a mesh; nothing is allocated."""
    shapes = jax.eval_shape(lambda: init_state(program, optimizer, 0))
    params = shapes["params"]
    specs = sharding.fallback_specs(params, layout) if program.axes is None else sharding.tree_specs(program.axes, params, layout)
    whole = PartitionSpec()
    all_specs = {"step": whole, "params": specs, "opt_state": state_specs(shapes["opt_state"], params, specs, replicated=whole)}
    placed = sharding.shardings(mesh, all_specs)
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, placed)


def lower_step(program: Program, optimizer: Any, schedule: Any, abstract: Any, batch: Any, requests_sharding: Any, *, seed: int = 0) -> jax.stages.Lowered:
    """The train step for these shapes and shardings; the old state's memory is given to the new one."""
    mesh = requests_sharding.mesh
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    requests = jax.ShapeDtypeStruct((mesh.size, len(REQUESTS)), np.int32, sharding=requests_sharding)
    threshold = jax.ShapeDtypeStruct((), np.float32, sharding=whole)
    step = jax.jit(make_step(program, optimizer, schedule, seed=seed), donate_argnums=0, out_shardings=(placed, whole))
    return step.lower(abstract, batch, threshold, requests)


def compile_step(program: Program, optimizer: Any, schedule: Any, abstract: Any, batch: Any, requests_sharding: Any, *, seed: int = 0) -> Any:
    """``lower_step``, compiled for the devices of the shardings' mesh."""
    return lower_step(program, optimizer, schedule, abstract, batch, requests_sharding, seed=seed).compile()

"""A program of its own: compiles the train step for a machine that need not be here. ``python -m colossus.train.aot ORDER.json``.

It is started by engine/compiler.py, since a compiler can die, hang or fill the memory. Beside the order it leaves
``program.txt``, what the compiler made, and ``account.json`` (spec.program.ProgramAccount). No weight is allocated.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from colossus.nn import sharding, target
from colossus.nn.attention import plain_attention
from colossus.nn.compute import Compute
from colossus.nn.decoder import init_params
from colossus.nn.lowering import count_flop, require_layout
from colossus.spec.layout import MESH_AXES
from colossus.spec.program import ProgramAccount, ProgramOrder
from colossus.train.compiling import abstract_state, lower_step
from colossus.train.language import token_loss
from colossus.train.optimizer import learning_rate, make_optimizer
from colossus.train.program import Program

# Only the schedule depends on it, and no shape depends on that.
_NUM_STEPS = 1000
# A v4 chip's two cores are one device as JAX runs it, and two where libtpu is not told.
_CHIP_CONFIGS = {"v4": {"chip_config_name": "megacore"}}


def compile_order(order: ProgramOrder, folder: Path) -> ProgramAccount:
    """Compiles and writes ``program.txt``; the account is returned."""
    require_layout(order.card, order.layout, order.num_sequences, order.sequence_tokens)
    started_s = time.perf_counter()
    lowered = lower_order(order)
    written = count_flop(lowered)
    compiled = lowered.compile()
    duration_s = time.perf_counter() - started_s
    (folder / "program.txt").write_text(compiled.as_text() or "")
    memory: Any = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    told = getattr(memory, "peak_memory_in_bytes", 0)  # the CPU's back end leaves its temporaries out of it
    return ProgramAccount(
        written_flop=written.total_flop,
        opaque_calls=list(written.opaque_calls),
        arguments_bytes=memory.argument_size_in_bytes,
        outputs_bytes=memory.output_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        peak_bytes=held if order.compiler == "cpu" else told or held,
        compile_s=duration_s,
        compiler_memory_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        jax_version=jax.__version__,
    )


def lower_order(order: ProgramOrder) -> jax.stages.Lowered:
    """The step of train/step.py on the order's mesh, as its platform would run it, attention in its plain form.

    The kernels for attention are compiled on the hardware they run on; the plain form has the same products.
    """
    layout = order.layout
    mesh = sharding.make_mesh(layout, devices_of(order))
    compute = Compute(precision=order.precision, remat=layout.remat, attention=plain_attention)
    dataset: Any = None
    program = Program(
        init=partial(init_params, order.card),
        loss=partial(token_loss, card=order.card, compute=compute),
        dataset=dataset,
        axes=sharding.param_axes(order.card),
        is_language_model=True,
    )
    optimizer = make_optimizer(order.optimizer, _NUM_STEPS)
    shape = (layout.num_microbatches, order.num_sequences // layout.num_microbatches, order.sequence_tokens)
    rows = jax.ShapeDtypeStruct(shape, np.int32, sharding=NamedSharding(mesh, PartitionSpec(None, sharding.RULES.batch)))
    with jax.set_mesh(mesh), target.tracing_for(order.platform):
        abstract = abstract_state(program, optimizer, layout, mesh)
        requests = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        return lower_step(program, optimizer, learning_rate(order.optimizer, _NUM_STEPS), abstract, (rows, rows), requests)


def devices_of(order: ProgramOrder) -> list[Any]:
    """The order's devices: made up on the CPU, of a described machine else."""
    if order.compiler == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    if order.compiler == "tpu":
        name = order.topology or ""
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **_CHIP_CONFIGS.get(name.partition(":")[0], {})).devices
    return topologies.get_topology_desc("", platform="cuda", topology=order.topology, target_config=order.target).devices


def main(path: Path) -> None:
    order = ProgramOrder.from_data(json.loads(path.read_text()), origin=str(path))
    account = compile_order(order, path.parent)
    (path.parent / "account.json").write_text(account.to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

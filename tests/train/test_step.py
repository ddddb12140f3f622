"""The optimizer step: microbatches do not matter, bad steps change nothing, layouts agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from colossus.nn.sharding import RULES, make_mesh
from colossus.spec.job import OptimizerSpec
from colossus.spec.layout import MESH_AXES, Layout
from colossus.train.feed import Feed
from colossus.train.optimizer import learning_rate, make_optimizer
from colossus.train.program import ArrayDataset, Program
from colossus.train.session import abstract_state, begin_state, compile_step
from colossus.train.step import REQUESTS

SPEC = OptimizerSpec(warmup_steps=0, learning_rate=0.1)


def program() -> Program:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    data = {"x": x, "y": (x @ rng.normal(size=(8, 4))).astype(np.float32)}

    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (8, 4)), "bias": jnp.zeros(4)}

    def loss(params, batch):
        error = batch["x"] @ params["w"] + params["bias"] - batch["y"]
        return jnp.mean(error**2), {"worst": jnp.max(jnp.abs(error))}

    return Program(init=init, loss=loss, dataset=ArrayDataset(train=data, validation=data, num_examples=16))


def trained(layout: Layout, num_steps: int = 5, threshold: float = np.inf):
    made, mesh = program(), make_mesh(layout, jax.devices()[: layout.num_devices])
    optimizer = make_optimizer(SPEC, num_steps)
    with jax.set_mesh(mesh):
        feed = Feed(made.dataset, mesh, num_sequences=16, num_microbatches=layout.num_microbatches, batch_axes=RULES.batch)
        abstract = abstract_state(made, optimizer, layout, mesh)
        where = NamedSharding(mesh, P(MESH_AXES))
        step = compile_step(made, optimizer, learning_rate(SPEC, num_steps), abstract, feed.abstract(), where)
        state, losses = begin_state(made, optimizer, 0, abstract), []
        for number in range(num_steps):
            wishes = jax.device_put(np.zeros((mesh.size, len(REQUESTS)), np.int32), where)
            state, measured = step(state, feed.train(number), np.float32(threshold), wishes)
            losses.append(float(measured["loss"]))
        feed.close()
    return state, losses, measured


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2, fsdp=4),
        Layout(dp=4, num_microbatches=2),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (Layout(dp=8), Layout(fsdp=8), Layout(num_microbatches=4), Layout(fsdp=2, num_microbatches=8))),
    ],
    ids=Layout.describe,
)
def test_layouts_and_microbatches_give_one_loss_curve(layout):
    _, alone, _ = trained(Layout())
    _, losses, _ = trained(layout)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


def test_fsdp_cuts_weights_and_moments():
    state, _, _ = trained(Layout(fsdp=8), num_steps=1)
    assert state["params"]["w"].sharding.spec == P("fsdp", None)
    cut = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.shape == (8, 4)]
    assert len(cut) == 2 and all(leaf.sharding.spec == P("fsdp", None) for leaf in cut)


def test_a_step_above_the_threshold_changes_nothing_but_the_count():
    before, _, _ = trained(Layout(), num_steps=0 + 1, threshold=-1.0)
    start = begin_state(program(), make_optimizer(SPEC, 1), 0, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), before))
    assert int(before["step"]) == 1
    for name in ("w", "bias"):
        np.testing.assert_array_equal(before["params"][name], start["params"][name])


def test_a_step_reports_what_it_did():
    _, _, measured = trained(Layout(dp=2), num_steps=1)
    assert bool(measured["applied"]) and float(measured["grad_norm"]) > 0 and set(measured["metrics"]) == {"worst"}

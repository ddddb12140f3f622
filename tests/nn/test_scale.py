"""The very train step, lowered for machines that are not here: its work is the closed form's, and a bad layout is refused first."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from colossus.catalog.models import load_model
from colossus.estimate.flop import train_flop
from colossus.nn import lowering, sharding
from colossus.nn.attention import attended_keys
from colossus.nn.compute import Compute
from colossus.nn.decoder import init_params
from colossus.nn.lowering import FlopCount, count_flop
from colossus.spec.errors import SpecError
from colossus.spec.job import OptimizerSpec, Precision
from colossus.spec.layout import MESH_AXES, Layout, Remat
from colossus.spec.model import ModelCard
from colossus.train.language import token_loss
from colossus.train.optimizer import learning_rate, make_optimizer, state_specs
from colossus.train.program import Program
from colossus.train.step import REQUESTS, init_state, make_step

LENGTH = 8192


def _lower_train_step(card: ModelCard, layout: Layout, num_sequences: int) -> jax.stages.Lowered:
    """The step of train/step.py with AdamW, clipping and the guard, in bfloat16 over float32 master weights."""
    lowering.require_layout(card, layout, num_sequences, LENGTH)
    compute = Compute(precision=Precision.BFLOAT16, remat=layout.remat)
    dataset: Any = None
    program = Program(init=partial(init_params, card), loss=partial(token_loss, card=card, compute=compute), dataset=dataset)
    spec = OptimizerSpec()
    optimizer = make_optimizer(spec, 1000)
    state = jax.eval_shape(lambda: init_state(program, optimizer, 0))
    cuts = sharding.param_specs(card, layout)
    specs = {"step": P(), "params": cuts, "opt_state": state_specs(state["opt_state"], state["params"], cuts, replicated=P())}
    rows = jax.ShapeDtypeStruct((layout.num_microbatches, num_sequences // layout.num_microbatches, LENGTH), jnp.int32)
    requests = jax.ShapeDtypeStruct((layout.num_devices, len(REQUESTS)), jnp.int32)
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    shapes = (state, (rows, rows), threshold, requests)
    placed = (specs, (P(None, *sharding.batch_spec()),) * 2, P(), P(MESH_AXES))
    step = make_step(program, optimizer, learning_rate(spec, 1000))
    return lowering.lower(step, lowering.abstract(shapes, placed, layout), layout)


@pytest.mark.parametrize(
    ("model", "layout", "num_sequences"),
    [
        ("llama-3.1-405b", Layout(dp=16, fsdp=128, tp=8, remat=Remat.FULL), 2048),
        pytest.param("llama-3.1-405b", Layout(dp=1024, fsdp=128, tp=8, remat=Remat.FULL), 131072, marks=pytest.mark.slow),
        ("llama-3.1-405b", Layout(dp=8, fsdp=128, tp=16, remat=Remat.SELECTIVE, num_microbatches=4), 4096),
        ("qwen3-30b-a3b", Layout(dp=64, fsdp=16, tp=4, remat=Remat.FULL), 1024),
    ],
    ids=lambda x: f"{x.num_devices} devices, {x.describe()}" if isinstance(x, Layout) else str(x),
)
def test_work_of_the_lowered_step_is_the_closed_form(model, layout, num_sequences):
    card = load_model(model)
    counted = count_flop(_lower_train_step(card, layout, num_sequences))
    keys = attended_keys(LENGTH, window=card.sliding_window_tokens)
    expected = train_flop(card, num_sequences, LENGTH, layout.remat, attended_keys=keys, tp=layout.tp)
    assert counted.total_flop == pytest.approx(expected.total_flop, rel=0.01)
    assert expected.model_flop < expected.total_flop < 1.34 * expected.model_flop
    assert counted.opaque_calls == ()


@pytest.mark.parametrize(
    ("layout", "num_sequences", "message"),
    [
        (Layout(dp=16, fsdp=128, tp=3), 2048, r"layout.tp = 3: must divide model.num_heads 128 \(nearest: 2 or 4\)"),
        (Layout(dp=16, fsdp=128, tp=8), 2000, r"batch.num_sequences = 2000: .* = 2048 equal parts \(nearest: 2048\)"),
        (Layout(fsdp=96), 96, r"layout.fsdp = 96: must divide model.model_dim 16384 \(nearest: 64 or 128\)"),
        (Layout(tp=256), 1, r"layout.tp = 256: must divide model.num_heads 128 \(nearest: 128\)"),
    ],
    ids=["heads", "batch", "model_dim", "too many"],
)
def test_a_bad_layout_is_refused_before_lowering(layout, num_sequences, message):
    with pytest.raises(SpecError, match=message):
        _lower_train_step(load_model("llama-3.1-405b"), layout, num_sequences)


def _count(function: Any, *shapes: tuple[int, ...]) -> FlopCount:
    return count_flop(jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def test_counts_loops_within_loops_and_the_dearer_branch():
    def inner(x, _):
        return x @ x, None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, None, length=3)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x), None

    assert _count(lambda x: jax.lax.scan(outer, x, None, length=7)[0], (4, 4)).total_flop == 7 * (3 + 2) * 2 * 4**3
    assert _count(lambda x: jax.lax.fori_loop(2, 9, lambda _, x: x @ x, x), (4, 4)).total_flop == 7 * 2 * 4**3


def test_counts_batched_products_and_every_device_of_a_shard_map():
    assert _count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 2, 3), (5, 3, 7)).total_flop == 2 * 5 * 2 * 3 * 7
    mesh = sharding.make_mesh(Layout(dp=2, tp=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        local = jax.shard_map(jnp.dot, in_specs=(P("dp", None), P(None, "tp")), out_specs=P("dp", "tp"))
        assert _count(local, (8, 6), (6, 4)).total_flop == 2 * 8 * 6 * 4
        copied = jax.shard_map(jnp.dot, in_specs=(P("dp", None), P()), out_specs=P("dp", None))
        assert _count(copied, (8, 6), (6, 4)).total_flop == 2 * (2 * 8 * 6 * 4)


def test_work_of_a_custom_call_is_not_passed_over_in_silence():
    counted = _count(lambda x: jnp.linalg.qr(x)[0], (8, 8))
    assert counted.total_flop == 0 and any("qr" in name for name in counted.opaque_calls)


def test_closed_form_by_hand():
    """6 FLOP per weight and token, the embedding's look-up and the norms apart, and the scores."""
    card = load_model("llama-3.2-1b")
    flop = train_flop(card, 1, 4096)
    weights = (
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(partial(init_params, card), jax.random.key(0))) if x.ndim > 2) + card.vocab_size * card.model_dim
    )
    scores = 12 * card.num_layers * card.num_heads * card.head_dim * 4097 / 2
    assert flop.model_flop == pytest.approx(4096 * (6 * weights + scores), rel=1e-9)
    assert np.isclose(train_flop(card, 1, 4096, attended_keys=4096).attention_flop / flop.attention_flop, 4096 / 2048.5)

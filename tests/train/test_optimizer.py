"""The optimizer against Optax's own, against plain NumPy, and its gate, masks and shardings."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from colossus.spec.job import OptimizerSpec
from colossus.train.optimizer import decay_mask, learning_rate, make_optimizer, matrix_of, state_specs
from tests.nn.decoders import quick_jit

L, D, H, K, F, V, E = 2, 8, 2, 4, 16, 32, 3
SHAPES = {
    "embed": {"tokens": (V, D)},
    "layers": {
        "attn_norm": (L, D),
        "wq": (L, D, H, K),
        "wk": (L, D, H, K),
        "wo": (L, H, K, D),
        "q_norm": (L, K),
        "router": (L, D, E),
        "w_gate": (L, E, D, F),
        "w_down": (L, E, F, D),
    },
    "final_norm": {"scale": (D,)},
    "lm_head": {"kernel": (D, V)},
}


def tree(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def run(optimizer, steps, **extra):
    params = tree(0)
    state = optimizer.init(params)
    update = quick_jit(partial(optimizer.update, **extra))
    for seed in range(1, steps + 1):
        updates, state = update(tree(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def test_adamw_equals_optax():
    spec = OptimizerSpec(learning_rate=1e-2, warmup_steps=2, clip_norm=0.5)
    reference = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(learning_rate(spec, 10), b1=spec.beta1, b2=spec.beta2, eps=spec.epsilon, weight_decay=spec.weight_decay, mask=decay_mask),
    )
    assert_close(run(make_optimizer(spec, 10), 6)[0], run(reference, 6)[0], rtol=2e-5, atol=1e-6)


def test_what_is_decayed_and_what_muon_takes():
    mask = decay_mask(tree(0))
    assert {name for name, decayed in mask["layers"].items() if not decayed} == {"attn_norm", "q_norm"}
    assert mask["embed"]["tokens"] and mask["lm_head"]["kernel"] and not mask["final_norm"]["scale"]
    assert decay_mask({"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "stack": {"bias": jnp.ones((2, 4))}}) == {
        "dense": {"kernel": True, "bias": False},
        "stack": {"bias": False},
    }
    taken = jax.tree_util.tree_map_with_path(lambda path, array: matrix_of(path, array) is not None, tree(0))
    assert {name for name, muon in taken["layers"].items() if muon} == {"wq", "wk", "wo", "w_gate", "w_down"}
    assert not taken["embed"]["tokens"] and not taken["lm_head"]["kernel"]


def test_muon_orthogonalises_each_layer_by_itself():
    spec = OptimizerSpec(kind="muon", learning_rate=1.0, warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=None)
    optimizer = make_optimizer(spec, 10)
    params, grads, update_by = tree(0), tree(1), quick_jit(optimizer.update)
    updates, _ = update_by(grads, optimizer.init(params), params)
    for update in (
        updates["layers"]["wq"].reshape(L, D, H * K),
        updates["layers"]["wo"].reshape(L, H * K, D),
        updates["layers"]["w_down"].reshape(L * E, F, D),
    ):
        singular = np.linalg.svd(np.asarray(update), compute_uv=False) / (0.2 * np.sqrt(max(update.shape[-2:])))
        assert np.all((singular > 0.4) & (singular < 1.4))
    other = jax.tree.map(lambda g: g.at[1].multiply(3.0) if g.ndim > 2 else g, grads)
    again, _ = update_by(other, optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["wq"][0], again["layers"]["wq"][0], atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_skipped_step_changes_nothing_but_the_schedule(kind):
    optimizer = make_optimizer(OptimizerSpec(kind=kind), 100)
    params, state = run(optimizer, 3)
    broken = jax.tree.map(lambda g: g * jnp.nan, tree(9))
    updates, after = quick_jit(lambda g, s, p: optimizer.update(g, s, p, applied=jnp.asarray(False)))(broken, state, params)
    assert_close(optax.apply_updates(params, updates), params, rtol=0, atol=0)
    counts = [(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True) if not np.array_equal(a, b)]
    assert len(counts) == 1 and counts[0][0] == counts[0][1] + 1


def test_the_gate_open_is_no_gate():
    optimizer = make_optimizer(OptimizerSpec(), 100)
    assert_close(run(optimizer, 3, applied=jnp.asarray(True))[0], run(optimizer, 3)[0], rtol=0, atol=0)


def test_adamw_is_compiled_in_place():
    """No copies and no temporaries as large as a tensor: the reason for the gate inside."""
    optimizer = make_optimizer(OptimizerSpec(), 100)

    def step(params, state, grads, ceiling):
        applied = optax.tree.norm(grads) < ceiling
        updates, state = optimizer.update(grads, state, params, applied=applied)
        return optax.apply_updates(params, updates), state

    params = {"kernel": jnp.ones((256, 256)), "other": jnp.ones((128, 256))}
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params, 1.0).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 128 * 256 * 4


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules(schedule):
    spec = OptimizerSpec(learning_rate=2.0, schedule=schedule, warmup_steps=4, final_learning_rate_fraction=0.25, decay_fraction=0.5)
    rate = [float(learning_rate(spec, 100)(step)) for step in range(100)]
    assert rate[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rate[-1] == pytest.approx(2.0 if schedule == "constant" else 0.5)
    assert all(a >= b for a, b in pairwise(rate[4:]))
    assert rate[49] == pytest.approx({"cosine": 2.0 * (0.25 + 0.75 * 0.5 * (1 + np.cos(np.pi * 45 / 95))), "wsd": 2.0, "constant": 2.0}[schedule])


@pytest.mark.parametrize("num_steps", [1, 2])
def test_schedules_of_the_shortest_runs(num_steps):
    rates = [float(learning_rate(OptimizerSpec(warmup_steps=0, schedule=name), num_steps)(0)) for name in ("cosine", "wsd", "constant")]
    assert rates == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_shards_as_its_parameters(kind):
    params = jax.eval_shape(lambda: tree(0))
    specs = jax.tree.map(lambda p: P(*(f"axis{i}" for i in range(p.ndim))), params)
    state = jax.eval_shape(make_optimizer(OptimizerSpec(kind=kind), 10).init, params)
    found = state_specs(state, params, specs, replicated=P())
    jax.tree.map(lambda leaf, spec: None if len(spec) == leaf.ndim or leaf.ndim < 3 else pytest.fail(f"{leaf} {spec}"), state, found)
    moments = 2 * 11 if kind == "adamw" else 5 + 2 * 6
    assert sum(len(spec) > 0 for spec in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, P))) == moments

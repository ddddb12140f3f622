"""The mixture of experts against a dense loop over its experts: no token is dropped, however uneven the routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.nn.grouped import _blocks, block_rows, grouped_matmul, num_blocks
from colossus.nn.moe import moe_mlp, route
from colossus.spec.model import MoeCard
from tests.nn.decoders import largest_difference, quick_jit

D, X, E = 16, 24, 4
MOE = MoeCard(num_experts=E, num_experts_per_token=2, expert_dim=X)


def _normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _weights(skew: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"router": (D, E), "w_gate": (E, D, X), "w_up": (E, D, X), "w_down": (E, X, D)}
    weights = {name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}
    weights["router"][:, 0] += skew
    return weights


def _dense(h, weights, moe):
    """Every token through every expert, weighed by its gate or by zero."""
    p = jax.nn.softmax(h @ weights["router"])
    gates, chosen = jax.lax.top_k(p, moe.num_experts_per_token)
    gates = gates / gates.sum(-1, keepdims=True) if moe.normalize_top_k else gates
    y = 0.0
    for e in range(moe.num_experts):
        out = (jax.nn.silu(h @ weights["w_gate"][e]) * (h @ weights["w_up"][e])) @ weights["w_down"][e]
        y = y + out * jnp.sum(jnp.where(chosen == e, gates, 0.0), -1)[..., None]
    return y


_route = quick_jit(lambda h, router: route(h, router, MOE))


@pytest.mark.parametrize(
    ("normalize", "skew"),
    [(True, 5.0), (False, 0.0), pytest.param(True, 0.0, marks=pytest.mark.slow), pytest.param(False, 5.0, marks=pytest.mark.slow)],
)
def test_equals_the_dense_loop_with_gradients(normalize, skew):
    moe = MOE.model_copy(update={"normalize_top_k": normalize})
    h = np.abs(_normal(3, 37, D))  # positive, so that a skew pulls all tokens to expert 0
    weights = _weights(skew)
    if skew:
        assert np.all(np.any(_route(h, weights["router"]).experts_btk == 0, axis=-1))
    ours = quick_jit(jax.value_and_grad(lambda h, w: jnp.sum(jnp.sin(moe_mlp(h, w, moe)[0])), (0, 1)))(h, weights)
    dense = quick_jit(jax.value_and_grad(lambda h, w: jnp.sum(jnp.sin(_dense(h, w, moe))), (0, 1)))(h, weights)
    assert largest_difference(ours, dense) < 2e-5


def test_losses_are_their_formulas():
    h = _normal(2, 8, D)
    even = _route(h, np.zeros((D, E), np.float32)).losses
    assert float(even["load_balance"]) == pytest.approx(1.0)
    assert float(even["z_loss"]) == pytest.approx(np.log(E) ** 2)
    one = np.zeros((D, E), np.float32)
    one[:, 1] = 50.0
    assert float(_route(np.ones((2, 8, D), np.float32), one).losses["load_balance"]) == pytest.approx(E / 2)  # half of all assignments, all probability


def test_load_balance_does_not_depend_on_how_the_batch_is_cut():
    h, router = _normal(4, 8, D), _weights()["router"]
    whole = _route(h, router).losses["load_balance"]
    halves = [_route(part, router).losses["load_balance"] for part in (h[:2], h[2:])]
    assert float(whole) == pytest.approx(float(sum(halves) / 2))


M, G = 50, 5
_grouped = quick_jit(jax.value_and_grad(lambda x, w, sizes, c: jnp.sum(c * grouped_matmul(x, w, sizes)), (0, 1)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, M), min_size=G - 1, max_size=G - 1))
def test_grouped_matmul_for_any_group_sizes(cuts):
    sizes = np.diff([0, *sorted(cuts), M]).astype(np.int32)
    group = np.repeat(np.arange(G), sizes)
    x, w, c = _normal(M, 6, seed=0), _normal(G, 6, 7, seed=1), _normal(M, 7, seed=2)
    value, (d_x, d_w) = _grouped(x, w, sizes, c)
    y = np.einsum("ma,mac->mc", x, w[group])
    assert float(value) == pytest.approx(float(np.sum(y * c)), abs=1e-3)
    assert np.allclose(d_x, np.einsum("mc,mac->ma", c, w[group]), atol=1e-4)
    assert np.allclose(d_w, [np.einsum("ma,mc->ac", x[group == g], c[group == g]) for g in range(G)], atol=1e-4)


ROWS, GROUPS = 3000, 16
_all_blocks = jax.jit(lambda sizes: _blocks(ROWS, sizes))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, ROWS), min_size=GROUPS - 1, max_size=GROUPS - 1))
def test_blocks_cover_every_row_once(cuts):
    sizes = np.diff([0, *sorted(cuts), ROWS]).astype(np.int32)
    size = block_rows(ROWS, GROUPS)
    group, start, end = (np.asarray(x) for x in _all_blocks(sizes))
    assert len(group) == num_blocks(ROWS, GROUPS)
    covered = np.concatenate([np.arange(s, min(s + size, e)) for s, e in zip(start, end, strict=True) if s < ROWS])
    assert np.array_equal(covered, np.arange(ROWS))
    owner = np.repeat(np.arange(GROUPS), sizes)
    assert all(owner[s] == g for g, s in zip(group, start, strict=True) if s < ROWS)

"""Plain attention in blocks against the formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.estimate.flop import mean_causal_keys
from colossus.nn.attention import attended_keys, blocks, plain_attention
from tests.nn.decoders import largest_difference, quick_jit


def _formula(q, k, v, scale, causal, window):
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * scale
    age = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])[None]
    mask = (age >= 0) & (age < (window or q.shape[1])) if causal else jnp.ones_like(age, bool)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), v)


@pytest.mark.parametrize(("length", "causal", "window"), [(300, True, None), (300, True, 50), (17, False, None)])
def test_plain_attention_is_the_formula(length, causal, window):
    rng = np.random.default_rng(0)
    q, k, v, c = (rng.normal(size=(2, length, heads, 8)).astype(np.float32) for heads in (4, 2, 2, 4))

    def run(function):
        return quick_jit(jax.value_and_grad(lambda *qkv: jnp.sum(c * function(*qkv)), (0, 1, 2)))(q, k, v)

    ours = run(lambda q, k, v: plain_attention(q, k, v, scale=0.3, causal=causal, window=window))
    assert largest_difference(ours, run(lambda q, k, v: _formula(q, k, v, 0.3, causal, window))) < 1e-5


@given(st.integers(1, 5000), st.none() | st.integers(1, 6000))
def test_blocks_reach_every_key_that_the_mask_lets_through(length, window):
    covered = 0
    for first_query, end_query, first_key, end_key in blocks(length, True, window):
        assert first_query == covered and end_query > first_query and end_key == end_query
        assert first_key <= max(0, first_query - (window or length) + 1)
        covered = end_query
    assert covered == length
    assert attended_keys(length, True, window) >= mean_causal_keys(length, window) - 1e-6


def test_work_above_the_diagonal_is_left_out():
    assert attended_keys(8192) == (8192 + 512) / 2
    assert attended_keys(100) == 100
    assert np.isclose(mean_causal_keys(8192), 8193 / 2)
    assert mean_causal_keys(10, 1) == 1

"""The decoder: its parameter tree, causality, positions, loss, and that no choice of computing changes the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colossus.nn import decoder
from colossus.nn.parameters import param_axes, param_shapes
from colossus.nn.rope import apply_rope, inverse_frequencies, rope_tables
from colossus.spec.job import Precision
from colossus.spec.layout import Remat
from colossus.spec.model import ModelCard, RopeScaling
from tests.nn.decoders import CARDS, DENSE, MIXTURE, batch, gradient, largest_difference, plain, quick_jit
from tests.nn.decoders import params as init


@pytest.mark.parametrize("name", CARDS)
def test_the_tree_is_the_one_the_table_says(name):
    card = CARDS[name]
    params = init(card)
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda s: s.shape, param_shapes(card))
    assert jax.tree.map(len, param_axes(card), is_leaf=lambda n: isinstance(n, tuple)) == jax.tree.map(lambda x: x.ndim, params)
    assert decoder.num_params(card) == sum(x.size for x in jax.tree.leaves(params))
    assert ("lm_head" in params) != card.tie_embeddings
    assert shapes["layers"]["wq"] == (2, 32, 8, 8)


def test_loss_at_the_start_is_near_that_of_guessing():
    params = init(DENSE)
    total, parts = quick_jit(lambda p, x, y: decoder.loss(p, x, y, DENSE, compute=plain()))(params, *batch(DENSE))
    assert abs(float(total) - np.log(64)) < 1.0
    assert float(parts["cross_entropy"]) == float(total)


@pytest.mark.parametrize("name", CARDS)
def test_loss_and_gradient_are_those_of_the_logits(name):
    """The fused, chunked loss against log_softmax of ``forward``; the chunk does not divide the tokens."""
    card = CARDS[name]
    params = init(card)
    tokens, targets = batch(card)
    weights = np.random.default_rng(5).uniform(size=targets.shape).astype(np.float32)

    def reference(p):
        log_p = jax.nn.log_softmax(decoder.forward(p, tokens, card, compute=plain()))
        nats = -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]) / jnp.sum(weights)
        if card.moe is None:
            return nats
        _, parts = decoder.hidden_states(p, tokens, card, compute=plain())
        return nats + card.moe.load_balance_weight * parts["load_balance"] + card.moe.z_loss_weight * parts["z_loss"]

    def fused(p):
        return decoder.loss(p, tokens, targets, card, weights_bt=weights, compute=plain(chunk_tokens=48))[0]

    expected, expected_gradient = quick_jit(jax.value_and_grad(reference))(params)
    value, grads = quick_jit(jax.value_and_grad(fused))(params)
    assert float(value) == pytest.approx(float(expected), abs=2e-6)
    assert largest_difference(grads, expected_gradient) < 2e-5


def test_a_token_sees_only_those_before_it():
    params = init(MIXTURE)
    tokens, _ = batch(MIXTURE, 1)
    run = quick_jit(lambda t: decoder.forward(params, t, MIXTURE, compute=plain()))
    changed = tokens.copy()
    changed[0, 10] = (tokens[0, 10] + 1) % 64
    before, after = run(tokens), run(changed)
    assert np.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not np.allclose(before[:, 10], after[:, 10], atol=1e-3)


def test_only_distances_between_positions_count():
    params = init(DENSE)
    tokens, _ = batch(DENSE, 2)
    run = quick_jit(lambda shift: decoder.forward(params, tokens, DENSE, positions_bt=jnp.arange(16)[None] + shift, compute=plain()))
    assert np.allclose(run(0), run(1000), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "remat", "unroll"),
    [
        ("dense", Remat.SELECTIVE, False),
        pytest.param("dense", Remat.FULL, True, marks=pytest.mark.slow),
        pytest.param("mixture", Remat.SELECTIVE, True, marks=pytest.mark.slow),
        pytest.param("mixture", Remat.FULL, False, marks=pytest.mark.slow),
    ],
)
def test_how_it_is_computed_does_not_change_the_result(name, remat, unroll):
    card = CARDS[name]
    params = init(card)
    expected = quick_jit(gradient(card, plain(unroll=True)))(params, *batch(card))
    result = quick_jit(gradient(card, plain(remat=remat, unroll=unroll)))(params, *batch(card))
    assert largest_difference(result, expected) < 1e-5


def test_bfloat16_is_close_and_its_gradients_are_float32():
    params = init(DENSE)
    (wide, _), _ = quick_jit(gradient(DENSE, plain()))(params, *batch(DENSE))
    (narrow, _), grads = quick_jit(gradient(DENSE, plain(precision=Precision.BFLOAT16)))(params, *batch(DENSE))
    assert float(narrow) == pytest.approx(float(wide), abs=2e-2)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_rope_keeps_lengths_and_scaling_is_that_of_transformers():
    card = ModelCard(**{**DENSE.model_dump(), "head_dim": 64, "rope_scaling": RopeScaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=8192)})  # fmt: skip
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 64)).astype(np.float32)
    turned = quick_jit(lambda x, at: apply_rope(x, rope_tables(card, at)))(x, np.array([[0, 1, 500, 9000]]))
    assert np.allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert np.allclose(turned[0, 0], x[0, 0])
    plain_frequencies = inverse_frequencies(card.model_copy(update={"rope_scaling": None}))
    scaled = inverse_frequencies(card)
    wavelengths = 2 * np.pi / plain_frequencies
    assert np.allclose(scaled[wavelengths < 8192 / 4], plain_frequencies[wavelengths < 8192 / 4])
    assert np.allclose(scaled[wavelengths > 8192], plain_frequencies[wavelengths > 8192] / 8)
    between = (wavelengths >= 8192 / 4) & (wavelengths <= 8192)
    assert between.any() and np.all(scaled[between] <= plain_frequencies[between]) and np.all(scaled[between] >= plain_frequencies[between] / 8)

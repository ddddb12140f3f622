"""The paged decoder gives nn.decoder's logits, whatever the mix of rows, the chunks, the order of pages and what padding holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.nn import decoder
from colossus.nn.paged import _decoder, make_decoder, page_bytes, plain_decoder
from colossus.nn.paged_cache import NULL_PAGE
from colossus.nn.quantized import Quantized, group_size, product, quantize, whole
from colossus.spec.errors import SpecError
from colossus.spec.job import Precision
from tests.nn.decoders import largest_difference, params, plain, quick_jit
from tests.nn.paging import CARDS, NUM_PAGES, PAGES_OF_ROW, ROWS, TOKENS, Rows


@functools.cache
def ready(name, cache="float32", weights="float32"):
    """A decoder and its compiled logits; the pages are given away in each step, as an engine does."""
    made = make_decoder(params(CARDS[name]), CARDS[name], weights=weights, cache=cache)
    return made, quick_jit(functools.partial(_logits, made))


def _logits(made, weights, pages, batch):
    hidden_td, pages = made.forward(weights, pages, batch)
    return made.logits(weights, hidden_td), pages


@functools.cache
def _reference(name):
    return quick_jit(functools.partial(decoder.forward, card=CARDS[name], compute=plain()))


def expected(name, sequence):
    """Logits of every token of one sequence."""
    padded = np.zeros((1, 80), np.int32)
    padded[0, : len(sequence)] = sequence
    return np.asarray(_reference(name)(params(CARDS[name]), padded))[0, : len(sequence)]


def run(name, rows, draw, *, cache="float32", weights="float32", spoil=None):
    """Steps with ``draw(rows) -> (counts, shape)`` until nothing is left: the logits of every token of every sequence."""
    made, step = ready(name, cache, weights)
    pages = made.empty_pages(NUM_PAGES)
    if spoil is not None:
        pages = jax.tree.map(lambda leaf: jnp.full_like(leaf, spoil), pages)
    found = [[] for _ in rows.sequences]
    while any(rows.left(row) for row in range(len(rows.sequences))):
        counts, num_tokens = draw(rows)
        logits_tv, pages = step(made.weights, pages, rows.batch(counts, num_tokens))
        parts = np.split(np.asarray(logits_tv), np.cumsum(list(counts.values())))
        for row, part in zip(counts, parts[:-1], strict=True):
            found[row].append(part)
    return [np.concatenate(parts) for parts in found]


def at_random(rng):
    """A step of decoding now and then, else chunks of any size of some rows in any order."""

    def draw(rows):
        waiting = [row for row in range(len(rows.sequences)) if rows.left(row)]
        chosen = rng.permutation(waiting)[: rng.integers(1, len(waiting) + 1)]
        if rng.random() < 0.4:
            return dict.fromkeys(map(int, chosen), 1), ROWS
        counts, budget = {}, TOKENS
        for row in map(int, chosen):
            if budget:
                counts[row] = int(rng.integers(1, min(rows.left(row), budget) + 1))
                budget -= counts[row]
        return counts, TOKENS

    return draw


def sequences(rng, card, lengths):
    return [rng.integers(0, card.vocab_size, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("name", [name if name in ("llama", "window") else pytest.param(name, marks=pytest.mark.slow) for name in CARDS])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 16 * PAGES_OF_ROW), min_size=1, max_size=ROWS), seed=st.integers(0, 2**16))
def test_any_mix_gives_the_same_logits(name, lengths, seed):
    rng = np.random.default_rng(seed)
    rows = Rows(sequences(rng, CARDS[name], lengths), rng)
    for sequence, logits in zip(rows.sequences, run(name, rows, at_random(rng)), strict=True):
        np.testing.assert_allclose(logits, expected(name, sequence), atol=2e-5)


@pytest.mark.parametrize("cache", ["float32", "bfloat16"])
def test_what_others_left_in_pages_is_never_seen(cache):
    """Not even numbers that are none, in the null page, in the rest of a page, in pages of others."""
    rng = np.random.default_rng(3)
    rows = Rows(sequences(rng, CARDS["window"], (70, 3, 33)), rng)
    again = Rows(rows.sequences, np.random.default_rng(3))
    draw = at_random(np.random.default_rng(1)), at_random(np.random.default_rng(1))
    for one, other in zip(run("window", rows, draw[0], cache=cache, spoil=np.nan), run("window", again, draw[1], cache=cache), strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_the_rows_pages_change():
    made, step = ready("llama")
    rng = np.random.default_rng(0)
    rows = Rows(sequences(rng, CARDS["llama"], (20, 5)), rng)
    _, pages = step(made.weights, made.empty_pages(NUM_PAGES), rows.batch({1: 5, 0: 20}))
    touched = set(np.flatnonzero(np.abs(np.asarray(pages.k)).sum((0, 2, 3, 4)))) - {NULL_PAGE}
    assert touched == {*rows.pages[0][:2], rows.pages[1][0]}


@pytest.mark.parametrize(("cache", "bound"), [("bfloat16", 0.01), ("int8", 0.02)])
@pytest.mark.parametrize("name", ["llama", "window"])
def test_smaller_caches_stay_near(name, cache, bound):
    rng = np.random.default_rng(7)
    rows = Rows(sequences(rng, CARDS[name], (80, 41, 9)), rng)
    for sequence, logits in zip(rows.sequences, run(name, rows, at_random(rng), cache=cache), strict=True):
        assert 0 < largest_difference(logits, expected(name, sequence)) < bound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_int8_weights_are_those_numbers_exactly(name):
    """The plain decoder: the same as the float32 one with the weights that int8 stands for."""
    card, rng = CARDS[name], np.random.default_rng(5)
    stored = _decoder(params(card), card, dtype=jnp.float32, int8=True, cache_dtype=jnp.float32, mesh=None)
    assert any(isinstance(leaf, Quantized) for leaf in stored.weights["layers"][0].values())
    rounded = plain_decoder(params(card), card)
    dense = jax.tree.map(lambda leaf: whole(leaf, jnp.float32), stored.weights, is_leaf=lambda node: isinstance(node, Quantized))
    batch = Rows(sequences(rng, card, (50, 20)), rng).batch({0: 40, 1: 8})
    one, _ = quick_jit(functools.partial(_logits, rounded))(dense, rounded.empty_pages(NUM_PAGES), batch)
    other, _ = quick_jit(functools.partial(_logits, stored))(stored.weights, stored.empty_pages(NUM_PAGES), batch)
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_int8_weights_stay_near(name):
    """Of the decoder that this machine takes."""
    rng = np.random.default_rng(5)
    rows = Rows(sequences(rng, CARDS[name], (50, 20)), rng)
    for sequence, logits in zip(rows.sequences, run(name, rows, at_random(rng), weights="int8"), strict=True):
        assert 0 < largest_difference(logits, expected(name, sequence)) < 0.1


@pytest.mark.parametrize("num_inputs", [1, 7, 64, 67, 96, 288])
def test_int8_is_within_half_a_step(num_inputs):
    weight = np.random.default_rng(num_inputs).normal(size=(num_inputs, 3)).astype(np.float32)
    stored = quantize(jnp.asarray(weight), 0)
    steps = np.repeat(np.asarray(stored.scale), group_size(num_inputs), axis=0)
    assert stored.numbers.dtype == jnp.int8
    assert np.all(np.abs(whole(stored, jnp.float32) - weight) <= 0.5001 * steps)


def test_bfloat16_weights():
    card, rng = CARDS["llama"], np.random.default_rng(2)
    rows = Rows(sequences(rng, card, (30,)), rng)
    made = plain_decoder(params(card), card, precision=Precision.BFLOAT16, cache_dtype=jnp.bfloat16)
    logits, _ = quick_jit(functools.partial(_logits, made))(made.weights, made.empty_pages(NUM_PAGES), rows.batch({0: 30}))
    assert 0 < largest_difference(np.asarray(logits)[:30], expected("llama", rows.sequences[0])) < 0.05


def test_memory_of_a_page():
    for cache in ("float32", "bfloat16", "int8"):
        made, _ = ready("llama", cache)
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(made.empty_pages(10))]
        assert sum(sizes) == 10 * page_bytes(CARDS["llama"], cache)


def test_unknown_numbers_are_refused():
    with pytest.raises(SpecError, match=r"weights = 'int4': must be one of float32, bfloat16, int8"):
        make_decoder(params(CARDS["llama"]), CARDS["llama"], weights="int4")


@pytest.mark.parametrize(("inputs", "num_rows"), [((96,), 1), ((96,), 7), ((4, 16), 3)])
def test_products_in_groups_are_those_of_the_whole_weight(inputs, num_rows):
    rng = np.random.default_rng(0)
    stored = quantize(jnp.asarray(rng.normal(size=(*inputs, 5, 3)), jnp.float32), len(inputs) - 1)
    x = rng.normal(size=(1, num_rows, *inputs)).astype(np.float32)
    expected = np.tensordot(x, whole(stored, jnp.float32), len(inputs))
    np.testing.assert_allclose(product(jnp.asarray(x), stored, len(inputs)), expected, atol=1e-4)

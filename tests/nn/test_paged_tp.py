"""Serving cut over tp: the answers of one device, and no message between devices but those one expects."""

import re
from collections import Counter

import jax
import numpy as np
import pytest

from colossus.nn.paged import make_decoder, tp_mesh
from colossus.spec.errors import SpecError
from tests.nn.decoders import QUICK, params
from tests.nn.paging import CARDS, NUM_PAGES, ROWS, TOKENS, Rows, greedy, greedy_step


def cut(name, tp, **numbers):
    return make_decoder(params(CARDS[name]), CARDS[name], mesh=tp_mesh(CARDS[name], tp), **numbers)


def prompts(card):
    rng = np.random.default_rng(4)
    return [rng.integers(0, card.vocab_size, length).astype(np.int32) for length in (19, 2, 11)]


@pytest.mark.parametrize(
    ("name", "tp", "numbers"),
    [
        ("llama", 2, {}),
        pytest.param("llama", 4, {}, marks=pytest.mark.slow),
        pytest.param("qwen3", 4, {"weights": "int8", "cache": "int8"}, marks=pytest.mark.slow),
        pytest.param("window", 2, {"cache": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param("mixtral", 2, {}, marks=pytest.mark.slow),
        pytest.param("qwen3-moe", 4, {"weights": "int8"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_greedy_tokens_are_those_of_one_device(name, tp, numbers):
    """With 4 devices the 2 key/value heads are copied."""
    found = []
    for size in (1, tp):
        decoder = cut(name, size, **numbers)
        found.append(greedy(decoder, greedy_step(decoder, compiler_options=QUICK), prompts(CARDS[name]), 12))
    np.testing.assert_array_equal(*found)


def test_weights_and_pages_are_cut():
    decoder = cut("llama", 2)
    pages = decoder.empty_pages(NUM_PAGES)
    assert {leaf.addressable_shards[0].data.shape[2] * 2 for leaf in jax.tree.leaves(pages)} == {CARDS["llama"].num_kv_heads}
    layer = decoder.weights["layers"][0]
    assert layer["wo"].addressable_shards[0].data.shape[0] * 2 == layer["wo"].shape[0]
    assert layer["w_down"].addressable_shards[0].data.shape[0] * 2 == layer["w_down"].shape[0]


@pytest.mark.parametrize(("num_tokens", "name"), [(ROWS, "llama"), (TOKENS, "llama"), pytest.param(TOKENS, "mixtral", marks=pytest.mark.slow)])
def test_messages(num_tokens, name):
    """A sum for the embedding, two for each layer, and the logits gathered over the vocabulary; pages are changed in place."""
    decoder, card = cut(name, 2), CARDS[name]
    rows = Rows([np.zeros(30, np.int32)], np.random.default_rng(0))
    pages = decoder.empty_pages(NUM_PAGES)
    program = greedy_step(decoder, donate_argnums=1).lower(decoder.weights, pages, rows.batch({0: 1}, num_tokens)).compile()
    found = Counter(re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", program.as_text()))
    assert found == {"all-reduce": 1 + 2 * card.num_layers, "all-gather": 1}
    cache_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(pages))
    assert program.memory_analysis().alias_size_in_bytes >= cache_bytes


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(SpecError, match=r"layout\.tp = 3: must divide model\.num_heads 4"):
        tp_mesh(CARDS["llama"], 3)
    with pytest.raises(SpecError, match="there are 8 devices"):
        tp_mesh(CARDS["llama"].model_copy(update={"num_heads": 16, "vocab_size": 128}), 16)

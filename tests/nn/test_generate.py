"""Generation over a cache draws what the whole network would, token by token."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colossus.nn.compute import Compute
from colossus.nn.decoder import forward
from colossus.nn.generate import Sampling, cut, generate, prepare, stream
from colossus.nn.parameters import param_shapes
from colossus.spec.errors import SpecError
from colossus.spec.job import Precision
from colossus.spec.model import ModelCard, MoeCard, RopeScaling

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": 48,
    "max_sequence_tokens": 48,
    "rope_theta": 100.0,
}
SCALING = RopeScaling(factor=4.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=16)
CARDS = {
    "llama": ModelCard(**SHAPE, rope_scaling=SCALING),
    "mistral-tied": ModelCard(**SHAPE, sliding_window_tokens=5, tie_embeddings=True),
    "qwen3_moe": ModelCard(**SHAPE, qk_norm=True, moe=MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=24)),
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]
LLAMA = CARDS["llama"]
run = jax.jit(forward, static_argnums=2)


def params_of(card: ModelCard) -> Any:
    """Larger than at the start of training, so that the likeliest token is far from the next."""
    generator = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> jax.Array:
        if "norm" in jax.tree_util.keystr(path):
            return jnp.ones(leaf.shape)
        return jnp.asarray(generator.standard_normal(leaf.shape, np.float32) * 3 / card.model_dim**0.5)

    return jax.tree_util.tree_map_with_path(fill, param_shapes(card))


@pytest.fixture(scope="module")
def llama() -> Any:
    return params_of(LLAMA)


def next_logits(params: Any, card: ModelCard, tokens: list[int]) -> np.ndarray:
    """Of the whole network, padded to one length: later tokens change nothing before them."""
    padded = np.zeros((1, card.max_sequence_tokens), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(run(params, jnp.asarray(padded), card))[0, len(tokens) - 1]


@pytest.mark.parametrize("name", ["llama", "mistral-tied", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_greedy_is_the_argmax_of_the_whole_forward(name: str) -> None:
    card, params = CARDS[name], params_of(CARDS[name])
    drawn = generate(params, card, PROMPT, max_new_tokens=39, temperature=0)
    assert len(drawn) == 39 and len(PROMPT) + len(drawn) == card.max_sequence_tokens
    assert len(set(drawn)) > 5
    for count in range(len(drawn)):
        logits_v = next_logits(params, card, PROMPT + drawn[:count])
        assert logits_v[drawn[count]] >= logits_v.max() - 1e-3


def test_a_seed_decides_what_is_drawn(llama: Any) -> None:
    draw = partial(generate, llama, LLAMA, PROMPT, max_new_tokens=24, temperature=2.0)
    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)


def test_a_longer_run_begins_like_a_shorter_one(llama: Any) -> None:
    """Though its cache is larger."""
    draw = partial(generate, llama, LLAMA, PROMPT, temperature=1.0, seed=5)
    assert draw(max_new_tokens=39)[:8] == draw(max_new_tokens=8)


def test_top_k_one_is_greedy(llama: Any) -> None:
    draw = partial(generate, llama, LLAMA, PROMPT, max_new_tokens=24)
    assert draw(top_k=1, temperature=3.0) == draw(temperature=0) == draw(top_p=1e-6, temperature=3.0)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(llama: Any) -> None:
    drawn = generate(llama, LLAMA, PROMPT, max_new_tokens=24, temperature=0)
    stop = drawn[6]
    assert generate(llama, LLAMA, PROMPT, max_new_tokens=24, temperature=0, stop_token=stop) == drawn[: drawn.index(stop)]


def test_a_stream_yields_each_token_as_it_is_drawn(llama: Any) -> None:
    tokens = stream(prepare(llama, LLAMA), LLAMA, PROMPT, Sampling(temperature=0), max_new_tokens=24)
    first = [next(tokens), next(tokens)]
    assert first + list(tokens) == generate(llama, LLAMA, PROMPT, max_new_tokens=24, temperature=0)


def test_draws_follow_the_softmax(llama: Any) -> None:
    """2000 first tokens against the probabilities of the whole forward: chi-square below its 1e-6 quantile."""
    ready = prepare(llama, LLAMA)
    draw = partial(generate, ready, LLAMA, PROMPT, max_new_tokens=1, temperature=4.0, top_k=8)
    counts = np.bincount([draw(seed=seed)[0] for seed in range(2000)], minlength=61)
    logits_v = next_logits(llama, LLAMA, PROMPT) / 4.0
    best = np.argsort(-logits_v)[:8]
    expected = np.exp(logits_v[best]) / np.exp(logits_v[best]).sum() * 2000
    assert counts.sum() == counts[best].sum()
    assert ((counts[best] - expected) ** 2 / expected).sum() < 40.5


def test_bfloat16_generates_too(llama: Any) -> None:
    assert len(generate(llama, LLAMA, PROMPT, max_new_tokens=2, compute=Compute(precision=Precision.BFLOAT16))) == 2


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(61, 1.0, {0, 1, 2, 3}), (2, 1.0, {1, 3}), (61, 0.5, {1, 3}), (61, 0.39, {3}), (61, 1e-9, {3}), (2, 0.55, {3}), (3, 0.95, {0, 1, 3})],
)
def test_cut_keeps_the_likeliest(top_k: int, top_p: float, kept: set[int]) -> None:
    logits_v = jnp.log(jnp.array([0.2, 0.3, 0.1, 0.4]))
    result = np.asarray(cut(logits_v, top_k, top_p))
    assert set(np.flatnonzero(np.isfinite(result))) == kept
    np.testing.assert_array_equal(result[sorted(kept)], np.asarray(logits_v)[sorted(kept)])


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        (PROMPT, {"max_new_tokens": 40}, "prompt of 9 tokens must be at most 39: max_sequence_tokens is 48"),
        ([1] * 48, {"max_new_tokens": 1}, "must be at most 0.*shorten the prompt"),
        ([], {"max_new_tokens": 1}, "prompt = .*must hold a token"),
        ([1, 61], {"max_new_tokens": 1}, "prompt = 61: is no token of a vocabulary of 61"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens = 0: must be 1 or more"),
        (PROMPT, {"max_new_tokens": 1, "temperature": -1.0, "top_k": 0, "top_p": 1.5, "seed": -1}, "4 problems"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_token(llama: Any, prompt: list[int], options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        generate(llama, LLAMA, prompt, **options)

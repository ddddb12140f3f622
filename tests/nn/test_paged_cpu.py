"""The decoder's kernels for serving: the same logits as the plain decoder, bit for bit the same whatever comes with a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colossus.nn import paged, paged_cpu
from colossus.nn.decoder import forward
from colossus.nn.kernels import unavailable
from colossus.nn.parameters import init_params
from colossus.spec.model import ModelCard, MoeCard, RopeScaling

pytestmark = pytest.mark.skipif(unavailable() is not None, reason="no compiled kernels here")

TINY = {"vocab_size": 97, "num_layers": 2, "model_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "ffn_dim": 96, "max_sequence_tokens": 512}
CARDS = {
    "grouped heads": ModelCard(**TINY),
    "normed queries": ModelCard(**TINY | {"qk_norm": True, "num_kv_heads": 4}),
    "window": ModelCard(**TINY | {"sliding_window_tokens": 20, "num_kv_heads": 1, "tie_embeddings": True}),
    "odd widths": ModelCard(**TINY | {"head_dim": 48, "model_dim": 288, "num_heads": 6, "num_kv_heads": 6}),
    "scaled rope": ModelCard(**TINY, rope_scaling=RopeScaling(factor=4.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=64)),
}
PAGES_A_ROW = 32


class Stepper:
    """Rows of given tokens through the cache, any number of each a step; keeps the logits."""

    def __init__(self, decoder: paged.PagedDecoder, tokens_bt: np.ndarray, order: int = 0) -> None:
        self.decoder, self.tokens_bt = decoder, tokens_bt
        rows = len(tokens_bt)
        self.pages = decoder.empty_pages(rows * PAGES_A_ROW + 1)
        places = np.random.default_rng(order).permutation(rows * PAGES_A_ROW) + 1
        self.table = places.reshape(rows, PAGES_A_ROW).astype(np.int32)
        self.done = np.zeros(rows, np.int32)
        self.logits: list[list[np.ndarray]] = [[] for _ in range(rows)]
        self.forward = jax.jit(decoder.forward, donate_argnums=1)

    def step(self, *counts: int, padded: int | None = None) -> None:
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        size = padded or int(starts[-1])
        ids, positions = np.full(size, 7, np.int32), np.full(size, 3, np.int32)
        for row, count in enumerate(counts):
            part = slice(starts[row], starts[row + 1])
            positions[part] = np.arange(self.done[row], self.done[row] + count)
            ids[part] = self.tokens_bt[row, positions[part]]
        self.done += counts
        batch = paged.Batch(*map(jnp.asarray, (ids, positions, starts, self.done, self.table)))
        hidden, self.pages = self.forward(self.decoder.weights, self.pages, batch)
        logits = np.asarray(self.decoder.logits(self.decoder.weights, hidden))
        for row in range(len(counts)):
            self.logits[row].extend(logits[starts[row] : starts[row + 1]])


def decoder_of(card: ModelCard, weights: str = "float32", cache: str = "float32") -> paged_cpu.KernelDecoder:
    params = init_params(card, jax.random.key(0))
    return paged_cpu.kernel_decoder(params, card, weight_dtype=jnp.dtype(weights), cache_dtype=jnp.dtype(cache))


def played(decoder: paged.PagedDecoder, tokens_bt: np.ndarray) -> Stepper:
    stepper = Stepper(decoder, tokens_bt)
    for counts, padded in (((20, 3, 1), 32), ((1, 25, 2), 32), ((1, 1, 1), 3), ((17, 0, 30), 64), ((150, 200, 101), 512), ((1, 1, 1), None)):
        stepper.step(*counts, padded=padded)
    return stepper


@pytest.fixture(scope="module")
def tokens_bt() -> np.ndarray:
    return np.random.default_rng(0).integers(0, TINY["vocab_size"], (3, 400))


@pytest.mark.parametrize("name", CARDS)
def test_logits_are_the_decoders(name: str, tokens_bt: np.ndarray) -> None:
    card = CARDS[name]
    wanted = np.asarray(forward(init_params(card, jax.random.key(0)), jnp.asarray(tokens_bt), card))
    stepper = played(decoder_of(card), tokens_bt)
    for row, logits in enumerate(stepper.logits):
        np.testing.assert_allclose(np.stack(logits), wanted[row, : len(logits)], atol=3e-5)


@pytest.mark.parametrize(("weights", "cache", "bound"), [("bfloat16", "float32", 0.03), ("float32", "bfloat16", 0.02), ("float32", "int8", 0.03), ("int8", "float32", 0.06), ("int8", "int8", 0.08)])  # fmt: skip
def test_smaller_numbers_are_close(weights: str, cache: str, bound: float, tokens_bt: np.ndarray) -> None:
    """Root mean square of the error against that of the logits."""
    card = CARDS["odd widths"]
    wanted = np.asarray(forward(init_params(card, jax.random.key(0)), jnp.asarray(tokens_bt), card))
    stepper = played(decoder_of(card, weights, cache), tokens_bt)
    error = np.concatenate([np.stack(logits) - wanted[row, : len(logits)] for row, logits in enumerate(stepper.logits)])
    assert 0 < np.sqrt(np.mean(error**2)) < bound * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize(("weights", "cache"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8")])
def test_no_answer_depends_on_its_neighbours(weights: str, cache: str, tokens_bt: np.ndarray) -> None:
    """Bit for bit: alone token by token, and in the company of others in chunks of any size, in other pages."""
    decoder = decoder_of(CARDS["grouped heads"], weights, cache)
    together = played(decoder, tokens_bt)
    alone = Stepper(decoder, tokens_bt[1:2], order=1)
    for _ in range(90):
        alone.step(1)
    alone.step(140)
    logits = np.stack(alone.logits[0])
    np.testing.assert_array_equal(logits, np.stack(together.logits[1])[: len(logits)])


def test_a_row_may_go_on_past_the_last_place(tokens_bt: np.ndarray) -> None:
    """As one that ended within fused steps does; nothing is read past the table of angles, and its pages before keep what they hold."""
    decoder = decoder_of(CARDS["grouped heads"])
    angles = {name: decoder.weights["outer"][name] for name in ("cos", "sin")}
    stepper, results = Stepper(decoder, tokens_bt), []
    table = jnp.concatenate([jnp.asarray(stepper.table[:1]), jnp.zeros((1, 1), jnp.int32)], axis=1)
    for longer in (False, True):
        outer = decoder.weights["outer"] | {name: jnp.concatenate([angle, angle[-1:].repeat(16, 0)]) if longer else angle for name, angle in angles.items()}
        batch = paged.Batch(*(jnp.asarray(part, jnp.int32) for part in ([5], [519], [0, 1], [520])), table)
        hidden, pages = jax.jit(decoder.forward)(decoder.weights | {"outer": outer}, decoder.empty_pages(97), batch)
        results.append((hidden, pages.k))
    for short, long in zip(*results, strict=True):
        np.testing.assert_array_equal(short, long)
    assert not np.asarray(results[0][1][:, 1:]).any()


def test_tokens_that_cannot_be_are_refused() -> None:
    decoder = decoder_of(CARDS["grouped heads"])
    for token, position in ((-1, 0), (97, 0), (5, -1), (5, 16)):
        batch = paged.Batch(*(jnp.asarray(part, jnp.int32) for part in ([token], [position], [0, 1], [1], [[1]])))
        with pytest.raises(jax.errors.JaxRuntimeError, match="do not have"):
            jax.block_until_ready(decoder.forward(decoder.weights, decoder.empty_pages(2), batch))


def test_says_why_it_cannot() -> None:
    assert paged_cpu.why_not(CARDS["grouped heads"]) is None
    assert "ffn_dim 100" in (paged_cpu.why_not(ModelCard(**TINY | {"ffn_dim": 100})) or "")
    mixture = ModelCard(**TINY, moe=MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=32))
    assert "experts" in (paged_cpu.why_not(mixture) or "")

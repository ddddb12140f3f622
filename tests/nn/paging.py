"""Random histories of a paged cache, and the cards that tests of nn.paged go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from colossus.nn.paged import PAGE_TOKENS, Batch
from colossus.spec.model import ModelCard, MoeCard, RopeScaling

_SHAPE: dict[str, Any] = {
    "vocab_size": 96, "num_layers": 2, "model_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "ffn_dim": 96,
}  # fmt: skip
_ROPE = RopeScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=32)
_EXPERTS = {"num_experts": 4, "num_experts_per_token": 2, "expert_dim": 32}
CARDS = {
    "llama": ModelCard(**_SHAPE),
    "qwen3": ModelCard(**_SHAPE, qk_norm=True, tie_embeddings=True),
    "window": ModelCard(**_SHAPE, sliding_window_tokens=21),
    "rope-scaling": ModelCard(**_SHAPE, rope_scaling=_ROPE),
    "mixtral": ModelCard(**_SHAPE, moe=MoeCard(**_EXPERTS)),
    "qwen3-moe": ModelCard(**_SHAPE, qk_norm=True, moe=MoeCard(**_EXPERTS, normalize_top_k=False)),
}
NUM_PAGES, ROWS, PAGES_OF_ROW, TOKENS = 24, 4, 5, 48


@dataclass
class Rows:
    """Sequences that grow in pages drawn at random, and the steps' batches. Padding holds anything."""

    sequences: list[np.ndarray]
    rng: np.random.Generator
    done: list[int] = field(default_factory=list)
    pages: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        order = self.rng.permutation(np.arange(1, NUM_PAGES))
        self.done = [0] * len(self.sequences)
        self.pages = [list(order[i * PAGES_OF_ROW : (i + 1) * PAGES_OF_ROW]) for i in range(len(self.sequences))]

    def batch(self, counts: dict[int, int], num_tokens: int = TOKENS, num_rows: int = ROWS) -> Batch:
        """The next ``counts[row]`` tokens of each row, in the order given."""
        tokens = self.rng.integers(-(2**31), 2**31 - 1, num_tokens).astype(np.int32)
        positions = self.rng.integers(-(2**31), 2**31 - 1, num_tokens).astype(np.int32)
        starts, lengths = np.zeros(num_rows + 1, np.int32), np.zeros(num_rows, np.int32)
        pages = np.zeros((num_rows, PAGES_OF_ROW), np.int32)
        at = 0
        for place, (row, count) in enumerate(counts.items()):
            done = self.done[row]
            tokens[at : at + count] = self.sequences[row][done : done + count]
            positions[at : at + count] = np.arange(done, done + count)
            at, self.done[row] = at + count, done + count
            starts[place + 1 :], lengths[place] = at, done + count
            used = -(-lengths[place] // PAGE_TOKENS)
            pages[place, :used] = self.pages[row][:used]
        return Batch(tokens, positions, starts, lengths, pages)

    def left(self, row: int) -> int:
        return len(self.sequences[row]) - self.done[row]


def greedy(decoder: Any, step: Any, prompts: list[np.ndarray], num_new: int, pages: Any | None = None) -> np.ndarray:
    """The likeliest continuations, (rows, num_new): the prompts in one mixed step, then one token of each row at a time."""
    length = max(map(len, prompts)) + num_new
    rows = Rows([np.resize(prompt, length) for prompt in prompts], np.random.default_rng(0))
    cache = decoder.empty_pages(NUM_PAGES) if pages is None else pages
    counts, ends = {row: len(prompt) for row, prompt in enumerate(prompts)}, np.cumsum([len(prompt) for prompt in prompts]) - 1
    tokens, cache = step(decoder.weights, cache, rows.batch(counts))
    new = [np.asarray(tokens)[ends]]
    for _ in range(num_new - 1):
        for row, token in enumerate(new[-1]):
            rows.sequences[row][rows.done[row]] = token
        tokens, cache = step(decoder.weights, cache, rows.batch(dict.fromkeys(range(len(prompts)), 1), num_tokens=ROWS))
        new.append(np.asarray(tokens)[: len(prompts)])
    return np.stack(new, axis=1)


def greedy_step(decoder: Any, **options: Any) -> Any:
    """A compiled step: (weights, pages, batch) -> the likeliest token after each, and the pages."""

    def step(weights: Any, pages: Any, batch: Batch) -> Any:
        hidden_td, pages = decoder.forward(weights, pages, batch)
        return decoder.logits(weights, hidden_td).argmax(-1), pages

    return jax.jit(step, **options)

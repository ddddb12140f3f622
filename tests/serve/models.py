"""Tiny models for tests of serving, and what they should answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from colossus.nn.parameters import param_shapes
from colossus.spec.model import ModelCard, MoeCard, RopeScaling

_SHAPE: dict[str, Any] = {
    "vocab_size": 61, "num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 48,
    "max_sequence_tokens": 128, "rope_theta": 100.0,
}  # fmt: skip
_SCALING = RopeScaling(factor=4.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=16)
CARDS = {
    "llama": ModelCard(**_SHAPE),
    "llama-scaled-tied": ModelCard(**_SHAPE, rope_scaling=_SCALING, tie_embeddings=True),
    "mistral": ModelCard(**_SHAPE, sliding_window_tokens=21),
    "qwen3": ModelCard(**_SHAPE, qk_norm=True, tie_embeddings=True),
    "mixtral": ModelCard(**_SHAPE, moe=MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=24)),
    "qwen3_moe": ModelCard(**_SHAPE, qk_norm=True, moe=MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=24, normalize_top_k=False)),
}


@dataclass(frozen=True)
class TinyModel:
    """What ``Engine`` needs of a model."""

    name: str
    card: ModelCard

    def load_params(self) -> Any:
        return params_of(self.card)


@dataclass(frozen=True)
class Loaded:
    """A model whose weights are there."""

    name: str
    card: ModelCard
    params: Any

    def load_params(self) -> Any:
        return self.params


@cache
def params_of(card: ModelCard) -> Any:
    """Larger than at the start of training, so that the likeliest token is far from the next."""
    generator = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        if "norm" in jax.tree_util.keystr(path):
            return np.ones(leaf.shape, np.float32)
        return generator.standard_normal(leaf.shape, np.float32) * np.float32(3 / card.model_dim**0.5)

    return jax.tree_util.tree_map_with_path(fill, param_shapes(card))

"""Small decoders and a reference loss, shared by the tests of nn."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from colossus.nn import decoder
from colossus.nn.attention import plain_attention
from colossus.nn.compute import Compute
from colossus.spec.model import ModelCard, MoeCard

_SHAPE: dict[str, Any] = {
    "vocab_size": 64, "num_layers": 2, "model_dim": 32, "num_heads": 8, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 64,
}  # fmt: skip
DENSE = ModelCard(**_SHAPE)
TIED = ModelCard(**_SHAPE, tie_embeddings=True, qk_norm=True, sliding_window_tokens=5)
MIXTURE = ModelCard(**_SHAPE, moe=MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=32, load_balance_weight=0.1))
CARDS = {"dense": DENSE, "tied": TIED, "mixture": MIXTURE}

# Little time in the compiler: these programs run once.
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def batch(card: ModelCard, num_sequences: int = 8, length: int = 16, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, card.vocab_size, (num_sequences, length + 1), np.int32)
    return tokens[:, :-1], tokens[:, 1:]


@functools.cache
def params(card: ModelCard) -> Any:
    return quick_jit(functools.partial(decoder.init_params, card))(jax.random.key(0))


def plain(**choices: Any) -> Compute:
    return Compute(attention=plain_attention, **choices)


def quick_jit(function: Any) -> Any:
    """jit that spends little time in the compiler."""
    return jax.jit(function, compiler_options=QUICK)


def gradient(card: ModelCard, compute: Compute) -> Any:
    """(params, tokens, targets) -> ((loss, parts), gradients)."""
    return jax.value_and_grad(lambda p, x, y: decoder.loss(p, x, y, card, compute=compute), has_aux=True)


def largest_difference(one: Any, other: Any) -> float:
    """Largest absolute difference of two trees of arrays, over the larger one's largest value in each leaf."""

    def leaf(a: Any, b: Any) -> float:
        a, b = np.asarray(a), np.asarray(b)
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-6))

    return max(jax.tree.leaves(jax.tree.map(leaf, one, other)))

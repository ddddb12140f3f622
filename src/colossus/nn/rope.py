"""Rotary position embedding, with Llama 3's scaling for long contexts.

Shape letters: B batch, T tokens, H heads, K head_dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colossus.nn import kernels, sharding
from colossus.nn.kernels.ffi import usable
from colossus.spec.model import ModelCard, RopeScaling


class Rope(NamedTuple):
    """Cosines and sines of every position's angles: (B or 1, T, K/2) each, float32."""

    cos_btk: jax.Array
    sin_btk: jax.Array


def inverse_frequencies(card: ModelCard) -> np.ndarray:
    """``theta**(-2i/K)`` for i < K/2, in radians per token, scaled where the card says so (Su et al. 2021, eq. 15)."""
    exponents = np.arange(0, card.head_dim, 2, dtype=np.float32) / np.float32(card.head_dim)
    frequencies = (1.0 / np.float32(card.rope_theta) ** exponents).astype(np.float32)
    return frequencies if card.rope_scaling is None else _scaled(frequencies, card.rope_scaling)


def _scaled(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Wavelengths above original/low are stretched by ``factor``, those below original/high kept, between them a ramp.

    Llama 3.1 model card (Meta 2024), ``rope_type = "llama3"``.
    """
    turns = scaling.original_max_tokens * frequencies / (2 * math.pi)  # full turns within the original context
    ramp = (turns - scaling.low_frequency_factor) / (scaling.high_frequency_factor - scaling.low_frequency_factor)
    keep = np.clip(ramp, 0.0, 1.0)
    return ((1 - keep) * frequencies / scaling.factor + keep * frequencies).astype(np.float32)


def rope_tables(card: ModelCard, positions_bt: jax.Array) -> Rope:
    """Tables for integer positions (B or 1, T)."""
    angles = positions_bt[..., None].astype(jnp.float32) * inverse_frequencies(card)
    return Rope(jnp.cos(angles), jnp.sin(angles))


def apply_rope(x_bthk: jax.Array, rope: Rope) -> jax.Array:
    """Turns each pair (i, i + K/2) by its position's angle; the halves are paired as in Hugging Face's Llama."""
    if usable(x_bthk, *rope):
        heads = ("batch", "sequence", "heads" if x_bthk.shape[2] % sharding.axis_size("tp") == 0 else None, None)
        table = ("batch" if rope.cos_btk.shape[0] > 1 else None, "sequence", None)
        return sharding.per_device(kernels.rope, (heads, table, table), sharding.spec_of(heads, x_bthk.shape))(x_bthk, *rope)
    first, second = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
    cos, sin = rope.cos_btk[:, :, None, :], rope.sin_btk[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_bthk.dtype)

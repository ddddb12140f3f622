"""Root-mean-square norm."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from colossus.nn import kernels, sharding
from colossus.nn.kernels.ffi import usable
from colossus.nn.sharding import Logical

BETWEEN_BLOCKS = ("batch", "sequence_parallel", None)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, axes: tuple[Logical, ...] = BETWEEN_BLOCKS) -> jax.Array:
    """``scale * x / sqrt(mean(x**2) + epsilon)`` over the last dim, in float32 inside (Zhang & Sennrich 2019, eq. 4).

    x: (..., D), laid out by the logical ``axes``; scale: (D,). The result has x's dtype, rounded before the scale is
    applied, as in Llama.
    """
    if usable(x, scale):
        function = partial(kernels.rms_norm, epsilon=epsilon)
        return sharding.per_device(function, (axes, (None,)), sharding.spec_of(axes, x.shape))(x, scale)
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * inverse).astype(x.dtype) * scale.astype(x.dtype)

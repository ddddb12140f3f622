"""Weights stored as int8 with a scale for each group of inputs, and products with them.

Shape letters: I inputs, O outputs, g groups, i inputs of a group.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GROUP = 64  # inputs that share a scale, at most
MAX_GROUPED_ROWS = 16  # above, the groups' sums would be more bytes than the weight
_MIN_ROWS = 4  # XLA's GPU back end takes a product with fewer for a sum, and writes the whole weight out for it


class Quantized(NamedTuple):
    """A weight as int8. ``scale`` has the weight's dims but for one, which counts groups of inputs."""

    numbers: jax.Array  # int8
    scale: jax.Array  # float32


def quantize(weight: jax.Array, dim: int, tp: int = 1) -> Quantized:
    """Symmetric: the largest of each group becomes 127. Groups are of equal size, and whole on each of ``tp`` devices."""
    size = group_size(weight.shape[dim], tp)
    grouped = _grouped(weight.astype(jnp.float32), dim, size)
    scale = jnp.maximum(jnp.max(jnp.abs(grouped), axis=dim + 1, keepdims=True), 1e-20) / 127
    numbers = jnp.round(grouped / scale).astype(jnp.int8)
    return Quantized(numbers.reshape(weight.shape), jnp.squeeze(scale, dim + 1))


def group_size(num_inputs: int, tp: int = 1) -> int:
    """The largest divisor of a device's inputs up to ``GROUP``."""
    return max(size for size in range(1, GROUP + 1) if (num_inputs // tp) % size == 0)


def _grouped(array: jax.Array, dim: int, size: int) -> jax.Array:
    return array.reshape(*array.shape[:dim], -1, size, *array.shape[dim + 1 :])


def whole(weight: jax.Array | Quantized, dtype: Any) -> jax.Array:
    """A weight as products take it; norms and what is in ``dtype`` already as they are."""
    if not isinstance(weight, Quantized):
        return weight
    numbers, scale = weight
    dim = next((dim for dim, (one, other) in enumerate(zip(numbers.shape, scale.shape, strict=True)) if one != other), 0)
    grouped = _grouped(numbers, dim, numbers.shape[dim] // scale.shape[dim])
    return (grouped.astype(jnp.float32) * jnp.expand_dims(scale, dim + 1)).astype(dtype).reshape(numbers.shape)


def product(x: jax.Array, weight: Quantized, num_summed: int = 1, dtype: Any = None) -> jax.Array:
    """``x weight`` over the last dims of x and the first of the weight, for few rows: (B, T, *I), (*I, *O) -> (B, T, *O).

    Each group's product is summed by itself, in float32, and scaled then. So the weight goes into the product as it lies in memory;
    XLA's GPU back end would write ``numbers * scale`` out first, and so read more bytes than bfloat16 has.
    """
    numbers, scale = weight
    num_groups, rows, outputs = math.prod(scale.shape[:num_summed]), x.shape[:2], numbers.shape[num_summed:]
    x_tgi = x.reshape(math.prod(rows), num_groups, -1)
    x_tgi = jnp.pad(x_tgi, ((0, max(0, _MIN_ROWS - len(x_tgi))), (0, 0), (0, 0)))
    numbers_gio = numbers.reshape(num_groups, x_tgi.shape[-1], -1).astype(x.dtype)
    y_gto = jnp.einsum("tgi,gio->gto", x_tgi, numbers_gio, preferred_element_type=jnp.float32)
    y_to = jnp.sum(y_gto * scale.reshape(num_groups, 1, -1), axis=0)
    return y_to[: math.prod(rows)].astype(dtype or x.dtype).reshape(*rows, *outputs)

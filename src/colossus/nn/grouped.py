"""Grouped GEMM: rows sorted by group, each group against its own matrix.

``jax.lax.ragged_dot`` where the platform has one (GPU, TPU). XLA's CPU has none: it multiplies every row by every matrix
(E times the work), so there we walk blocks of rows ourselves.

Shape letters: M rows, E groups, A inputs, C outputs, b rows of a block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_BLOCK = 256
_WEIGHT_GRADIENT = jax.lax.RaggedDotDimensionNumbers(dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[])


@jax.custom_vjp
def grouped_matmul(x_ma: jax.Array, w_eac: jax.Array, group_sizes_e: jax.Array) -> jax.Array:
    """``y[i] = x[i] @ w[group of i]``: (M, A), (E, A, C) -> (M, C); the first ``group_sizes[0]`` rows are group 0's, and so on."""
    return jax.lax.platform_dependent(x_ma, w_eac, group_sizes_e, cpu=_blocked, default=jax.lax.ragged_dot)


def _forward(x: jax.Array, w: jax.Array, group_sizes: jax.Array) -> tuple[jax.Array, Any]:
    return grouped_matmul(x, w, group_sizes), (x, w, group_sizes)


def _backward(saved: Any, d_y: jax.Array) -> tuple[Any, ...]:
    x, w, group_sizes = saved
    d_x = grouped_matmul(d_y, jnp.swapaxes(w, 1, 2), group_sizes)
    d_w = jax.lax.platform_dependent(x, d_y, group_sizes, cpu=_blocked_gradient, default=_ragged_gradient)
    return d_x, d_w.astype(w.dtype), np.zeros(group_sizes.shape, jax.dtypes.float0)


grouped_matmul.defvjp(_forward, _backward)


def _ragged_gradient(x: jax.Array, d_y: jax.Array, group_sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot_general(x, d_y, group_sizes, _WEIGHT_GRADIENT, preferred_element_type=jnp.float32)


def block_rows(num_rows: int, num_groups: int) -> int:
    """Rows of a block: a power of two near a quarter of the mean group, since each group wastes half a block on average."""
    return max(1, min(MAX_BLOCK, 2 ** round(np.log2(max(1, num_rows / num_groups / 4)))))


def num_blocks(num_rows: int, num_groups: int) -> int:
    """Blocks that always suffice: each of the groups that can be non-empty leaves less than a whole block over."""
    rows = block_rows(num_rows, num_groups)
    return (num_rows + min(num_groups, num_rows) * (rows - 1)) // rows


def _blocks(num_rows: int, group_sizes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Group, first row and end of group of each block, in row order; spare blocks start past the last row."""
    size = block_rows(num_rows, len(group_sizes))
    counts = (group_sizes + size - 1) // size
    ends, row_ends = jnp.cumsum(counts), jnp.cumsum(group_sizes)
    index = jnp.arange(num_blocks(num_rows, len(group_sizes)))
    group = jnp.minimum(jnp.searchsorted(ends, index, side="right"), len(group_sizes) - 1)
    start = row_ends[group] - group_sizes[group] + (index - (ends[group] - counts[group])) * size
    spare = index >= ends[-1]
    return group, jnp.where(spare, num_rows, start), jnp.where(spare, num_rows, row_ends[group])


def _padded(x: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x, ((0, rows), (0, 0)))


def _blocked(x: jax.Array, w: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """A block that runs over its group's end writes rows of the next group, which that group's own block then writes right."""
    num_rows = x.shape[0]
    size = block_rows(num_rows, w.shape[0])
    x_padded = _padded(x, size)

    def body(y: jax.Array, block: Any) -> tuple[jax.Array, None]:
        group, start, _ = block
        product = jax.lax.dynamic_slice_in_dim(x_padded, start, size) @ w[group]
        return jax.lax.dynamic_update_slice_in_dim(y, product, start, 0), None

    y, _ = jax.lax.scan(body, jnp.zeros((num_rows + size, w.shape[2]), x.dtype), _blocks(num_rows, group_sizes))
    return y[:num_rows]


def _blocked_gradient(x: jax.Array, d_y: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """``d_w[e] = x_e^T d_y_e``: (M, A), (M, C) -> (E, A, C), summed in place block by block."""
    num_rows, num_groups = x.shape[0], len(group_sizes)
    size = block_rows(num_rows, num_groups)
    x_padded, d_y_padded = _padded(x, size), _padded(d_y, size)

    def body(d_w: jax.Array, block: Any) -> tuple[jax.Array, None]:
        group, start, end = block
        own = (start + jnp.arange(size) < end)[:, None]
        rows = jnp.where(own, jax.lax.dynamic_slice_in_dim(x_padded, start, size), 0)
        part = jnp.einsum("ba,bc->ac", rows, jax.lax.dynamic_slice_in_dim(d_y_padded, start, size), preferred_element_type=jnp.float32)
        return d_w.at[group].add(part), None

    d_w, _ = jax.lax.scan(body, jnp.zeros((num_groups, x.shape[1], d_y.shape[1]), jnp.float32), _blocks(num_rows, group_sizes))
    return d_w

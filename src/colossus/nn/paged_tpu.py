"""Attention over pages on a TPU: JAX's ragged paged attention kernel, which takes decoding rows and chunks of prompts together.

It wants a page's keys and values side by side: (P, S, 2 N, K), a key's head before its value's, K a multiple of the 128 lanes,
and as many heads as fill its tiles. Both are padded here, with zeros that change nothing. One array a layer: the kernel takes
no slice of a stack without a copy. Shape letters: see ``nn.paged``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from colossus.nn.paged_attention import PagedAttention
from colossus.nn.paged_cache import PAGE_TOKENS, Batch, CacheShape, places

_LANES, _SUBLANES, _LANE_BYTES = 128, 8, 4
_BLOCK_PAGES, _BLOCK_QUERIES = 16, 32  # keys and queries that the kernel takes at a time: within 16 MiB of fast memory for 64 heads


class Combined(NamedTuple):
    """The cache: an array for each layer."""

    kv: tuple[jax.Array, ...]  # (P, S, 2 N, K), padded

    @property
    def num_pages(self) -> int:
        return int(self.kv[0].shape[0])


def takes(shape: CacheShape) -> bool:
    """The kernel knows one scale for a whole cache, which is too coarse for int8."""
    return shape.dtype in (jnp.float32, jnp.bfloat16)


def empty(shape: CacheShape) -> Combined:
    """Keys and values of zeros."""
    heads, lanes = _padded_heads(shape.num_kv_heads, shape.dtype), _padded_lanes(shape.head_dim)
    page = (shape.num_pages, PAGE_TOKENS, 2 * heads, lanes)
    return Combined(tuple(jnp.zeros(page, shape.dtype) for _ in range(shape.num_layers)))


def _padded_heads(num_kv_heads: int, dtype: jnp.dtype) -> int:
    """Heads of keys and values together fill 1, 2, 4 or a multiple of 8 rows of a register."""
    packed = _LANE_BYTES // dtype.itemsize
    rows = -(-2 * num_kv_heads // packed)
    filled = 1 << (rows - 1).bit_length() if rows <= _SUBLANES else -(-rows // _SUBLANES) * _SUBLANES
    return filled * packed // 2


def _padded_lanes(head_dim: int) -> int:
    return -(-head_dim // _LANES) * _LANES


def attend(
    q_thk: jax.Array, k_tnk: jax.Array, v_tnk: jax.Array, cache: Combined, batch: Batch, *,
    index: int, window: int | None, kernel: Callable[..., jax.Array] = ragged_paged_attention,
) -> tuple[jax.Array, Combined]:  # fmt: skip
    """``PagedAttention.attend``. Tests put JAX's own oracle in the kernel's place."""
    num_tokens, _, head_dim = q_thk.shape
    num_kv_heads = k_tnk.shape[1]
    place, kv = places(batch), cache.kv[index]
    more = (0, kv.shape[2] // 2 - num_kv_heads), (0, kv.shape[3] - head_dim)
    new = jnp.pad(jnp.stack([k_tnk, v_tnk], axis=2), ((0, 0), more[0], (0, 0), more[1])).reshape(num_tokens, *kv.shape[2:])
    kv = kv.at[place.page_t, place.offset_t].set(new.astype(kv.dtype))
    q_tngk = jnp.pad(q_thk.reshape(num_tokens, num_kv_heads, -1, head_dim), ((0, 0), more[0], (0, 0), more[1]))
    o_thk = kernel(
        q_tngk.reshape(num_tokens, -1, kv.shape[3]), kv, batch.lengths_r, batch.pages_rm, batch.starts_r,
        jnp.sum(batch.lengths_r > 0, keepdims=True, dtype=jnp.int32),
        sm_scale=head_dim**-0.5, sliding_window=window, num_kv_pages_per_block=min(_BLOCK_PAGES, batch.pages_rm.shape[1]),
        num_queries_per_block=min(_BLOCK_QUERIES, num_tokens),
    )  # fmt: skip
    o_tngk = o_thk.reshape(*q_tngk.shape[:3], -1)[:, :num_kv_heads, :, :head_dim]
    return o_tngk.reshape(q_thk.shape), Combined((*cache.kv[:index], kv, *cache.kv[index + 1 :]))


ATTENTION = PagedAttention(name="tpu", empty=empty, kv_heads_dim=2, attend=attend)

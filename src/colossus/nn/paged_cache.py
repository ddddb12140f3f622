"""What a step of serving is given, and the pages that keys and values are kept in.

Shape letters: see ``nn.paged``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from colossus.spec.model import ModelCard

PAGE_TOKENS = 16  # S: as many keys as the widest vector has lanes
NULL_PAGE = 0  # belongs to nobody: padding writes there


class Batch(NamedTuple):
    """One step's tokens, padded to fixed shapes; all int32. Row r's tokens are ``starts_r[r] .. starts_r[r + 1]``.

    Where T equals R, token r is the only one of row r (a step of decoding). Rows that decode have one token; rows that prefill
    a chunk have more. A padding token (at and after ``starts_r[-1]``) may hold anything; padding rows come last, have no tokens
    and length 0. Unused entries of ``pages_rm`` are ``NULL_PAGE``.
    """

    tokens_t: jax.Array  # (T,)
    positions_t: jax.Array  # (T,) the place of each token in its own sequence
    starts_r: jax.Array  # (R + 1,)
    lengths_r: jax.Array  # (R,) tokens of the row's sequence after this step
    pages_rm: jax.Array  # (R, M)


class Pages(NamedTuple):
    """The cache of all layers. Keys (RoPE applied) lie transposed within a page, so that a vector holds one dim of S keys.

    The scales are there with int8 only: a number is ``int8 * scale``.
    """

    k: jax.Array  # (L, P, N, K, S)
    v: jax.Array  # (L, P, N, S, K)
    k_scale: jax.Array | None = None  # (L, P, N, S) float32
    v_scale: jax.Array | None = None

    @property
    def num_pages(self) -> int:
        return int(self.k.shape[1])


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What any layout of pages is made for. ``num_kv_heads`` counts copies: where tp is larger, each device has one head."""

    num_layers: int
    num_pages: int
    num_kv_heads: int
    head_dim: int
    dtype: Any

    @classmethod
    def of(cls, card: ModelCard, num_pages: int, dtype: Any, tp: int = 1) -> CacheShape:
        heads = max(card.num_kv_heads, tp)
        return cls(num_layers=card.num_layers, num_pages=num_pages, num_kv_heads=heads, head_dim=card.head_dim, dtype=jnp.dtype(dtype))


def page_bytes(card: ModelCard, cache_dtype: Any) -> int:
    """Memory of one page over all layers: ``2 L N S K`` numbers, and with int8 two float32 scales for each head and token."""
    heads = 2 * card.num_layers * card.num_kv_heads * PAGE_TOKENS
    scale_bytes = 4 if jnp.dtype(cache_dtype) == jnp.int8 else 0
    return heads * (card.head_dim * jnp.dtype(cache_dtype).itemsize + scale_bytes)


def zeros(card: ModelCard, num_pages: int, cache_dtype: Any) -> Pages:
    """A cache in which nothing stands yet."""
    return empty(CacheShape.of(card, num_pages, cache_dtype))


def empty(shape: CacheShape) -> Pages:
    """``Pages`` of zeros."""
    heads = (shape.num_layers, shape.num_pages, shape.num_kv_heads)
    k = jnp.zeros((*heads, shape.head_dim, PAGE_TOKENS), shape.dtype)
    v = jnp.zeros((*heads, PAGE_TOKENS, shape.head_dim), shape.dtype)
    if shape.dtype != jnp.int8:
        return Pages(k, v)
    return Pages(k, v, *(jnp.ones((*heads, PAGE_TOKENS), jnp.float32) for _ in range(2)))


class Places(NamedTuple):
    """Where each token's key and value go."""

    row_t: jax.Array
    page_t: jax.Array
    offset_t: jax.Array


def places(batch: Batch) -> Places:
    """The row of each token, and its page and place there; padding goes to the null page."""
    index = jnp.arange(batch.tokens_t.shape[0])
    row_t = jnp.clip(jnp.searchsorted(batch.starts_r, index, side="right") - 1, 0, batch.lengths_r.shape[0] - 1)
    real_t = index < batch.starts_r[-1]
    position_t = jnp.where(real_t, batch.positions_t, 0)
    page_t = batch.pages_rm[row_t, position_t // PAGE_TOKENS]
    return Places(row_t, jnp.where(real_t, page_t, NULL_PAGE), position_t % PAGE_TOKENS)


def quantized(x_tnk: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Numbers as the cache keeps them; for int8 with a scale for each token and head."""
    if dtype != jnp.int8:
        return x_tnk.astype(dtype), None
    wide = x_tnk.astype(jnp.float32)
    scale_tn = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1), 1e-20) / 127
    return jnp.round(wide / scale_tn[..., None]).astype(jnp.int8), scale_tn


def write(pages: Pages, index: int, place: Places, k_tnk: jax.Array, v_tnk: jax.Array) -> Pages:
    """One layer's new keys and values at their places."""
    k_tnk, k_scale_tn = quantized(k_tnk, pages.k.dtype)
    v_tnk, v_scale_tn = quantized(v_tnk, pages.v.dtype)
    k = pages.k.at[index, place.page_t, :, :, place.offset_t].set(k_tnk)
    v = pages.v.at[index, place.page_t, :, place.offset_t].set(v_tnk)
    if pages.k_scale is None or pages.v_scale is None:
        return Pages(k, v)
    scales = (pages.k_scale, k_scale_tn), (pages.v_scale, v_scale_tn)
    return Pages(k, v, *(old.at[index, place.page_t, :, place.offset_t].set(new) for old, new in scales))

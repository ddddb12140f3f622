"""Attention over pages: which implementation runs where, and the plain one.

An implementation decides how pages lie in memory, and attends. Each device sees its own heads only. Shape letters: see
``nn.paged``; q queries of one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from colossus.nn import sharding, target
from colossus.nn.paged_cache import PAGE_TOKENS, Batch, CacheShape, Pages, empty, places, write
from colossus.spec.model import ModelCard

TILE = 16  # queries of one row that are taken at a time
_HEADS = (None, "heads", None)
_KV_HEADS = (None, "kv_heads", None)

Attend = Callable[..., tuple[jax.Array, Any]]


@dataclass(frozen=True, kw_only=True)
class PagedAttention:
    """One way to keep keys and values in pages, and to attend over them.

    :param empty: a cache of zeros, any pytree.
    :param kv_heads_dim: of every array of the cache, which tp cuts.
    :param attend: ``(q_thk, k_tnk, v_tnk, cache, batch, *, index, window) -> (o_thk, cache)``: layer ``index`` writes the new
        keys and values, then the queries meet all of their rows' up to their own place.
    """

    name: str
    empty: Callable[[CacheShape], Any]
    kv_heads_dim: int
    attend: Attend

    def axes(self, leaf: Any) -> tuple[str | None, ...]:
        """Logical axes of one array of the cache."""
        return tuple("kv_heads" if dim == self.kv_heads_dim else None for dim in range(len(leaf.shape)))

    def on_devices(self, index: int, card: ModelCard, cache: Any, batch: Batch, *qkv: jax.Array) -> tuple[jax.Array, Any]:
        """``attend``, each device of tp on its own heads and their pages."""
        leaves, structure = jax.tree.flatten(cache)

        def local(q_thk: jax.Array, k_tnk: jax.Array, v_tnk: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
            own, inputs = jax.tree.unflatten(structure, rest[: len(leaves)]), Batch(*rest[len(leaves) :])
            o_thk, own = self.attend(q_thk, k_tnk, v_tnk, own, inputs, index=index, window=card.sliding_window_tokens)
            return o_thk, *jax.tree.leaves(own)

        kept = [self.axes(leaf) for leaf in leaves]
        inputs = (_HEADS, _KV_HEADS, _KV_HEADS, *kept, *((None,) * part.ndim for part in batch))
        outputs = [sharding.spec_of(axes, x.shape) for axes, x in zip((_HEADS, *kept), (qkv[0], *leaves), strict=True)]
        o_thk, *leaves = sharding.per_device(local, inputs, tuple(outputs))(*qkv, *leaves, *batch)
        return o_thk, jax.tree.unflatten(structure, leaves)


def paged_attention(shape: CacheShape) -> PagedAttention:
    """The kernels of the platform where they take this cache, else the plain form. ``shape``: of one device's part."""
    platform = target.platform()
    if platform == "gpu":
        from colossus.nn import paged_gpu  # each imports Pallas, which takes a second

        return paged_gpu.ATTENTION if paged_gpu.takes(shape) else PLAIN
    if platform == "tpu":
        from colossus.nn import paged_tpu

        return paged_tpu.ATTENTION if paged_tpu.takes(shape) else PLAIN
    return PLAIN


def _attend(q_thk: jax.Array, k_tnk: jax.Array, v_tnk: jax.Array, pages: Pages, batch: Batch, *, index: int, window: int | None) -> tuple[jax.Array, Pages]:
    """``PagedAttention.attend`` in plain JAX."""
    pages = write(pages, index, places(batch), k_tnk, v_tnk)
    run = _attend_rows if q_thk.shape[0] == batch.lengths_r.shape[0] else _attend_tiles
    one = partial(_attend_row, pages=pages, index=index, window=window)
    return run(one, q_thk, batch).astype(q_thk.dtype), pages


PLAIN = PagedAttention(name="plain", empty=empty, kv_heads_dim=2, attend=_attend)


def _attend_row(q_qhk: jax.Array, positions_q: jax.Array, length: jax.Array, pages_m: jax.Array, *, pages: Pages, index: int, window: int | None) -> jax.Array:
    """Queries of one row, each against the keys at and before its position, within the window."""
    num_queries, _, head_dim = q_qhk.shape
    place_ms = jnp.arange(pages_m.shape[0] * PAGE_TOKENS).reshape(-1, PAGE_TOKENS)
    k_nkms, v_nmsk = _gathered(pages, index, pages_m, q_qhk.dtype)
    v_nmsk = jnp.where((place_ms < length)[..., None], v_nmsk, 0)  # what others left there may be no number, times 0 too
    q_qngk = q_qhk.reshape(num_queries, k_nkms.shape[0], -1, head_dim)
    s_nqgms = jnp.einsum("qngk,nkms->nqgms", q_qngk, k_nkms, preferred_element_type=jnp.float32) * head_dim**-0.5
    age_qms = positions_q[:, None, None] - place_ms
    seen_qms = (age_qms >= 0) if window is None else (age_qms >= 0) & (age_qms < window)
    s_nqgms = jnp.where(seen_qms[None, :, None], s_nqgms, -jnp.inf)
    p_nqgms = jax.nn.softmax(s_nqgms, axis=(-2, -1)).astype(q_qhk.dtype)
    return jnp.einsum("nqgms,nmsk->qngk", p_nqgms, v_nmsk).reshape(q_qhk.shape)


def _gathered(pages: Pages, index: int, pages_m: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Keys (N, K, M, S) and values (N, M, S, K) of one row's pages."""
    k, v = pages.k[index, pages_m], pages.v[index, pages_m]  # (M, N, K, S), (M, N, S, K)
    if pages.k_scale is not None and pages.v_scale is not None:
        k = k * pages.k_scale[index, pages_m][:, :, None, :]
        v = v * pages.v_scale[index, pages_m][..., None]
    return k.astype(dtype).transpose(1, 2, 0, 3), v.astype(dtype).transpose(1, 0, 2, 3)


def _attend_rows(attend_row: Callable[..., jax.Array], q_thk: jax.Array, batch: Batch) -> jax.Array:
    """Every row decodes: token t is row t's only one."""
    one = lambda q_hk, length, pages_m: attend_row(q_hk[None], jnp.maximum(length - 1, 0)[None], length, pages_m)[0]
    return jax.vmap(one)(q_thk, batch.lengths_r, batch.pages_rm)


@dataclass(frozen=True)
class Tiles:
    """Which queries each tile holds: ``num_q`` of row ``row_n``, from token ``first_n`` on, which is at ``position_n`` in its sequence.

    T / TILE + R tiles always suffice; those that are not needed hold none.
    """

    row_n: jax.Array
    first_n: jax.Array
    num_n: jax.Array
    position_n: jax.Array


def tiles(batch: Batch, size: int = TILE) -> Tiles:
    """Cuts the queries of each row into tiles of ``size``."""
    num_rows = batch.lengths_r.shape[0]
    tiles_r = -(-jnp.diff(batch.starts_r) // size)
    ends_r = jnp.cumsum(tiles_r)
    number = jnp.arange(batch.tokens_t.shape[0] // size + num_rows)
    row_n = jnp.minimum(jnp.searchsorted(ends_r, number, side="right"), num_rows - 1)
    first_n = batch.starts_r[row_n] + (number - ends_r[row_n] + tiles_r[row_n]) * size
    end_n = batch.starts_r[row_n + 1]
    num_n = jnp.where(number < ends_r[-1], jnp.clip(end_n - first_n, 0, size), 0)
    return Tiles(row_n, jnp.where(num_n > 0, first_n, 0), num_n, batch.lengths_r[row_n] - end_n + first_n)


def _attend_tiles(attend_row: Callable[..., jax.Array], q_thk: jax.Array, batch: Batch) -> jax.Array:
    """Rows with any number of tokens, in tiles of queries of one row."""
    num_tokens = q_thk.shape[0]
    padded_thk = jnp.pad(q_thk, ((0, TILE), (0, 0), (0, 0)))
    cut = tiles(batch)

    def tile(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, first, position = cut.row_n[number], cut.first_n[number], cut.position_n[number]
        real_q = jnp.arange(TILE) < cut.num_n[number]
        q_qhk = jax.lax.dynamic_slice_in_dim(padded_thk, first, TILE)
        positions_q = jnp.where(real_q, position + jnp.arange(TILE), 0)
        o_qhk = attend_row(q_qhk, positions_q, batch.lengths_r[row], batch.pages_rm[row])
        return o_qhk, jnp.where(real_q, first + jnp.arange(TILE), num_tokens)

    o_nqhk, place_nq = jax.lax.map(tile, jnp.arange(len(cut.row_n)))
    flat = jnp.zeros((num_tokens + 1, *q_thk.shape[1:]), q_thk.dtype)
    return flat.at[place_nq.reshape(-1)].set(o_nqhk.reshape(-1, *q_thk.shape[1:]))[:num_tokens]

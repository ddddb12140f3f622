"""Attention over pages on a GPU: one Pallas (Triton) kernel for decoding rows, chunks of prompts and any mix of them.

A program takes a tile of queries of one row that share a key/value head, and walks the row's pages with a running softmax
(Milakov & Gimelshein 2018; Dao 2023, FlashAttention-2). Where tiles are few, each row's keys are split among programs whose
results are put together afterwards. Keys and values lie alike: (L, P, N, S, K). Shape letters: see ``nn.paged``; n tiles,
q rows of a tile's queries (its tokens times the heads of a group), b keys of a block, Z splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from colossus.nn.paged_attention import PagedAttention, Tiles, tiles
from colossus.nn.paged_cache import PAGE_TOKENS, Batch, CacheShape, Pages, places, quantized

_TILE_ROWS = 64  # queries times heads of a group in a program's product
_MIN_ROWS = 16  # the smallest side of a tensor core's product
_BLOCK_PAGES = 4  # read at once: 64 keys
_PROGRAMS = 256  # enough to keep the largest GPU's multiprocessors busy twice over
_MIN_BLOCKS_OF_SPLIT = 4
_UNSEEN = -1e30


def takes(shape: CacheShape) -> bool:
    """Triton's blocks are powers of two."""
    return shape.head_dim >= _MIN_ROWS and shape.head_dim & (shape.head_dim - 1) == 0


def empty(shape: CacheShape) -> Pages:
    """Keys and values of zeros."""
    heads = (shape.num_layers, shape.num_pages, shape.num_kv_heads, PAGE_TOKENS)
    k, v = (jnp.zeros((*heads, shape.head_dim), shape.dtype) for _ in range(2))
    if shape.dtype != jnp.int8:
        return Pages(k, v)
    return Pages(k, v, *(jnp.ones(heads, jnp.float32) for _ in range(2)))


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What a kernel is compiled for."""

    index: int  # the layer
    window: int | None
    tile_tokens: int
    group: int  # G, padded
    num_splits: int
    scale: float


def attend(
    q_thk: jax.Array, k_tnk: jax.Array, v_tnk: jax.Array, pages: Pages, batch: Batch, *, index: int, window: int | None, interpret: bool = False
) -> tuple[jax.Array, Pages]:
    """``PagedAttention.attend``. ``interpret`` runs the kernel in plain JAX, for tests."""
    pages = _write(pages, index, batch, k_tnk, v_tnk)
    num_tokens, num_heads, head_dim = q_thk.shape
    num_kv_heads = k_tnk.shape[1]
    decodes = num_tokens == batch.lengths_r.shape[0]
    group = _power_of_two(num_heads // num_kv_heads)
    group, tile_tokens = (max(group, _MIN_ROWS), 1) if decodes else (group, max(_TILE_ROWS // group, 1))
    cut = tiles(batch, tile_tokens) if not decodes else _one_each(batch)
    pages_rm = jnp.pad(batch.pages_rm, ((0, 0), (0, -batch.pages_rm.shape[1] % _BLOCK_PAGES)))
    num_splits = _num_splits(len(cut.row_n) * num_kv_heads, pages_rm.shape[1] // _BLOCK_PAGES)
    form = _Form(index=index, window=window, tile_tokens=tile_tokens, group=group, num_splits=num_splits, scale=head_dim**-0.5)
    o_nqk = _run(form, cut, pages_rm, _rows(q_thk, num_kv_heads, form), pages, interpret)
    o_ntgk = o_nqk[:, : num_tokens * group].reshape(num_kv_heads, num_tokens, group, head_dim)
    return o_ntgk[:, :, : num_heads // num_kv_heads].transpose(1, 0, 2, 3).reshape(q_thk.shape), pages


ATTENTION = PagedAttention(name="gpu", empty=empty, kv_heads_dim=2, attend=attend)


def _write(pages: Pages, index: int, batch: Batch, k_tnk: jax.Array, v_tnk: jax.Array) -> Pages:
    place = places(batch)
    (k, k_scale), (v, v_scale) = (quantized(new, pages.k.dtype) for new in (k_tnk, v_tnk))
    put = lambda old, new: old.at[index, place.page_t, :, place.offset_t].set(new)
    if pages.k_scale is None or pages.v_scale is None:
        return Pages(put(pages.k, k), put(pages.v, v))
    return Pages(put(pages.k, k), put(pages.v, v), put(pages.k_scale, k_scale), put(pages.v_scale, v_scale))


def _one_each(batch: Batch) -> Tiles:
    """A tile for each row that decodes."""
    row = jnp.arange(batch.lengths_r.shape[0])
    return Tiles(row, row, jnp.minimum(batch.lengths_r, 1), jnp.maximum(batch.lengths_r - 1, 0))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _num_splits(num_programs: int, num_blocks: int) -> int:
    """Programs that share one row's keys: as many as fill the GPU, each with some blocks to walk."""
    return max(1, min(_PROGRAMS // num_programs, num_blocks // _MIN_BLOCKS_OF_SPLIT))


def _rows(q_thk: jax.Array, num_kv_heads: int, form: _Form) -> jax.Array:
    """Queries that share a head as rows below each other, (N, T * group, K), with room for the last tile."""
    num_tokens, num_heads, head_dim = q_thk.shape
    q_ntgk = q_thk.reshape(num_tokens, num_kv_heads, -1, head_dim).transpose(1, 0, 2, 3)
    padding = (0, form.tile_tokens), (0, form.group - num_heads // num_kv_heads)
    return jnp.pad(q_ntgk, ((0, 0), *padding, (0, 0))).reshape(num_kv_heads, -1, head_dim)


def _run(form: _Form, cut: Tiles, pages_rm: jax.Array, q_nqk: jax.Array, pages: Pages, interpret: bool) -> jax.Array:
    parts = jax.ShapeDtypeStruct((form.num_splits, *q_nqk.shape), q_nqk.dtype if form.num_splits == 1 else jnp.float32)
    sums = jax.ShapeDtypeStruct(parts.shape[:-1], jnp.float32)
    kept = [leaf for leaf in pages if leaf is not None]
    o_znqk, log_znq = pl.pallas_call(
        partial(_kernel, form=form),
        grid=(len(cut.row_n), q_nqk.shape[0], form.num_splits),
        out_shape=(parts, sums),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="paged_attention",
    )(cut.row_n, cut.first_n, cut.num_n, cut.position_n, pages_rm, q_nqk, *kept)
    if form.num_splits == 1:
        return o_znqk[0]
    share_znq = jax.nn.softmax(log_znq, axis=0)
    return jnp.einsum("znqk,znq->nqk", o_znqk, share_znq).astype(q_nqk.dtype)


def _kernel(row_ref: Any, first_ref: Any, num_ref: Any, position_ref: Any, pages_ref: Any, q_ref: Any, *rest: Any, form: _Form) -> None:
    """One tile, one head, one split of the row's keys: the softmax's mean of values, and the logarithm of its sum."""
    *kept, o_ref, log_ref = rest
    tile, head, split = (pl.program_id(axis) for axis in range(3))
    row, first, num, position = row_ref[tile], first_ref[tile], num_ref[tile], position_ref[tile]
    num_rows, block = form.tile_tokens * form.group, _BLOCK_PAGES * PAGE_TOKENS
    own = pl.ds(first * form.group, num_rows)
    q_qk = q_ref[head, own, :]
    position_q = position + jnp.arange(num_rows) // form.group
    end = jnp.where(num > 0, position + num, 0)
    start_block = 0 if form.window is None else jnp.maximum(position - form.window + 1, 0) // block
    per_split = pl.cdiv(pl.cdiv(end, block) - start_block, form.num_splits)
    low = start_block + split * per_split

    def body(number: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        o_qk, top_q, sum_q = carry
        pages_m = pages_ref[row, pl.ds(number * _BLOCK_PAGES, _BLOCK_PAGES)]
        place_b = number * block + jnp.arange(block)
        s_qb, v_bk, v_scale_b = _block(form, q_qk, kept, pages_m, head)
        age_qb = position_q[:, None] - place_b[None, :]
        seen_qb = age_qb >= 0 if form.window is None else (age_qb >= 0) & (age_qb < form.window)
        s_qb = jnp.where(seen_qb, s_qb, _UNSEEN)
        next_q = jnp.maximum(top_q, jnp.max(s_qb, axis=1))
        p_qb = jnp.where(seen_qb, jnp.exp(s_qb - next_q[:, None]), 0.0)
        keep_q = jnp.exp(top_q - next_q)
        sum_q = sum_q * keep_q + jnp.sum(p_qb, axis=1)
        real_b = place_b < end  # others may have left there what is no number, times 0 too
        if v_scale_b is not None:
            p_qb = p_qb * jnp.where(real_b, v_scale_b, 0.0)[None, :]
        v_bk = jnp.where(real_b[:, None], v_bk, jnp.zeros_like(v_bk))
        return o_qk * keep_q[:, None] + _dot(p_qb.astype(q_qk.dtype), v_bk), next_q, sum_q

    start = jnp.zeros(q_qk.shape, jnp.float32), jnp.full((num_rows,), _UNSEEN, jnp.float32), jnp.zeros((num_rows,), jnp.float32)
    o_qk, top_q, sum_q = jax.lax.fori_loop(low, jnp.minimum(low + per_split, pl.cdiv(end, block)), body, start)
    mine_q = jnp.arange(num_rows) < num * form.group
    safe_q = jnp.where(sum_q > 0, sum_q, 1.0)
    triton.store(o_ref.at[split, head, own, :], (o_qk / safe_q[:, None]).astype(o_ref.dtype), mask=mine_q[:, None])
    triton.store(log_ref.at[split, head, own], top_q + jnp.log(safe_q), mask=mine_q)


def _block(form: _Form, q_qk: jax.Array, kept: list[Any], pages_m: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Scores of the queries with a block's keys, the block's values, and with int8 the scales of those."""
    read = lambda ref, shape: ref[form.index, pages_m, head].reshape(shape)
    block = _BLOCK_PAGES * PAGE_TOKENS
    k_bk, v_bk = (read(ref, (block, q_qk.shape[1])).astype(q_qk.dtype) for ref in kept[:2])
    s_qb = _dot(q_qk, k_bk.T) * form.scale
    if len(kept) == 2:
        return s_qb, v_bk, None
    k_scale_b, v_scale_b = (read(ref, (block,)) for ref in kept[2:])
    return s_qb * k_scale_b[None, :], v_bk, v_scale_b


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """In float32 what is float32: tensor cores would round it to 10 bits."""
    return triton.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)

"""The decoder over a paged cache, for serving: tokens of many requests in one flat batch, each request's keys and values in pages.

Shape letters: T tokens of the batch, R rows (requests), M pages of a row, P pages in all, S tokens a page, D model_dim,
H query heads, N key/value heads, G = H / N, K head_dim, V vocabulary, L layers, O outputs wanted.
Two implementations with one interface, ``PagedDecoder``: plain JAX (here), the reference and what runs everywhere; and the
compiled kernels of ``nn.kernels`` on a CPU (``nn.paged_cpu``). ``make_decoder`` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from colossus.nn.compute import Compute
from colossus.nn.decoder import embed, layer, layer_weights, logits, unstack
from colossus.nn.norm import rms_norm
from colossus.nn.parameters import Params
from colossus.nn.rope import rope_tables
from colossus.spec.job import Precision
from colossus.spec.model import ModelCard

PAGE_TOKENS = 16  # S: as many keys as the widest vector has lanes
NULL_PAGE = 0  # belongs to nobody: padding writes there
_TILE = 16  # queries of one row that plain attention takes at a time


class Batch(NamedTuple):
    """One step's tokens, padded to fixed shapes; all int32. Row r's tokens are ``starts_r[r] .. starts_r[r + 1]``.

    Where T equals R, token r is the only one of row r (a step of decoding). Rows that decode have one token; rows that prefill a chunk have more. A padding token (at and after ``starts_r[-1]``) may hold
    anything; a padding row has no tokens and length 0. Unused entries of ``pages_rm`` are ``NULL_PAGE``.
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


class PagedDecoder(Protocol):
    """A model made ready for serving. The functions are traced inside the engine's own programs; weights and pages are their inputs."""

    card: ModelCard
    weights: Any  # a pytree, on the device

    def empty_pages(self, num_pages: int) -> Pages:
        """A cache of zeros."""
        ...

    def forward(self, weights: Any, pages: Pages, batch: Batch) -> tuple[jax.Array, Pages]:
        """Hidden states after the final norm, (T, D), and the pages with the batch's keys and values written."""
        ...

    def logits(self, weights: Any, hidden_od: jax.Array) -> jax.Array:
        """(O, D) -> (O, V), float32."""
        ...


def page_bytes(card: ModelCard, cache_dtype: Any) -> int:
    """Memory of one page over all layers: ``2 L N S K`` numbers, and with int8 two float32 scales for each head and token."""
    heads = 2 * card.num_layers * card.num_kv_heads * PAGE_TOKENS
    scale_bytes = 4 if jnp.dtype(cache_dtype) == jnp.int8 else 0
    return heads * (card.head_dim * jnp.dtype(cache_dtype).itemsize + scale_bytes)


def zeros(card: ModelCard, num_pages: int, cache_dtype: Any) -> Pages:
    """A cache in which nothing stands yet."""
    shape = (card.num_layers, num_pages, card.num_kv_heads)
    k = jnp.zeros((*shape, card.head_dim, PAGE_TOKENS), cache_dtype)
    v = jnp.zeros((*shape, PAGE_TOKENS, card.head_dim), cache_dtype)
    if k.dtype != jnp.int8:
        return Pages(k, v)
    return Pages(k, v, *(jnp.ones((*shape, PAGE_TOKENS), jnp.float32) for _ in range(2)))


@dataclass(frozen=True, kw_only=True)
class PlainDecoder:
    """``PagedDecoder`` in plain JAX."""

    card: ModelCard
    weights: Any
    compute_dtype: Any
    cache_dtype: Any

    def empty_pages(self, num_pages: int) -> Pages:
        return zeros(self.card, num_pages, self.cache_dtype)

    def forward(self, weights: Any, pages: Pages, batch: Batch) -> tuple[jax.Array, Pages]:
        positions_bt = batch.positions_t[None]
        rope = rope_tables(self.card, positions_bt)
        place = _places(batch)
        x_btd = embed(weights["outer"], batch.tokens_t[None], self.compute_dtype)
        for index, own in enumerate(weights["layers"]):
            step = partial(_cached_attention, index, pages, batch, place, self.card)
            x_btd, pages, _ = layer(x_btd, own, self.card, rope, step)
        return rms_norm(x_btd, weights["outer"]["final_norm"]["scale"], self.card.norm_epsilon)[0], pages

    def logits(self, weights: Any, hidden_od: jax.Array) -> jax.Array:
        return logits(weights["outer"], hidden_od[None])[0]


def plain_decoder(params: Params, card: ModelCard, *, precision: Precision = Precision.FLOAT32, cache_dtype: Any = jnp.float32) -> PlainDecoder:
    """Weights in the compute dtype, one dict a layer: a slice of a stack would be copied in every step."""
    dtype = Compute(precision=precision).dtype
    weights = _prepare(params, card=card, dtype=dtype)
    return PlainDecoder(card=card, weights=weights, compute_dtype=dtype, cache_dtype=jnp.dtype(cache_dtype))


@partial(jax.jit, static_argnames=("card", "dtype"))
def _prepare(params: Params, card: ModelCard, dtype: Any) -> dict[str, Any]:
    outer = jax.tree.map(lambda x: x.astype(dtype), {name: part for name, part in params.items() if name != "layers"})
    return {"outer": outer, "layers": [layer_weights(own, card, dtype) for own in unstack(params["layers"])]}


class _Places(NamedTuple):
    """Where each token's key and value go."""

    row_t: jax.Array
    page_t: jax.Array
    offset_t: jax.Array


def _places(batch: Batch) -> _Places:
    index = jnp.arange(batch.tokens_t.shape[0])
    row_t = jnp.clip(jnp.searchsorted(batch.starts_r, index, side="right") - 1, 0, batch.lengths_r.shape[0] - 1)
    page_t = batch.pages_rm[row_t, batch.positions_t // PAGE_TOKENS]
    return _Places(row_t, jnp.where(index < batch.starts_r[-1], page_t, NULL_PAGE), batch.positions_t % PAGE_TOKENS)


def _cached_attention(
    index: int, pages: Pages, batch: Batch, place: _Places, card: ModelCard, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, Pages]:
    """One layer's new keys and values into the pages, then its queries against all of their rows. q (1, T, H, K); k, v (1, T, N, K)."""
    pages = _write(pages, index, place, k[0], v[0])
    attend = _attend_rows if q.shape[1] == batch.lengths_r.shape[0] else _attend_tiles
    return attend(q[0], pages, index, batch, card)[None].astype(q.dtype), pages


def _write(pages: Pages, index: int, place: _Places, k_tnk: jax.Array, v_tnk: jax.Array) -> Pages:
    k_tnk, k_scale_tn = _quantized(k_tnk, pages.k.dtype)
    v_tnk, v_scale_tn = _quantized(v_tnk, pages.v.dtype)
    k = pages.k.at[index, place.page_t, :, :, place.offset_t].set(k_tnk)
    v = pages.v.at[index, place.page_t, :, place.offset_t].set(v_tnk)
    if pages.k_scale is None or pages.v_scale is None:
        return Pages(k, v)
    scales = (pages.k_scale, k_scale_tn), (pages.v_scale, v_scale_tn)
    return Pages(k, v, *(old.at[index, place.page_t, :, place.offset_t].set(new) for old, new in scales))


def _quantized(x_tnk: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Numbers as the cache keeps them; for int8 with a scale for each token and head."""
    if dtype != jnp.int8:
        return x_tnk.astype(dtype), None
    wide = x_tnk.astype(jnp.float32)
    scale_tn = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1), 1e-20) / 127
    return jnp.round(wide / scale_tn[..., None]).astype(jnp.int8), scale_tn


def _gathered(pages: Pages, index: int, pages_m: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Keys (N, K, M, S) and values (N, M, S, K) of one row's pages."""
    k, v = pages.k[index, pages_m], pages.v[index, pages_m]  # (M, N, K, S), (M, N, S, K)
    if pages.k_scale is not None and pages.v_scale is not None:
        k = k * pages.k_scale[index, pages_m][:, :, None, :]
        v = v * pages.v_scale[index, pages_m][..., None]
    return k.astype(dtype).transpose(1, 2, 0, 3), v.astype(dtype).transpose(1, 0, 2, 3)


def _attend_row(q_qhk: jax.Array, positions_q: jax.Array, pages_m: jax.Array, pages: Pages, index: int, card: ModelCard) -> jax.Array:
    """Queries of one row, each against the keys at and before its position, within the card's window."""
    num_queries, num_heads, head_dim = q_qhk.shape
    k_nkms, v_nmsk = _gathered(pages, index, pages_m, q_qhk.dtype)
    q_qngk = q_qhk.reshape(num_queries, card.num_kv_heads, num_heads // card.num_kv_heads, head_dim)
    s_nqgms = jnp.einsum("qngk,nkms->nqgms", q_qngk, k_nkms, preferred_element_type=jnp.float32) * head_dim**-0.5
    age_qms = positions_q[:, None, None] - jnp.arange(k_nkms.shape[2] * PAGE_TOKENS).reshape(-1, PAGE_TOKENS)
    window = card.sliding_window_tokens
    seen_qms = (age_qms >= 0) if window is None else (age_qms >= 0) & (age_qms < window)
    s_nqgms = jnp.where(seen_qms[None, :, None], s_nqgms, -jnp.inf)
    p_nqgms = jax.nn.softmax(s_nqgms, axis=(-2, -1)).astype(q_qhk.dtype)
    return jnp.einsum("nqgms,nmsk->qngk", p_nqgms, v_nmsk).reshape(q_qhk.shape)


def _attend_rows(q_thk: jax.Array, pages: Pages, index: int, batch: Batch, card: ModelCard) -> jax.Array:
    """Every row decodes: token t is row t's only one."""
    one = lambda q_hk, position, pages_m: _attend_row(q_hk[None], position[None], pages_m, pages, index, card)[0]
    return jax.vmap(one)(q_thk, jnp.maximum(batch.lengths_r - 1, 0), batch.pages_rm)


def _attend_tiles(q_thk: jax.Array, pages: Pages, index: int, batch: Batch, card: ModelCard) -> jax.Array:
    """Rows with any number of tokens, in tiles of ``_TILE`` queries of one row: at most T / _TILE + R of them."""
    num_tokens, num_rows = q_thk.shape[0], batch.lengths_r.shape[0]
    tiles_r = -(-jnp.diff(batch.starts_r) // _TILE)
    ends_r = jnp.cumsum(tiles_r)
    padded_thk = jnp.pad(q_thk, ((0, _TILE), (0, 0), (0, 0)))

    def tile(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = jnp.minimum(jnp.searchsorted(ends_r, number, side="right"), num_rows - 1)
        first = batch.starts_r[row] + (number - ends_r[row] + tiles_r[row]) * _TILE
        place_q = first + jnp.arange(_TILE)
        real_q = (place_q < batch.starts_r[row + 1]) & (number < ends_r[-1])
        q_qhk = jax.lax.dynamic_slice_in_dim(padded_thk, first, _TILE)
        positions_q = batch.lengths_r[row] - batch.starts_r[row + 1] + place_q
        o_qhk = _attend_row(q_qhk, jnp.where(real_q, positions_q, 0), batch.pages_rm[row], pages, index, card)
        return o_qhk, jnp.where(real_q, place_q, num_tokens)

    o_nqhk, place_nq = jax.lax.map(tile, jnp.arange(num_tokens // _TILE + num_rows))
    flat = jnp.zeros((num_tokens + 1, *q_thk.shape[1:]), q_thk.dtype)
    return flat.at[place_nq.reshape(-1)].set(o_nqhk.reshape(-1, *q_thk.shape[1:]))[:num_tokens]

"""Causal attention: which implementation runs where, and the plain one.

Shape letters: B batch, T tokens, H query heads, N key/value heads, G = H / N, K head_dim. Every implementation has one
signature, ``(q_bthk, k_btnk, v_btnk, *, scale, causal, window) -> o_bthk``, and sees a device's own heads only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from colossus.nn import kernels, sharding, target
from colossus.spec.model import ModelCard

Attention = Callable[..., jax.Array]
MIN_BLOCK, MAX_BLOCKS = 128, 16


def attend(q_bthk: jax.Array, k_btnk: jax.Array, v_btnk: jax.Array, card: ModelCard, implementation: Attention | None) -> jax.Array:
    """Attention of one layer over whole sequences, each device on its own batch rows and heads."""
    function = partial(implementation or default_attention, scale=card.head_dim**-0.5, causal=True, window=card.sliding_window_tokens)
    heads, kv_heads = ("batch", "sequence", "heads", "head_dim"), ("batch", "sequence", "kv_heads", "head_dim")
    run = sharding.per_device(function, (heads, kv_heads, kv_heads), sharding.spec_of(heads, q_bthk.shape))
    return run(q_bthk, k_btnk, v_btnk)


def default_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, causal: bool, window: int | None) -> jax.Array:
    """cuDNN's on a GPU in bfloat16, the compiled kernel on a CPU in float32 where it can be built, else the plain form."""
    platform = target.platform()
    if platform == "gpu" and q.dtype == jnp.bfloat16:
        local = None if window is None else (window - 1, 0)
        o = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, local_window_size=local, implementation="cudnn")
        return checkpoint_name(o, "attention_out")
    if platform == "cpu" and q.dtype == jnp.float32 and kernels.unavailable() is None:
        return kernels.attention(q, k, v, scale=scale, causal=causal, window=window)
    return plain_attention(q, k, v, scale=scale, causal=causal, window=window)


def plain_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, causal: bool = True, window: int | None = None) -> jax.Array:
    """``softmax(scale q k^T + mask) v`` in blocks of queries, each against only the keys its mask can reach.

    The scores of one block are in memory at a time (in float32), and the work above the diagonal is left out but for the
    half of the diagonal blocks; ``attended_keys`` counts it.
    """
    outputs = [
        _block(q[:, start:stop], k[:, first:last], v[:, first:last], scale=scale, offset=start - first, causal=causal, window=window)
        for start, stop, first, last in blocks(q.shape[1], causal, window)
    ]
    return checkpoint_name(jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0], "attention_out")


def blocks(num_tokens: int, causal: bool, window: int | None) -> list[tuple[int, int, int, int]]:
    """(first query, end of queries, first key, end of keys) of each block that ``plain_attention`` computes."""
    size = max(MIN_BLOCK, math.ceil(num_tokens / MAX_BLOCKS)) if causal else num_tokens
    starts = range(0, num_tokens, size)
    stops = [min(start + size, num_tokens) for start in starts]
    firsts = [0 if window is None else max(0, start - window + 1) for start in starts]
    return [(a, b, first, b if causal else num_tokens) for a, b, first in zip(starts, stops, firsts, strict=True)]


def attended_keys(num_tokens: int, causal: bool = True, window: int | None = None) -> float:
    """Keys that ``plain_attention`` computes a score for, per query, on average."""
    return sum((b - a) * (last - first) for a, b, first, last in blocks(num_tokens, causal, window)) / num_tokens


def _block(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, offset: int, causal: bool, window: int | None) -> jax.Array:
    """Queries (B,t,H,K) at ``offset`` + 0..t-1 against keys (B,S,N,K) at 0..S-1."""
    batch, num_queries, num_heads, head_dim = q.shape
    num_kv = k.shape[2]
    q_btngk = q.reshape(batch, num_queries, num_kv, num_heads // num_kv, head_dim)
    s_bngts = jnp.einsum("btngk,bsnk->bngts", q_btngk, k, preferred_element_type=jnp.float32) * scale
    if causal:
        age = (offset + jnp.arange(num_queries))[:, None] - jnp.arange(k.shape[1])[None, :]
        seen = (age >= 0) if window is None else (age >= 0) & (age < window)
        s_bngts = jnp.where(seen, s_bngts, -jnp.inf)
    p_bngts = jax.nn.softmax(s_bngts, axis=-1).astype(v.dtype)
    return jnp.einsum("bngts,bsnk->btngk", p_bngts, v).reshape(q.shape)

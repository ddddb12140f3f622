"""Attention with a compiled forward and backward on CPU."""

from functools import partial

import jax
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from colossus.nn.kernels import ffi
from colossus.nn.kernels.reference import attention_reference, attention_with_lse


def attention(q_bthd: Array, k_bthd: Array, v_bthd: Array, *, scale: float, causal: bool = True, window: int | None = None) -> Array:
    """softmax(scale q k^T + mask) v per head; q (B,T,H,D), k and v (B,T,KV,D) with KV dividing H -> (B,T,H,D).

    `window` (causal only): a query sees itself and the `window` - 1 positions before it. On a CPU in float32 a
    compiled kernel runs where it can be built, elsewhere `attention_reference`. The output and its log-sum-exp carry
    the names "attention_out" and "attention_lse": a checkpoint policy that saves both spares the backward a second forward.
    Inside `jax.shard_map` it sees only the local shard.
    """
    _check(q_bthd, k_bthd, v_bthd, causal, window)
    if not ffi.usable(q_bthd, k_bthd, v_bthd):
        o_bthd = attention_reference(q_bthd, k_bthd, v_bthd, scale=scale, causal=causal, window=window)
        return checkpoint_name(o_bthd, "attention_out")
    return _attention(float(scale), causal, window, *ffi.vary_alike(q_bthd, k_bthd, v_bthd))


def _check(q_bthd: Array, k_bthd: Array, v_bthd: Array, causal: bool, window: int | None) -> None:
    (batch, length, heads, dim), kv_heads = q_bthd.shape, k_bthd.shape[2]
    if k_bthd.shape != (batch, length, kv_heads, dim) or v_bthd.shape != k_bthd.shape or heads % kv_heads:
        shapes = f"q {q_bthd.shape}, k {k_bthd.shape}, v {v_bthd.shape}"
        raise ValueError(f"attention takes q (B,T,H,D) and k, v (B,T,KV,D) with KV dividing H; got {shapes}")
    if window is not None and (not causal or window < 1):
        raise ValueError(f"window={window} with causal={causal}: a window needs causal=True and at least 1 position")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(scale: float, causal: bool, window: int | None, q: Array, k: Array, v: Array) -> Array:
    return _forward(scale, causal, window, q, k, v)[0]


def _forward(scale: float, causal: bool, window: int | None, q: Array, k: Array, v: Array):
    batch, length, heads, _ = q.shape
    attributes = _attributes(scale, causal, window, length)
    o, lse = ffi.on_cpu(
        lambda *qkv: ffi.call("colossus_attention_forward", [q.shape, (batch, heads, length)], *qkv, **attributes),
        lambda *qkv: attention_with_lse(*qkv, scale=scale, causal=causal, window=window),
        q, k, v,
    )  # fmt: skip
    o, lse = checkpoint_name(o, "attention_out"), checkpoint_name(lse, "attention_lse")
    return o, (q, k, v, o, lse)


def _backward(scale: float, causal: bool, window: int | None, saved: tuple[Array, ...], d_o: Array):
    def plain(q: Array, k: Array, v: Array, _o: Array, _lse: Array, d_o: Array):
        return jax.vjp(partial(attention_reference, scale=scale, causal=causal, window=window), q, k, v)[1](d_o)

    q, k, v, *_ = saved
    attributes = _attributes(scale, causal, window, q.shape[1])
    return ffi.on_cpu(
        lambda *args: ffi.call("colossus_attention_backward", [q.shape, k.shape, v.shape], *args, **attributes),
        plain, *saved, d_o,
    )  # fmt: skip


def _attributes(scale: float, causal: bool, window: int | None, length: int) -> dict[str, object]:
    return {"scale": np.float32(scale), "causal": causal, "window": np.int64(length if window is None else window)}


_attention.defvjp(_forward, _backward)

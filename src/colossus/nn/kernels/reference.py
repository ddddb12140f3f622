"""The same functions in plain JAX: what other platforms run, and what the kernels are tested against."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def attention_reference(q_bthd: Array, k_bthd: Array, v_bthd: Array, *, scale: float, causal: bool = True, window: int | None = None) -> Array:
    """softmax(scale q k^T + mask) v per head; (B,T,H,D), (B,T,KV,D) twice -> (B,T,H,D).

    `window`: a query sees itself and the `window` - 1 positions before it.
    """
    if jax.default_backend() != "cpu":
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(q_bthd, k_bthd, v_bthd, scale=scale, is_causal=causal, local_window_size=local)
    return attention_with_lse(q_bthd, k_bthd, v_bthd, scale=scale, causal=causal, window=window)[0]


def attention_with_lse(q_bthd: Array, k_bthd: Array, v_bthd: Array, *, scale: float, causal: bool, window: int | None) -> tuple[Array, Array]:
    """Attention and the log-sum-exp of its scores (B,H,T); scores in at least float32."""
    batch, length, heads, dim = q_bthd.shape
    kv_heads = k_bthd.shape[2]
    precise = jnp.promote_types(q_bthd.dtype, jnp.float32)
    q_btkgd = q_bthd.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    s_bkgqt = jnp.einsum("bqkgd,btkd->bkgqt", q_btkgd, k_bthd, preferred_element_type=precise) * scale
    if causal:
        age = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        seen = (age >= 0) & (age < (math.inf if window is None else window))
        s_bkgqt = jnp.where(seen, s_bkgqt, -jnp.inf)
    lse_bkgq = jax.nn.logsumexp(s_bkgqt, axis=-1)
    p_bkgqt = jnp.exp(s_bkgqt - lse_bkgq[..., None]).astype(v_bthd.dtype)
    o_btkgd = jnp.einsum("bkgqt,btkd->bqkgd", p_bkgqt, v_bthd)
    return o_btkgd.reshape(q_bthd.shape), lse_bkgq.reshape(batch, heads, length)

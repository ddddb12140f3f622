"""RMS norm, SwiGLU and rotary embedding, each forward and backward one pass over memory on CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from colossus.nn.kernels import ffi


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    """``scale * x / sqrt(mean(x**2) + epsilon)`` over the last dim; x (..., D), scale (D,)."""
    if not ffi.usable(x, scale):
        return _plain_norm(x, scale, epsilon)[0]
    return _rms_norm(float(epsilon), *ffi.vary_alike(x, scale))


def swiglu(gate: Array, up: Array) -> Array:
    """``silu(gate) * up``, elementwise."""
    if not ffi.usable(gate, up):
        return _plain_swiglu(gate, up)
    return _swiglu(*ffi.vary_alike(gate, up))


def rope(x_bthk: Array, cos_btk: Array, sin_btk: Array) -> Array:
    """Turns each pair (i, i + K/2) of x (B,T,H,K) by the angles of (1 or B,T,K/2) cosines and sines, which get no gradient."""
    if not ffi.usable(x_bthk, cos_btk, sin_btk) or cos_btk.shape[0] not in (1, x_bthk.shape[0]):
        return _plain_rope(1.0, x_bthk, cos_btk, sin_btk)
    return _rope(1.0, *ffi.vary_alike(x_bthk, cos_btk, sin_btk))


def _plain_norm(x: Array, scale: Array, epsilon: float) -> tuple[Array, Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1) + epsilon)
    return (wide * inverse[..., None]).astype(x.dtype) * scale.astype(x.dtype), inverse


def _plain_swiglu(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


def _plain_rope(direction: float, x_bthk: Array, cos_btk: Array, sin_btk: Array) -> Array:
    first, second = jnp.split(x_bthk.astype(jnp.promote_types(x_bthk.dtype, jnp.float32)), 2, axis=-1)
    cos, sin = cos_btk[:, :, None, :], direction * sin_btk[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_bthk.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rms_norm(epsilon: float, x: Array, scale: Array) -> Array:
    return _norm_forward(epsilon, x, scale)[0]


def _norm_forward(epsilon: float, x: Array, scale: Array):
    y, inverse = ffi.on_cpu(
        lambda x, scale: ffi.call("colossus_rms_norm", [x.shape, x.shape[:-1]], x, scale, epsilon=np.float32(epsilon)),
        partial(_plain_norm, epsilon=epsilon), x, scale,
    )  # fmt: skip
    return y, (x, scale, inverse)


def _norm_backward(epsilon: float, saved: tuple[Array, Array, Array], dy: Array):
    def plain(x: Array, scale: Array, _inverse: Array, dy: Array):
        return jax.vjp(lambda x, scale: _plain_norm(x, scale, epsilon)[0], x, scale)[1](dy)

    x, scale, _ = saved
    kernel = lambda *args: ffi.call("colossus_rms_norm_backward", [x.shape, scale.shape], *args)
    return ffi.on_cpu(kernel, plain, *saved, dy)


_rms_norm.defvjp(_norm_forward, _norm_backward)


@jax.custom_vjp
def _swiglu(gate: Array, up: Array) -> Array:
    return ffi.on_cpu(lambda *args: ffi.call("colossus_swiglu", [gate.shape], *args)[0], _plain_swiglu, gate, up)


def _swiglu_backward(saved: tuple[Array, Array], dy: Array):
    kernel = lambda *args: ffi.call("colossus_swiglu_backward", [dy.shape, dy.shape], *args)
    return ffi.on_cpu(kernel, lambda gate, up, dy: jax.vjp(_plain_swiglu, gate, up)[1](dy), *saved, dy)


_swiglu.defvjp(lambda gate, up: (_swiglu(gate, up), (gate, up)), _swiglu_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rope(direction: float, x: Array, cos: Array, sin: Array) -> Array:
    kernel = lambda *args: ffi.call("colossus_rope", [x.shape], *args, direction=np.float32(direction))[0]
    return ffi.on_cpu(kernel, partial(_plain_rope, direction), x, cos, sin)


def _rope_backward(direction: float, saved: tuple[Array, Array], dy: Array):
    return _rope(-direction, dy, *saved), None, None


_rope.defvjp(lambda direction, x, cos, sin: (_rope(direction, x, cos, sin), (cos, sin)), _rope_backward)

"""Products with a weight matrix, forward and both gradients compiled on CPU."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from colossus.nn.kernels import ffi


def linear(x: Array, w_io: Array) -> Array:
    """x (..., I) times w (I, O) -> (..., O); on a CPU in float32 a compiled product, elsewhere XLA's."""
    if not ffi.usable(x, w_io):
        return x @ w_io
    x, w_io = ffi.vary_alike(x, w_io)
    rows = math.prod(x.shape[:-1])
    return _linear(x.reshape(rows, x.shape[-1]), w_io).reshape(*x.shape[:-1], w_io.shape[1])


def matmul(a: Array, b: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """op(a) op(b) of two matrices, where op transposes if its flag says so; not differentiable."""
    rows, columns = a.shape[transpose_a], b.shape[not transpose_b]
    return ffi.on_cpu(
        lambda a, b: ffi.call(
            "colossus_matmul", [(rows, columns)], a, b, transpose_a=transpose_a, transpose_b=transpose_b
        )[0],
        lambda a, b: jnp.matmul(a.T if transpose_a else a, b.T if transpose_b else b),
        a, b,
    )  # fmt: skip


@jax.custom_vjp
def _linear(x_ni: Array, w_io: Array) -> Array:
    return matmul(x_ni, w_io)


def _forward(x_ni: Array, w_io: Array):
    return matmul(x_ni, w_io), (x_ni, w_io)


def _backward(saved: tuple[Array, Array], dy_no: Array):
    x_ni, w_io = saved
    return matmul(dy_no, w_io, transpose_b=True), matmul(x_ni, dy_no, transpose_a=True)


_linear.defvjp(_forward, _backward)

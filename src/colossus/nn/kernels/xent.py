"""Cross-entropy over the vocabulary head, compiled on CPU: loss and both gradients while a chunk's logits are at hand."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from colossus.nn.kernels import ffi


def cross_entropy(x_nd: Array, w_dv: Array, targets_n: Array, weights_n: Array) -> Array:
    """``sum(weights * (logsumexp(x w) - (x w)[target]))``, a scalar in nats; differentiable in x and w.

    x (N,D), w (D,V), targets int32 (N), weights (N). Asked for gradients, the kernel makes them in the forward pass.
    """
    return _cross_entropy(*ffi.vary_alike(x_nd, w_dv, targets_n, weights_n))


def cross_entropy_and_gradients(x_nd: Array, w_dv: Array, targets_n: Array, weights_n: Array) -> tuple[Array, Array, Array]:
    """The loss of `cross_entropy` and its gradients in x (N,D) and w (D,V), in one go."""
    args = ffi.vary_alike(x_nd, w_dv, targets_n.astype(jnp.int32), weights_n)
    if not ffi.usable(x_nd, w_dv, weights_n):
        return _plain(*args)
    return ffi.on_cpu(_kernel, _plain, *args)


def _kernel(x: Array, w: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    losses, dx, dw = ffi.call("colossus_cross_entropy", [targets.shape, x.shape, w.shape], x, w, targets, weights)
    return jnp.sum(losses), dx, dw


def _loss(x: Array, w: Array, targets: Array, weights: Array) -> Array:
    logits_nv = jnp.matmul(x, w, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    wanted_n = jnp.take_along_axis(logits_nv, targets[:, None], axis=1)[:, 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits_nv, axis=1) - wanted_n))


def _plain(x: Array, w: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    total, gradients = jax.value_and_grad(_loss, argnums=(0, 1))(x, w, targets, weights)
    return total, *gradients


_cross_entropy = jax.custom_vjp(_loss)


def _forward(x: Array, w: Array, targets: Array, weights: Array):
    total, dx, dw = cross_entropy_and_gradients(x, w, targets, weights)
    return total, (dx, dw, targets, weights)


def _backward(saved: tuple[Array, Array, Array, Array], d_total: Array):
    dx, dw, targets, weights = saved
    no_targets = np.zeros(targets.shape, jax.dtypes.float0)
    return dx * d_total.astype(dx.dtype), dw * d_total.astype(dw.dtype), no_targets, jnp.zeros_like(weights)


_cross_entropy.defvjp(_forward, _backward)

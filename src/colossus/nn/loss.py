"""Cross-entropy fused with the vocabulary head: the logits exist one chunk of tokens at a time.

Shape letters: B batch, T tokens, D model_dim, V vocabulary, C tokens of a chunk; on a mesh the inner functions see local
sizes. The gradients are computed in the forward pass, while a chunk's logits are at hand, so that the head costs three
GEMMs a token, as if the logits had been kept (Liger kernel's fused linear cross-entropy, Hsu et al. 2024, 3.2).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from colossus.nn import kernels, sharding, target
from colossus.nn.kernels.ffi import usable

# Bytes of one chunk's float32 logits on one device: the caches of a CPU core, or enough rows to fill an accelerator.
CPU_CHUNK_BYTES, CHUNK_BYTES = 4 * 2**20, 512 * 2**20


def cross_entropy(x_btd: jax.Array, kernel_dv: jax.Array, targets_bt: jax.Array, weights_bt: jax.Array, chunk_tokens: int | None) -> jax.Array:
    """``sum(weights * (logsumexp(x kernel) - (x kernel)[target]))``, a float32 scalar in nats.

    Differentiable in x and kernel, not in the weights. ``kernel_dv`` is the float32 master; it is used in x's dtype.
    """
    return _cross_entropy(chunk_tokens, x_btd, kernel_dv, targets_bt, weights_bt)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(chunk: int | None, x: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    return _run(x, kernel, targets, weights, chunk, gradients=False)


def _forward(chunk: int | None, x: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Any, Any]:
    total, d_x, d_kernel = _run(x, kernel, targets, weights, chunk, gradients=True)
    return total, (d_x, d_kernel, targets)


def _backward(chunk: int | None, saved: Any, d_total: jax.Array) -> tuple[Any, ...]:
    d_x, d_kernel, targets = saved
    return (
        d_x * d_total.astype(d_x.dtype),
        d_kernel * d_total,
        np.zeros(targets.shape, jax.dtypes.float0),
        jnp.zeros(targets.shape, jnp.float32),
    )


_cross_entropy.defvjp(_forward, _backward)


def _run(x: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int | None, *, gradients: bool) -> Any:
    """The loss, and with ``gradients`` d_x and d_kernel, each device on its batch rows and its part of the vocabulary."""
    rows = ("batch", "sequence")
    inputs = ((*rows, None), (None, "vocab"), rows, rows)
    scattered = sharding.spec_of(("batch", "sequence_parallel", None), x.shape)
    stored = sharding.spec_of(("model", "vocab"), kernel.shape)
    outputs = (P(), scattered, stored) if gradients else P()
    local = partial(_local, chunk=chunk, gradients=gradients, scatter="tp" in scattered)
    gathered = sharding.constrain(kernel.astype(x.dtype), None, "vocab")
    return sharding.per_device(local, inputs, outputs)(x, gathered, targets, weights)


def _local(x: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, *, chunk: int | None, gradients: bool, scatter: bool) -> Any:
    num_tokens, width = targets.size, kernel.shape[1]
    size = min(num_tokens, chunk or default_chunk(width))
    if gradients and usable(x, kernel) and sharding.axis_size("tp") == 1:
        rows = (x.reshape(num_tokens, -1), kernel, targets.reshape(-1), weights.reshape(-1))
        total, d_x, d_kernel = kernels.cross_entropy_and_gradients(*rows)
        return _together(total, d_x.reshape(x.shape), d_kernel, scatter)
    parts = [_chunked(array, size) for array in (x.reshape(num_tokens, -1), targets.reshape(-1), weights.reshape(-1))]
    step = partial(_chunk, kernel, gradients)
    start: Any = (jnp.zeros((), jnp.float32), jnp.zeros(kernel.shape, jnp.float32) if gradients else None)
    (total, d_kernel), d_x = jax.lax.scan(step, start, tuple(parts))
    if not gradients:
        return _sum_over(total, ("dp", "fsdp"))
    return _together(total, d_x.reshape(-1, x.shape[-1])[:num_tokens].reshape(x.shape), d_kernel, scatter)


def _together(total: jax.Array, d_x: jax.Array, d_kernel: jax.Array, scatter: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the devices that share a result: the loss over the batch's parts, d_x over the vocabulary's, d_kernel as stored.

    Over fsdp first, so that over dp only a device's part travels.
    """
    d_x = _scatter_over(d_x, "tp", 1) if scatter else _sum_over(d_x, ("tp",))
    return _sum_over(total, ("dp", "fsdp")), d_x, _sum_over(_scatter_over(d_kernel, "fsdp", 0), ("dp",))


def default_chunk(width: int) -> int:
    """Tokens of a chunk, for ``width`` logits each on a device: a power of two."""
    budget = CPU_CHUNK_BYTES if target.platform() == "cpu" else CHUNK_BYTES
    return 2 ** max(5, int(math.log2(max(1, budget // (4 * width)))))


def _chunked(array: jax.Array, size: int) -> jax.Array:
    """(tokens, ...) -> (chunks, size, ...), filled up with zeros, whose weight is zero."""
    num_chunks = math.ceil(len(array) / size)
    missing = num_chunks * size - len(array)
    padded = jnp.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)]) if missing else array
    return padded.reshape(num_chunks, size, *array.shape[1:])


def _chunk(kernel: jax.Array, gradients: bool, carry: Any, part: Any) -> Any:
    """Adds one chunk's loss, and with ``gradients`` its part of d_kernel; gives its d_x, still to be summed over tp."""
    total, d_kernel = carry
    x_cd, targets_c, weights_c = part
    logits_cv = jnp.einsum("cd,dv->cv", x_cd, kernel, preferred_element_type=jnp.float32)
    is_target_cv = jnp.arange(kernel.shape[1])[None, :] == (targets_c - _first_column(kernel.shape[1]))[:, None]
    maximum_c = _max_over_tp(jnp.max(logits_cv, axis=1))
    sum_c = jnp.sum(jnp.exp(logits_cv - maximum_c[:, None]), axis=1)
    target_c = jnp.sum(jnp.where(is_target_cv, logits_cv, 0.0), axis=1)
    sum_c, target_c = _sum_over(jnp.stack([sum_c, target_c]), ("tp",))
    log_sum_c = maximum_c + jnp.log(sum_c)
    total = total + jnp.sum(weights_c * (log_sum_c - target_c))
    if not gradients:
        return (total, None), None
    d_logits_cv = ((jnp.exp(logits_cv - log_sum_c[:, None]) - is_target_cv) * weights_c[:, None]).astype(x_cd.dtype)
    d_x_cd = jnp.einsum("cv,dv->cd", d_logits_cv, kernel)
    d_kernel = d_kernel + jnp.einsum("cd,cv->dv", x_cd, d_logits_cv, preferred_element_type=jnp.float32)
    return (total, d_kernel), d_x_cd


def _first_column(width: int) -> Any:
    return jax.lax.axis_index("tp") * width if sharding.axis_size("tp") > 1 else 0


def _max_over_tp(x: jax.Array) -> jax.Array:
    return jax.lax.pmax(x, "tp") if sharding.axis_size("tp") > 1 else x


def _sum_over(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    present = tuple(axis for axis in axes if sharding.axis_size(axis) > 1)
    return jax.lax.psum(x, present) if present else x


def _scatter_over(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """The sum over a mesh axis, each device keeping its part of ``dim``."""
    return jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True) if sharding.axis_size(axis) > 1 else x

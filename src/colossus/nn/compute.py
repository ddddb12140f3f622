"""How a network is computed, as opposed to what it computes: precision, recomputation, loop or not, kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from colossus.nn import sharding, target
from colossus.nn.attention import Attention
from colossus.spec.job import Precision
from colossus.spec.layout import Remat

MAX_UNROLLED_LAYERS = 12

# What selective remat keeps of a layer: its GEMMs' and its attention's outputs. The rest is elementwise and cheap.
SAVED = ("q_out", "k_out", "v_out", "attention_out", "attention_lse", "attention_projection", "gate_out", "up_out", "down_out")
# Never kept on a mesh: a weight gathered over fsdp, an activation gathered over tp. The backward pass gathers them again.
GATHERS = ("sharding_constraint",)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Choices that change speed and memory, and the result by rounding only.

    ``unroll``: layers one after the other in the program instead of a loop over them; None unrolls on a CPU up to 12 layers,
    but not with remat: it is there where memory is short, and a loop needs no layer's weights twice.
    ``attention``: another implementation (see nn/attention.py); ``chunk_tokens``: of the cross-entropy; None chooses by platform.
    """

    precision: Precision = Precision.FLOAT32
    remat: Remat = Remat.NONE
    unroll: bool | None = None
    attention: Attention | None = None
    chunk_tokens: int | None = None

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.precision.value)

    def unrolls(self, num_layers: int) -> bool:
        if self.unroll is not None:
            return self.unroll
        return self.remat is Remat.NONE and num_layers <= MAX_UNROLLED_LAYERS and target.platform() == "cpu"


def rematerialized(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """``function`` with what its backward pass computes again instead of keeping."""
    if remat is Remat.FULL:
        return jax.checkpoint(function, policy=jax.checkpoint_policies.nothing_saveable)
    if remat is Remat.SELECTIVE:
        return jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(*SAVED))
    gathers = sharding.axis_size("fsdp") * sharding.axis_size("tp") > 1 and not sharding.on_one_shard()
    return jax.checkpoint(function, policy=_all_but_gathers) if gathers else function


def _all_but_gathers(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in GATHERS


def gather_weights(weights: dict[str, jax.Array], axes: dict[str, tuple[str, ...]], dtype: Any) -> dict[str, jax.Array]:
    """Weights ready for use: in the compute dtype, whole over fsdp. Their gradients go back in float32, cut over fsdp."""
    return {name: gather(weight, axes[name], dtype) for name, weight in weights.items()}


def gather(weight: jax.Array, axes: tuple[str, ...], dtype: Any) -> jax.Array:
    return _gather(weight, axes, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight: jax.Array, axes: tuple[str, ...], dtype: Any) -> jax.Array:
    whole = tuple(None if axis == "model" else axis for axis in axes)
    # Cut once more in the compute dtype: else XLA may gather first and cast then, and float32 is what travels.
    small = weight if weight.dtype == dtype else sharding.constrain(weight.astype(dtype), *axes)
    return sharding.constrain(small, *whole)


def _gather_forward(weight: jax.Array, axes: tuple[str, ...], dtype: Any) -> tuple[jax.Array, None]:
    return _gather(weight, axes, dtype), None


def _gather_backward(axes: tuple[str, ...], dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (sharding.constrain(gradient.astype(jnp.float32), *axes),)


_gather.defvjp(_gather_forward, _gather_backward)


def gather_shards(weight: jax.Array, axes: tuple[str, ...], dtype: Any) -> jax.Array:
    """``gather`` inside ``sharding.per_device``: one message for the whole array, and one for its gradient's sum."""
    dims = [dim for dim, axis in enumerate(axes) if axis == "model"]
    return _gather_shards(weight, dims[0], dtype) if dims and sharding.axis_size("fsdp") > 1 else weight


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_shards(weight: jax.Array, dim: int, dtype: Any) -> jax.Array:
    parts = jnp.moveaxis(jax.lax.all_gather(weight.astype(dtype), "fsdp"), 0, dim)  # gloo joins along the first dim only
    return parts.reshape(*weight.shape[:dim], -1, *weight.shape[dim + 1 :])


def _gather_shards_forward(weight: jax.Array, dim: int, dtype: Any) -> tuple[jax.Array, None]:
    return _gather_shards(weight, dim, dtype), None


def _gather_shards_backward(dim: int, dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    size = sharding.axis_size("fsdp")
    parts = gradient.astype(jnp.float32).reshape(*gradient.shape[:dim], size, -1, *gradient.shape[dim + 1 :])
    return (_sum_and_keep_own(jnp.moveaxis(parts, dim, 0)),)


def _sum_and_keep_own(parts: jax.Array) -> jax.Array:
    """What psum_scatter gives, by an all-reduce: gloo's reduce-scatter took 0.9 s for a 91 M model's gradients, its all-reduce 0.3 (LAB.md)."""
    return jax.lax.dynamic_index_in_dim(jax.lax.psum(parts, "fsdp"), jax.lax.axis_index("fsdp"), keepdims=False)


_gather_shards.defvjp(_gather_shards_forward, _gather_shards_backward)


def gather_layers(weight: jax.Array, axes: tuple[str, ...], dtype: Any) -> tuple[jax.Array, ...]:
    """``gather_shards`` of a stack, as one whole array for each layer: the stack itself is never put together, which would copy it once more."""
    dims = [dim for dim, axis in enumerate(axes) if axis == "model"]
    return _gather_layers(weight, dims[0], dtype) if dims and sharding.axis_size("fsdp") > 1 else unstack(weight)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_layers(weight: jax.Array, dim: int, dtype: Any) -> tuple[jax.Array, ...]:
    parts = jax.lax.all_gather(weight.astype(dtype), "fsdp")
    whole = (*weight.shape[1:dim], -1, *weight.shape[dim + 1 :])
    return tuple(jnp.moveaxis(parts[:, index], 0, dim - 1).reshape(whole) for index in range(weight.shape[0]))


def _gather_layers_forward(weight: jax.Array, dim: int, dtype: Any) -> tuple[tuple[jax.Array, ...], None]:
    return _gather_layers(weight, dim, dtype), None


def _gather_layers_backward(dim: int, dtype: Any, _: None, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    size = sharding.axis_size("fsdp")
    cut = (*gradients[0].shape[: dim - 1], size, -1, *gradients[0].shape[dim:])
    parts = [jnp.moveaxis(gradient.astype(jnp.float32).reshape(cut), dim - 1, 0) for gradient in gradients]
    return (_sum_and_keep_own(jnp.stack(parts, axis=1)),)


_gather_layers.defvjp(_gather_layers_forward, _gather_layers_backward)


@jax.custom_vjp
def unstack(array: jax.Array) -> tuple[jax.Array, ...]:
    """Slices along the first dim whose gradient is one stack, where the derived one adds L arrays of the stack's full size."""
    return tuple(array[index] for index in range(array.shape[0]))


def _unstack_forward(array: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
    return unstack(array), None


def _unstack_backward(_: None, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    return (jnp.stack(gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)


def named(x: jax.Array, name: str) -> jax.Array:
    """Marks ``x`` for the remat policy."""
    return checkpoint_name(x, name)

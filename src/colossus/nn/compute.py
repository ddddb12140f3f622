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
    return sharding.constrain(weight.astype(dtype), *whole)


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
    return (jax.lax.psum_scatter(jnp.moveaxis(parts, dim, 0), "fsdp"),)


_gather_shards.defvjp(_gather_shards_forward, _gather_shards_backward)


def named(x: jax.Array, name: str) -> jax.Array:
    """Marks ``x`` for the remat policy."""
    return checkpoint_name(x, name)

"""Weights made ready for serving: one dict a layer, in the numbers asked for, cut over tp.

int8 here is storage: a product takes ``numbers * scale`` in the compute dtype (see ``nn.quantized``).
Shape letters: see ``nn.paged``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from colossus.nn import sharding, target
from colossus.nn.decoder import Weights
from colossus.nn.embedding import look_up
from colossus.nn.parameters import Params, param_axes
from colossus.nn.quantized import MAX_GROUPED_ROWS, Quantized, product, quantize, whole
from colossus.spec.model import ModelCard

# The dim of a layer's weight, its leading dims of experts aside, along which inputs are summed and scales are grouped.
_ATTENTION = ("wq", "wk", "wv", "wo")
_INPUT_DIM = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w_gate": -2, "w_up": -2, "w_down": -2}


def whole_layer(weights: dict[str, Any], dtype: Any, num_rows: int) -> Weights:
    """A layer's weights as products of so many rows take them."""
    stays = lambda name, weight: (name in _ATTENTION or "router" not in weights) and _goes_in_groups(weight, num_rows)
    return {name: weight if stays(name, weight) else whole(weight, dtype) for name, weight in weights.items()}


def _goes_in_groups(weight: Any, num_rows: int) -> bool:
    """Whether a product takes the weight as int8. Elsewhere than on a GPU XLA does no better so."""
    few = isinstance(weight, Quantized) and num_rows <= MAX_GROUPED_ROWS
    return few and target.platform() == "gpu"


def logits_of(hidden_od: jax.Array, outer: Params) -> jax.Array:
    """(O, D) -> (O, V), float32."""
    table = outer["lm_head"]["kernel"] if "lm_head" in outer else jax.tree.map(jnp.transpose, outer["embed"]["tokens"])
    if _goes_in_groups(table, hidden_od.shape[0]):
        return product(hidden_od[None], table, dtype=jnp.float32)[0]
    return jnp.einsum("od,dv->ov", hidden_od, whole(table, hidden_od.dtype), preferred_element_type=jnp.float32)


def embedded(table_vd: jax.Array | Quantized, tokens_t: jax.Array, dtype: Any) -> jax.Array:
    """Token ids -> (1, T, D); of a quantized table only the rows that are wanted become ``dtype``."""
    if not isinstance(table_vd, Quantized):
        return look_up(table_vd, tokens_t[None])
    return whole(Quantized(*(look_up(part, tokens_t[None]) for part in table_vd)), dtype)


def prepare(params: Params, card: ModelCard, *, dtype: Any, int8: bool, mesh: jax.sharding.Mesh | None) -> dict[str, Any]:
    """``{"outer": ..., "layers": [...]}`` on the device or the mesh, array by array, so that none is there twice.

    With int8, the layers' matrices and the head are int8; norms, a mixture's router and an embedding that is not the head keep ``dtype``.
    """
    tp = 1 if mesh is None else mesh.shape["tp"]
    axes = param_axes(card)
    put = partial(_put, dtype=dtype, mesh=mesh, tp=tp)
    layers = [
        {
            name: put(
                _with_copies(np.asarray(stack[index]), name, card, tp),
                axes["layers"][name][1:],
                dim=_INPUT_DIM[name] % (stack.ndim - 1) if int8 and name in _INPUT_DIM else None,
            )
            for name, stack in params["layers"].items()
        }
        for index in range(card.num_layers)
    ]
    outer: dict[str, Any] = {"final_norm": {"scale": put(np.asarray(params["final_norm"]["scale"]), axes["final_norm"]["scale"])}}
    table = np.asarray(params["embed"]["tokens"])
    outer["embed"] = {"tokens": put(table, axes["embed"]["tokens"], dim=1 if int8 and card.tie_embeddings else None)}
    if not card.tie_embeddings:
        outer["lm_head"] = {"kernel": put(np.asarray(params["lm_head"]["kernel"]), axes["lm_head"]["kernel"], dim=0 if int8 else None)}
    return {"outer": outer, "layers": layers}


def _with_copies(weight: np.ndarray, name: str, card: ModelCard, tp: int) -> np.ndarray:
    """Key and value heads repeated up to tp, so that each device has the one that its queries share."""
    copies = tp // card.num_kv_heads
    return np.repeat(weight, copies, axis=1) if name in ("wk", "wv") and copies > 1 else weight


def _put(weight: np.ndarray, axes: tuple[str, ...], *, dtype: Any, mesh: jax.sharding.Mesh | None, tp: int, dim: int | None = None) -> jax.Array | Quantized:
    """One array to its devices, there made into the numbers it is kept in. Norms stay float32."""
    cut = tp if dim is not None and axes[dim] in ("ffn",) else 1
    kept: Callable[[jax.Array], Any] = _cast(jnp.float32 if weight.ndim == 1 else dtype) if dim is None else _quantize(dim, cut)
    if mesh is None:
        return kept(jax.device_put(weight))
    spec = sharding.RULES.spec(axes, weight.shape, dict(mesh.shape))
    return kept(sharding.place(mesh, spec, weight))


# One compiled program for each shape, however many layers have it.
@partial(jax.jit, static_argnames=("dim", "tp"))
def _jitted_quantize(weight: jax.Array, *, dim: int, tp: int) -> Quantized:
    return quantize(weight, dim, tp)


def _quantize(dim: int, tp: int) -> Callable[[jax.Array], Quantized]:
    return partial(_jitted_quantize, dim=dim, tp=tp)


@partial(jax.jit, static_argnames=("dtype",))
def _jitted_cast(weight: jax.Array, *, dtype: Any) -> jax.Array:
    return weight.astype(dtype)


def _cast(dtype: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda weight: weight if weight.dtype == dtype else _jitted_cast(weight, dtype=dtype)

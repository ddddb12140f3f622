"""The decoder's parameters: shape, logical axes and first spread of every array, in one table.

Shape letters: L layers, V vocabulary, D model_dim, H query heads, N key/value heads, K head_dim, F ffn_dim, E experts,
X expert_dim. Layers are stacked over a leading dim L, so that one scan (or one unrolled loop) walks them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from colossus.spec.model import ModelCard

Params = dict[str, Any]
Tree = dict[str, Any]


class Parameter(NamedTuple):
    """One array: its shape, a logical axis for each dim, and the standard deviation it starts with (None: ones)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float | None


def parameter_table(card: ModelCard) -> Tree:
    """The tree of ``Parameter`` for a card; every other function here reads this one.

    Matrices start as normal(0, fan_in**-0.5), which keeps the variance of a product; those that write to the residual
    stream are smaller by sqrt(2 L), so that its variance does not grow with depth (GPT-2, Radford et al. 2019, 2.3).
    """
    d, v = card.model_dim, card.vocab_size
    tree: Tree = {
        "embed": {"tokens": Parameter((v, d), ("vocab", "model"), d**-0.5)},
        "layers": {name: _stacked(leaf, card.num_layers) for name, leaf in _layer_table(card).items()},
        "final_norm": {"scale": Parameter((d,), ("model",), None)},
    }
    if not card.tie_embeddings:
        tree["lm_head"] = {"kernel": Parameter((d, v), ("model", "vocab"), d**-0.5)}
    return tree


def _stacked(leaf: Parameter, num_layers: int) -> Parameter:
    return Parameter((num_layers, *leaf.shape), ("layers", *leaf.axes), leaf.std)


def _layer_table(card: ModelCard) -> dict[str, Parameter]:
    d, h, n, k = card.model_dim, card.num_heads, card.num_kv_heads, card.head_dim
    residual = (2 * card.num_layers) ** -0.5
    table = {
        "attn_norm": Parameter((d,), ("model",), None),
        "wq": Parameter((d, h, k), ("model", "heads", "head_dim"), d**-0.5),
        "wk": Parameter((d, n, k), ("model", "kv_heads", "head_dim"), d**-0.5),
        "wv": Parameter((d, n, k), ("model", "kv_heads", "head_dim"), d**-0.5),
        "wo": Parameter((h, k, d), ("heads", "head_dim", "model"), (h * k) ** -0.5 * residual),
        "mlp_norm": Parameter((d,), ("model",), None),
    }
    if card.qk_norm:
        table |= {name: Parameter((k,), ("head_dim",), None) for name in ("q_norm", "k_norm")}
    return table | (_dense_table(card, residual) if card.moe is None else _moe_table(card, residual))


def _dense_table(card: ModelCard, residual: float) -> dict[str, Parameter]:
    d, f = card.model_dim, card.ffn_dim
    return {
        "w_gate": Parameter((d, f), ("model", "ffn"), d**-0.5),
        "w_up": Parameter((d, f), ("model", "ffn"), d**-0.5),
        "w_down": Parameter((f, d), ("ffn", "model"), f**-0.5 * residual),
    }


def _moe_table(card: ModelCard, residual: float) -> dict[str, Parameter]:
    assert card.moe is not None
    d, e, x = card.model_dim, card.moe.num_experts, card.moe.expert_dim
    return {
        "router": Parameter((d, e), ("model", "experts"), d**-0.5),
        "w_gate": Parameter((e, d, x), ("experts", "model", "ffn"), d**-0.5),
        "w_up": Parameter((e, d, x), ("experts", "model", "ffn"), d**-0.5),
        "w_down": Parameter((e, x, d), ("experts", "ffn", "model"), x**-0.5 * residual),
    }


def _is_leaf(node: Any) -> bool:
    return isinstance(node, Parameter)


def init_params(card: ModelCard, key: jax.Array) -> Params:
    """Fresh float32 master weights. The values depend on ``key`` and the card alone, not on how the arrays are sharded.

    On a mesh: ``jax.jit(partial(init_params, card), out_shardings=...)(key)`` makes each device's own shard only.
    """
    leaves, treedef = jax.tree.flatten(parameter_table(card), is_leaf=_is_leaf)
    arrays = [_init(leaf, jax.random.fold_in(key, index)) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, arrays)


def _init(leaf: Parameter, key: jax.Array) -> jax.Array:
    if leaf.std is None:
        return jnp.ones(leaf.shape, jnp.float32)
    return leaf.std * jax.random.truncated_normal(key, -3, 3, leaf.shape, jnp.float32)


def param_axes(card: ModelCard) -> Tree:
    """The parameter tree with a tuple of logical axis names in place of each array."""
    return jax.tree.map(lambda leaf: leaf.axes, parameter_table(card), is_leaf=_is_leaf)


def param_shapes(card: ModelCard) -> Tree:
    """The parameter tree with a ``jax.ShapeDtypeStruct`` in place of each array: no memory is touched."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), parameter_table(card), is_leaf=_is_leaf)


def num_params(card: ModelCard) -> int:
    """How many numbers the card's weights hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_table(card), is_leaf=_is_leaf))

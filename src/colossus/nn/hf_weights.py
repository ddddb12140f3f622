"""Where each of our weights lies in a Hugging Face checkpoint, and how to turn one into the other.

A leaf of the parameter tree stacks the tensors of all layers (and experts); a linear layer is stored there as
(out, in) with the heads merged, here as (in, heads, head_dim). RoPE turns halves in both, so no head is permuted.
Dims: V vocabulary, D model, H query heads, N key/value heads, K head, F feed-forward, E experts, X expert, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from colossus.nn.hf_config import family_of
from colossus.spec.model import ModelCard, MoeCard

Coords = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of the tree: ``stack`` tensors, each ``reshape(split)`` then ``transpose(order)`` of a stored one."""

    path: tuple[str, ...]
    name: str  # of the stored tensors, with {layer} and {expert}
    stored: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    stack: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array in the tree."""
        return self.stack + tuple(self.split[axis] for axis in self.order)

    @property
    def coords(self) -> Iterator[Coords]:
        """Indices of the stored tensors: (layer,) or (layer, expert)."""
        return product(*(range(size) for size in self.stack))

    def name_at(self, coords: Coords) -> str:
        return self.name.format(**dict(zip(("layer", "expert"), coords, strict=False)))

    def from_stored(self, array: np.ndarray) -> np.ndarray:
        """A view in our order of dims; touches no data."""
        return array.reshape(self.split).transpose(self.order)

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """The inverse of ``from_stored`` for one tensor of the stack."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.order))).reshape(self.stored)


def leaves(card: ModelCard) -> list[Leaf]:
    """Every array of the tree, in the order of the decoder's own init."""
    outer = [_plain(("embed", "tokens"), "model.embed_tokens.weight", (card.vocab_size, card.model_dim))]
    ends = [_plain(("final_norm", "scale"), "model.norm.weight", (card.model_dim,))]
    if not card.tie_embeddings:
        ends.append(_linear(("lm_head", "kernel"), "lm_head.weight", card.model_dim, card.vocab_size))
    return outer + _layer_leaves(card) + ends


def stored_shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of the card must hold, by name."""
    return {leaf.name_at(coords): leaf.stored for leaf in leaves(card) for coords in leaf.coords}


def tree(card: ModelCard, values: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """The nested dict of values by path."""
    nested: dict[str, Any] = {}
    for leaf in leaves(card):
        group, name = leaf.path
        nested.setdefault(group, {})[name] = values[leaf.path]
    return nested


def _layer_leaves(card: ModelCard) -> list[Leaf]:
    model, head, stack = card.model_dim, card.head_dim, (card.num_layers,)
    found = [
        _plain(("layers", "attn_norm"), _layer("input_layernorm"), (model,), stack),
        _heads_out("wq", "q_proj", card, card.num_heads),
        _heads_out("wk", "k_proj", card, card.num_kv_heads),
        _heads_out("wv", "v_proj", card, card.num_kv_heads),
        _heads_in("wo", "o_proj", card),
    ]
    if card.qk_norm:
        found.append(_plain(("layers", "q_norm"), _layer("self_attn.q_norm"), (head,), stack))
        found.append(_plain(("layers", "k_norm"), _layer("self_attn.k_norm"), (head,), stack))
    found.append(_plain(("layers", "mlp_norm"), _layer("post_attention_layernorm"), (model,), stack))
    return found + (_mlp(card) if card.moe is None else _moe(card, card.moe))


def _mlp(card: ModelCard) -> list[Leaf]:
    model, hidden, stack = card.model_dim, card.ffn_dim, (card.num_layers,)
    return [
        _linear(("layers", "w_gate"), _layer("mlp.gate_proj"), model, hidden, stack),
        _linear(("layers", "w_up"), _layer("mlp.up_proj"), model, hidden, stack),
        _linear(("layers", "w_down"), _layer("mlp.down_proj"), hidden, model, stack),
    ]


def _moe(card: ModelCard, moe: MoeCard) -> list[Leaf]:
    mixtral = family_of(card) == "mixtral"
    block = "block_sparse_moe" if mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    model, hidden, stack = card.model_dim, moe.expert_dim, (card.num_layers, moe.num_experts)
    expert = block + ".experts.{expert}."
    return [
        _linear(("layers", "router"), _layer(f"{block}.gate"), model, moe.num_experts, stack[:1]),
        _linear(("layers", "w_gate"), _layer(expert + gate), model, hidden, stack),
        _linear(("layers", "w_up"), _layer(expert + up), model, hidden, stack),
        _linear(("layers", "w_down"), _layer(expert + down), hidden, model, stack),
    ]


def _layer(name: str) -> str:
    return "model.layers.{layer}." + name + ".weight"


def _plain(path: tuple[str, ...], name: str, shape: tuple[int, ...], stack: tuple[int, ...] = ()) -> Leaf:
    return Leaf(path=path, name=name, stored=shape, split=shape, order=tuple(range(len(shape))), stack=stack)


def _linear(path: tuple[str, ...], name: str, num_in: int, num_out: int, stack: tuple[int, ...] = ()) -> Leaf:
    """Stored (out, in), ours (in, out)."""
    return Leaf(path=path, name=name, stored=(num_out, num_in), split=(num_out, num_in), order=(1, 0), stack=stack)


def _heads_out(ours: str, theirs: str, card: ModelCard, num_heads: int) -> Leaf:
    """Stored (heads * K, D), ours (D, heads, K)."""
    split = (num_heads, card.head_dim, card.model_dim)
    stored = (prod(split[:2]), card.model_dim)
    return Leaf(path=("layers", ours), name=_layer(f"self_attn.{theirs}"), stored=stored, split=split, order=(2, 0, 1), stack=(card.num_layers,))


def _heads_in(ours: str, theirs: str, card: ModelCard) -> Leaf:
    """Stored (D, H * K), ours (H, K, D)."""
    split = (card.model_dim, card.num_heads, card.head_dim)
    stored = (card.model_dim, prod(split[1:]))
    return Leaf(path=("layers", ours), name=_layer(f"self_attn.{theirs}"), stored=stored, split=split, order=(1, 2, 0), stack=(card.num_layers,))

"""Bytes of the fullest chip of a layout, in parts: what a plan needs to fit, for any mesh and training program.

Weights, gradients and optimizer follow ZeRO's stages (Rajbhandari et al. 2020); activations follow Korthikanti et al. 2022
(arXiv 2205.05198) with fused attention, so that no score is kept; a pipeline's first stage holds one microbatch for each
stage ahead of it (Narayanan et al. 2021). ``estimate/memory.py`` counts our own trainer's arrays one by one; this counts
programs that we know by their tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossus.estimate.shape import Cut, Numbers, Shape, Table, stage_imbalance

_BYTES = 2
# AdamW with 32-bit master weight and two moments; with ZeRO 3 the 32-bit shard is the weight itself.
_STATE_BYTES = 12
_WHOLE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Holding(Table):
    """What a program holds beyond the formulas; values under catalog/measured/."""

    activation_factor: Numbers  # values kept for the backward pass over the formula's
    selective_kept: Numbers  # of a layer's values that selective recompute keeps
    logits_bytes: Numbers  # a logit's bytes at the peak
    fragment_fraction: Numbers  # lost between allocations
    runtime_bytes: Numbers  # context, libraries, communication buffers


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes by use on the fullest chip; their sum is its peak."""

    weights_bytes: Numbers
    gradients_bytes: Numbers
    optimizer_bytes: Numbers
    activations_bytes: Numbers
    logits_bytes: Numbers
    buffers_bytes: Numbers
    runtime_bytes: Numbers

    @property
    def total_bytes(self) -> Numbers:
        return sum(vars(self).values())


def footprint(shape: Shape, cut: Cut, holding: Holding) -> Footprint:
    """The peak of the fullest chip: of a pipeline's first stage, which keeps most microbatches, or of its last, which has the logits."""
    first = _stage(shape, cut, holding, in_flight=_in_flight(cut), logits_bytes=np.where(cut.pp > 1, 0.0, holding.logits_bytes))
    ahead = np.where(cut.virtual_stages > 1, 1 + (cut.pp - 1) / cut.virtual_stages, 1.0)
    last = _stage(shape, cut, holding, in_flight=np.minimum(ahead, cut.num_microbatches), logits_bytes=holding.logits_bytes)
    is_last = (cut.pp > 1) & (last.total_bytes > first.total_bytes)
    return Footprint(**{name: np.where(is_last, getattr(last, name), value) for name, value in vars(first).items()})


def _stage(shape: Shape, cut: Cut, holding: Holding, *, in_flight: Numbers, logits_bytes: Numbers) -> Footprint:
    fullest = stage_imbalance(shape, cut)
    dense = (fullest * shape.dense_params / cut.pp + _stage_tables(shape, cut)) / cut.tp
    routed = fullest * shape.expert_params / cut.pp / cut.ep
    data, expert_data = cut.dp * cut.cp, np.maximum(cut.dp * cut.cp * cut.tp / cut.ep, 1.0)
    held = dense + routed
    shard = dense / data + routed / expert_data
    whole3 = cut.weights_sharded > 0
    state = np.where(cut.optimizer_sharded > 0, shard, held)
    layer = shape.dense_params / shape.num_layers / cut.tp + shape.expert_params / np.maximum(shape.num_moe_layers, 1.0) / cut.ep
    parts = {
        "weights_bytes": np.where(whole3, _WHOLE_BYTES * shard, _BYTES * held),
        "gradients_bytes": _WHOLE_BYTES * np.where(whole3, shard, held),
        "optimizer_bytes": np.where(whole3, 2 * _WHOLE_BYTES * shard, _STATE_BYTES * state),
        "activations_bytes": holding.activation_factor * _activations_bytes(shape, cut, holding, fullest * in_flight),
        "logits_bytes": logits_bytes * cut.tokens * shape.vocab_size / cut.tp,
        "buffers_bytes": np.where(whole3, 2 * _BYTES * layer + (_BYTES + _WHOLE_BYTES) * shape.vocab_size * shape.model_dim / cut.tp, 0.0),
    }
    lost = holding.fragment_fraction * sum(parts.values())
    return Footprint(**parts, runtime_bytes=holding.runtime_bytes + lost)


def _in_flight(cut: Cut) -> Numbers:
    """Microbatches that a pipeline's first stage holds at once: 1F1B as many as stages, interleaving a part of another."""
    ahead = np.where(cut.virtual_stages > 1, cut.pp + (cut.pp - 1) / cut.virtual_stages, cut.pp)
    return np.minimum(ahead, cut.num_microbatches)


def _stage_tables(shape: Shape, cut: Cut) -> Numbers:
    """Embedding and head: both on one stage, or one of them on the first and on the last."""
    return np.where(cut.pp > 1, shape.vocab_size * shape.model_dim, shape.table_params)


def values_per_token(shape: Shape, cut: Cut) -> tuple[Numbers, Numbers]:
    """16-bit values that one token leaves in a dense and in a mixture layer for the backward pass, on one tp rank.

    Two norms' inputs and outputs and the residuals (cut along the sequence), queries, keys, values and attention's output,
    the feed-forward's inputs, gate, up and product; experts keep theirs for each token they get, and its copies.
    """
    d, tp = shape.model_dim, cut.tp
    heads = (shape.num_heads * (shape.query_dim + 2 * shape.value_dim) + np.maximum(shape.num_kv_heads, tp) * (shape.head_dim + shape.value_dim)) / tp
    kv = np.where(shape.is_latent, (shape.query_rank + shape.kv_rank) * 2 + shape.num_heads * (shape.head_dim + shape.value_dim) / tp, 0.0)
    attention = 4 * d / tp + heads + kv
    per_width = shape.ffn_inputs + 1
    dense = attention + 2 * d / tp + per_width * shape.ffn_dim / tp
    k = shape.num_experts_per_token
    mixture = attention + 2 * d / tp + k / tp * (per_width * shape.expert_dim + 3 * d) + per_width * shape.shared_dim / tp
    return dense, mixture


def _activations_bytes(shape: Shape, cut: Cut, holding: Holding, in_flight: Numbers) -> Numbers:
    dense, mixture = values_per_token(shape, cut)
    kept_dense, kept_mixture = (_kept(shape, cut, width, holding) for width in (dense, mixture))
    per_token = (shape.num_dense_layers * kept_dense + shape.num_moe_layers * kept_mixture) / cut.pp
    working = np.where(cut.recompute + cut.selective > 0, np.maximum(dense, mixture * (shape.num_moe_layers > 0)), 0.0)
    return _BYTES * cut.tokens * (per_token * in_flight + working)


def _kept(shape: Shape, cut: Cut, width: Numbers, holding: Holding) -> Numbers:
    """Of a layer's values: its input alone with full recompute, a part with selective, all without."""
    return np.where(cut.recompute > 0, shape.model_dim / cut.tp, np.where(cut.selective > 0, holding.selective_kept * width, width))

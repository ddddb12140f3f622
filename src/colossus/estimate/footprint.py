"""Bytes of the fullest chip of a layout, in parts: what a plan needs to fit, for any mesh and training program.

Weights, gradients and optimizer follow ZeRO's stages (Rajbhandari et al. 2020); activations follow Korthikanti et al. 2022
(arXiv 2205.05198) with fused attention, so that no score is kept; a pipeline's first stage holds one microbatch for each
stage ahead of it (Narayanan et al. 2021). ``estimate/memory.py`` counts our own trainer's arrays one by one; this counts
programs that we know by their tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossus.estimate.context import gathered_bytes
from colossus.estimate.pipeline import in_flight, is_dualpipe, is_folded
from colossus.estimate.shape import Cut, Numbers, Shape, Table, outer_stage_layers, stage_layers
from colossus.estimate.sharding import shards, updated

# AdamW's two moments; beside 16-bit weights a 32-bit master. With ZeRO 3 and in float32 the 32-bit weight is the master itself.
_MOMENTS_BYTES = 8
_WHOLE_BYTES = 4
# Of a layer under tp, the values of a token that are whole on a rank at once: its gathered input, an output and a gradient before they are scattered.
_WHOLE_AT_ONCE = 3


@dataclass(frozen=True, kw_only=True)
class Holding(Table):
    """What a program holds beyond the formulas; values under catalog/measured/."""

    activation_factor: Numbers  # values kept for the backward pass over the formula's
    selective_kept: Numbers  # of a layer's values that selective recompute keeps
    logits_bytes: Numbers  # a logit's bytes at the peak
    held_gradient_bytes: Numbers  # a gradient's bytes in memory
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
    """The peak of the fullest chip: of a pipeline's first stage, which keeps most microbatches, of the second, which has more layers
    where the first has the embedding in one's place, or of the last, which has the logits."""
    outer, folded = outer_stage_layers(shape, cut), is_folded(cut)
    table = shape.vocab_size * shape.model_dim
    whole = (cut.pp == 1) | folded
    logits = holding.logits_bytes
    first = _stage(shape, cut, holding, outer, in_flight(cut), np.where(whole, shape.table_params, table), np.where(whole, logits, 0.0))
    second = _stage(shape, cut, holding, 1.0, in_flight(cut, 1.0), 0.0, 0.0)
    last = _stage(shape, cut, holding, outer, in_flight(cut, np.maximum(cut.pp - 1, 0.0)), table, logits)
    inside = (cut.pp > 2) & (outer < 1) & (second.total_bytes > first.total_bytes)
    most = _pick(inside, second, first)
    return _pick((cut.pp > 1) & ~folded & (last.total_bytes > most.total_bytes), last, most)


def _pick(where: Numbers, one: Footprint, other: Footprint) -> Footprint:
    return Footprint(**{name: np.where(where, getattr(one, name), value) for name, value in vars(other).items()})


def _stage(shape: Shape, cut: Cut, holding: Holding, layers: Numbers, num_held: Numbers, table_params: Numbers, logits_bytes: Numbers) -> Footprint:
    """A stage with ``layers`` of the fullest one's, that holds so many microbatches and this part of embedding and head."""
    num_dense, num_moe = (layers * number for number in stage_layers(shape, cut))
    copies = np.where(is_dualpipe(cut), 2.0, 1.0)
    dense = (copies * shape.dense_params_of(num_dense, num_moe) + table_params) / cut.tp
    routed = copies * shape.expert_params_of(num_moe) / cut.ep
    data, expert_data = shards(cut)
    kept = dense + routed
    shard = (dense / data + routed / expert_data) / copies  # the other direction's ranks hold the same weights
    whole3 = cut.weights_sharded > 0
    state = np.where(cut.optimizer_sharded > 0, shard, kept) * (1 - cut.optimizer_offload)
    layer = shape.dense_params / shape.num_layers / cut.tp + shape.expert_params / np.maximum(shape.num_moe_layers, 1.0) / cut.ep
    scattered = np.where(cut.gradients_sharded > 0, np.minimum(shard + _unscattered(cut, kept, layer), kept), kept)
    parts = {
        "weights_bytes": np.where(whole3, _WHOLE_BYTES * shard * (1 - cut.optimizer_offload / 2), cut.value_bytes * kept),
        "gradients_bytes": np.where(whole3, _WHOLE_BYTES * shard, np.maximum(holding.held_gradient_bytes, cut.value_bytes) * scattered),
        "optimizer_bytes": np.where(whole3, 2 * _WHOLE_BYTES * shard * (1 - cut.optimizer_offload), _state_bytes(cut) * state),
        "activations_bytes": holding.activation_factor * _activations_bytes(shape, cut, holding, num_held * num_dense, num_held * num_moe),
        "logits_bytes": logits_bytes * cut.tokens * shape.vocab_size / cut.tp,
        "buffers_bytes": gathered_bytes(shape, cut)
        + np.where(whole3, 2 * cut.value_bytes * layer + (cut.value_bytes + _WHOLE_BYTES) * shape.vocab_size * shape.model_dim / cut.tp, 0.0),
    }
    lost = holding.fragment_fraction * sum(parts.values())
    return Footprint(**parts, runtime_bytes=holding.runtime_bytes + lost)


def _state_bytes(cut: Cut) -> Numbers:
    return np.where(cut.value_bytes < _WHOLE_BYTES, _MOMENTS_BYTES + _WHOLE_BYTES, _MOMENTS_BYTES)


def _unscattered(cut: Cut, kept: Numbers, layer: Numbers) -> Numbers:
    """Gradients that wait to be scattered under ZeRO 2: of a virtual stage, whose pp microbatches come in a row, or of two layers."""
    return np.where(cut.virtual_stages > 1, kept / cut.virtual_stages, 2 * layer)


def host_bytes(shape: Shape, cut: Cut) -> Numbers:
    """What rests in the host's memory for each chip: state of the optimizer, activations that layers keep."""
    state = cut.optimizer_offload * _state_bytes(cut) * updated(shape, cut)
    return state + cut.activation_offload * kept_bytes(shape, cut) * in_flight(cut)


def kept_bytes(shape: Shape, cut: Cut) -> Numbers:
    """What the layers of one stage keep of one microbatch for the backward pass, nothing recomputed."""
    dense, mixture = values_per_token(shape, cut)
    num_dense, num_moe = stage_layers(shape, cut)
    return cut.value_bytes * cut.tokens * (num_dense * dense + num_moe * mixture)


def values_per_token(shape: Shape, cut: Cut) -> tuple[Numbers, Numbers]:
    """16-bit values that one token leaves in a dense and in a mixture layer for the backward pass, on one tp rank.

    Both norms' inputs and outputs (cut along the sequence), queries, keys, values and attention's output, the feed-forward's gate,
    up and product; experts keep theirs for each token they get, with their input and output; latent attention its latents
    before and after their norms. Nothing twice: a product's output is the next one's input (Korthikanti et al. 2022, section 4,
    without dropout and scores). ``cut.kept_bytes``: of each value that only products read.
    """
    d, tp = shape.model_dim, cut.tp
    heads = (shape.num_heads * (shape.query_dim + shape.value_dim) + np.maximum(shape.num_kv_heads, tp) * (shape.query_dim + shape.value_dim)) / tp
    narrow = cut.kept_bytes / cut.value_bytes
    attention = (2 + 2 * narrow) * d / tp + heads + np.where(shape.is_latent, (shape.query_rank + shape.kv_rank) * 2, 0.0)
    per_width = narrow * (shape.ffn_inputs + 1)
    dense = attention + per_width * shape.ffn_dim / tp
    k = shape.num_experts_per_token
    mixture = attention + k / tp * (per_width * shape.expert_dim + 2 * narrow * d) + per_width * shape.shared_dim / tp
    return dense, mixture


def _selected(shape: Shape, cut: Cut) -> tuple[Numbers, Numbers]:
    """Values kept with latent attention where norms, its way up from the latents and activation functions are computed again
    (DeepSeek-V3, arXiv 2412.19437, 3.2.3): both residuals, the latents, attention's output, gate and up, what experts get."""
    d, tp, narrow = shape.model_dim, cut.tp, cut.kept_bytes / cut.value_bytes
    attention = (2 * d + narrow * shape.num_heads * shape.value_dim) / tp + shape.query_rank + shape.kv_rank
    per_width, k = narrow * shape.ffn_inputs, shape.num_experts_per_token
    mixture = k / tp * (per_width * shape.expert_dim + narrow * d) + per_width * shape.shared_dim / tp
    return attention + per_width * shape.ffn_dim / tp, attention + mixture


def _activations_bytes(shape: Shape, cut: Cut, holding: Holding, num_dense: Numbers, num_moe: Numbers) -> Numbers:
    """Of so many layers times microbatches held. Offloaded activations rest elsewhere, but for the layer under way and the one that travels."""
    dense, mixture = values_per_token(shape, cut)
    chosen = _selected(shape, cut)
    kept_dense, kept_mixture = (_kept(shape, cut, holding, width, part) for width, part in zip((dense, mixture), chosen, strict=True))
    one = np.maximum(dense, mixture * (shape.num_moe_layers > 0))
    working = np.where(cut.recompute + cut.selective > 0, one, 0.0) + np.where(cut.tp > 1, _WHOLE_AT_ONCE * shape.model_dim, 0.0)
    return cut.value_bytes * cut.tokens * np.where(cut.activation_offload > 0, 2 * one, num_dense * kept_dense + num_moe * kept_mixture + working)


def _kept(shape: Shape, cut: Cut, holding: Holding, width: Numbers, selected: Numbers) -> Numbers:
    """Of a layer's values: its input alone with full recompute, a part with selective, all without."""
    some = np.where(shape.is_latent, selected, holding.selective_kept * width)
    return np.where(cut.recompute > 0, shape.model_dim / cut.tp, np.where(cut.selective > 0, some, width))

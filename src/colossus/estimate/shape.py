"""A model, a layout, a machine and a program as plain numbers or arrays of them, so that one formula serves one layout or a million.

Every field is a float or an array; arrays of one length are broadcast together. A search fixes the model and the machine
and varies the cut; a validation varies all of them, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from colossus.spec.model import Activation, ModelCard

Numbers = Any  # float | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Table:
    """A record whose fields are numbers or arrays of one length."""

    @classmethod
    def stack(cls, rows: Sequence[Self]) -> Self:
        """One table of arrays from many of scalars."""
        return cls(**{field.name: np.array([getattr(row, field.name) for row in rows]) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Shape(Table):
    """A decoder's sizes. Absent parts are zeros: no experts, no latent attention (``query_rank`` 0), no shared experts."""

    num_layers: Numbers
    model_dim: Numbers
    num_heads: Numbers
    num_kv_heads: Numbers
    head_dim: Numbers
    value_dim: Numbers
    query_rank: Numbers
    kv_rank: Numbers
    rope_head_dim: Numbers
    ffn_dim: Numbers
    ffn_inputs: Numbers  # matrices that read the layer's input: 2 with a gate, else 1
    vocab_size: Numbers
    tied: Numbers
    num_experts: Numbers
    num_experts_per_token: Numbers
    expert_dim: Numbers
    shared_dim: Numbers
    num_moe_layers: Numbers
    window_tokens: Numbers  # 0: every layer sees the whole sequence
    num_window_layers: Numbers
    num_expert_groups: Numbers = 0.0  # of node-limited routing; 0 without
    num_groups_per_token: Numbers = 0.0
    dense_first: Numbers = 0.0  # 1: the dense layers are the first ones; 0: spread among those with experts

    @classmethod
    def of(cls, card: ModelCard) -> Shape:
        moe, mla = card.moe, card.mla
        windows = card.num_layers if card.num_window_layers is None else card.num_window_layers
        return cls(
            num_layers=float(card.num_layers),
            model_dim=float(card.model_dim),
            num_heads=float(card.num_heads),
            num_kv_heads=float(card.num_kv_heads),
            head_dim=float(card.head_dim),
            value_dim=float(card.head_dim if mla is None else mla.value_head_dim),
            query_rank=0.0 if mla is None else float(mla.query_rank or 0),
            kv_rank=0.0 if mla is None else float(mla.kv_rank),
            rope_head_dim=0.0 if mla is None else float(mla.rope_head_dim),
            ffn_dim=float(card.ffn_dim),
            ffn_inputs=2.0 if card.activation is Activation.SWIGLU else 1.0,
            vocab_size=float(card.vocab_size),
            tied=float(card.tie_embeddings),
            num_experts=0.0 if moe is None else float(moe.num_experts),
            num_experts_per_token=0.0 if moe is None else float(moe.num_experts_per_token),
            expert_dim=0.0 if moe is None else float(moe.expert_dim),
            shared_dim=0.0 if moe is None else float(moe.shared_dim),
            num_moe_layers=0.0 if moe is None else float(card.num_layers - moe.num_dense_layers),
            window_tokens=float(card.sliding_window_tokens or 0),
            num_window_layers=0.0 if card.sliding_window_tokens is None else float(windows),
            num_expert_groups=float(moe.num_groups or 0) if moe else 0.0,
            num_groups_per_token=float(moe.num_groups_per_token or 0) if moe else 0.0,
            dense_first=float(moe is not None and moe.dense_layers == "first"),
        )

    @property
    def is_latent(self) -> Numbers:
        return self.kv_rank > 0

    @property
    def query_dim(self) -> Numbers:
        """Width of one head's query and key as they are multiplied."""
        return self.head_dim + self.rope_head_dim

    @property
    def num_dense_layers(self) -> Numbers:
        return self.num_layers - self.num_moe_layers

    @property
    def attention_params(self) -> Numbers:
        """Weights of one layer's attention."""
        d, h = self.model_dim, self.num_heads
        plain = d * (h + 2 * self.num_kv_heads) * self.head_dim + h * self.value_dim * d
        queries = np.where(self.query_rank > 0, self.query_rank * (d + h * self.query_dim), d * h * self.query_dim)
        latent = queries + d * (self.kv_rank + self.rope_head_dim) + self.kv_rank * h * (self.head_dim + self.value_dim) + h * self.value_dim * d
        return np.where(self.is_latent, latent, plain)

    @property
    def dense_params(self) -> Numbers:
        """Weights of all layers but the experts, without embedding and head."""
        return self.dense_params_of(self.num_dense_layers, self.num_moe_layers)

    @property
    def expert_params(self) -> Numbers:
        """Weights of all experts of all layers."""
        return self.expert_params_of(self.num_moe_layers)

    def dense_params_of(self, num_dense: Numbers, num_moe: Numbers) -> Numbers:
        """Weights but the experts of so many layers of either kind."""
        feed_forward = (self.ffn_inputs + 1) * self.model_dim * (num_dense * self.ffn_dim + num_moe * self.shared_dim)
        return (num_dense + num_moe) * self.attention_params + feed_forward + num_moe * self.model_dim * self.num_experts

    def expert_params_of(self, num_moe: Numbers) -> Numbers:
        return num_moe * self.num_experts * (self.ffn_inputs + 1) * self.model_dim * self.expert_dim

    @property
    def table_params(self) -> Numbers:
        """Embedding, and the head where it is its own."""
        return (2 - self.tied) * self.vocab_size * self.model_dim


@dataclass(frozen=True, kw_only=True)
class Cut(Table):
    """A layout with its batch: axis sizes, microbatches, and what is recomputed, sharded and in which precision.

    ``recompute``: 0 nothing, 1 a whole layer; selective counts through ``selective``. ``weights_sharded``: 1 with fsdp (ZeRO 3),
    where weights are gathered for each microbatch. ``optimizer_sharded``: 1 with ZeRO 1 and 2. What most layouts do without has a default.
    """

    tp: Numbers
    cp: Numbers
    pp: Numbers
    ep: Numbers
    dp: Numbers  # replicas of the data, sharded or not
    virtual_stages: Numbers
    microbatch_sequences: Numbers
    num_microbatches: Numbers
    sequence_tokens: Numbers
    recompute: Numbers
    selective: Numbers
    weights_sharded: Numbers
    optimizer_sharded: Numbers
    is_low_precision: Numbers  # GEMM inputs of 8 bits or fewer
    gradients_sharded: Numbers = 0.0  # 1 with ZeRO 2: gradients are scattered as they come
    replica_groups: Numbers = 1.0  # of ZeRO 3: groups that each hold all weights (HSDP); 1 shards over all
    schedule: Numbers = 0.0  # of the pipeline: a place in spec.layout.Schedule
    cp_kind: Numbers = 0.0  # a place in spec.layout.CpKind
    optimizer_offload: Numbers = 0.0  # 1: master weights and moments rest in the host's memory, which updates them
    activation_offload: Numbers = 0.0  # 1: what layers keep for the backward pass rests there
    value_bytes: Numbers = 2.0  # of a weight, an activation and a gradient as they are computed: 4 in float32
    kept_bytes: Numbers = 2.0  # of a value that a product reads again in the backward pass

    @property
    def num_chips(self) -> Numbers:
        return self.tp * self.cp * self.pp * self.dp

    @property
    def tokens(self) -> Numbers:
        """Tokens of one microbatch on one rank, before tp cuts the sequence between blocks."""
        return self.microbatch_sequences * self.sequence_tokens / self.cp

    @property
    def tokens_per_step(self) -> Numbers:
        return self.microbatch_sequences * self.num_microbatches * self.dp * self.sequence_tokens


@dataclass(frozen=True, kw_only=True)
class Device(Table):
    """What one chip and its links can do, measured curves included. Rates are per chip, bandwidth one way.

    A GEMM of (m, n, k) takes ``2 m n k / gemm_flop_per_s * (1 + m_half/m + n_half/n + k_half/k)``: each ``half`` is the size
    at which that dim alone would halve the rate (catalog/measured/gemm.toml says what it was fitted on).
    """

    gemm_flop_per_s: Numbers
    m_half: Numbers
    n_half: Numbers
    k_half: Numbers
    attention_flop_per_s: Numbers  # of 16-bit GEMMs, which attention uses in every precision
    memory_bytes_per_s: Numbers
    memory_bytes: Numbers
    domain_chips: Numbers
    scale_up_bytes_per_s: Numbers
    scale_up_latency_s: Numbers
    scale_out_bytes_per_s: Numbers
    scale_out_latency_s: Numbers
    host_bytes_per_s: Numbers = np.inf  # of a chip's link to its host, one way
    host_memory_bytes_per_s: Numbers = np.inf  # of the host's memory, for each chip
    host_memory_bytes: Numbers = np.inf  # the same share
    pod_chips: Numbers = np.inf  # chips with full bisection between domains
    oversubscription: Numbers = 1.0  # of the network between pods
    num_torus_dims: Numbers = 0.0  # of the domain's fabric; 0 is a switch
    torus_x: Numbers = 1.0
    torus_y: Numbers = 1.0
    torus_z: Numbers = 1.0
    num_wraparound_chips: Numbers = 1.0  # along a dim from which on its ends are joined


def stage_layers(shape: Shape, cut: Cut) -> tuple[Numbers, Numbers]:
    """Dense layers and layers with experts of the fullest stage: of 126 layers in 16 stages 8. Where dense layers come first, it has none of them."""
    fullest = np.ceil(shape.num_layers / cut.pp)
    even = fullest * shape.num_moe_layers / shape.num_layers
    moe = np.where((shape.dense_first > 0) & (cut.pp > 1), np.minimum(fullest, shape.num_moe_layers), even)
    return fullest - moe, moe


def outer_stage_layers(shape: Shape, cut: Cut) -> Numbers:
    """Layers of the first and of the last stage over the fullest one's. Where a division leaves places free, they are there, for the
    embedding and the head: 7 of 8 in Llama 3 405B (arXiv 2407.21783, 3.3.2)."""
    fullest = np.ceil(shape.num_layers / cut.pp)
    return np.where(fullest * cut.pp - shape.num_layers >= 2, (fullest - 1) / fullest, 1.0)

"""The decoder family: Llama 3, Qwen3, Mistral and Mixtral are values of one card, not classes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from colossus.spec.base import Spec
from colossus.spec.errors import Problem

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class RopeScaling(Spec):
    """Llama 3's rule for longer contexts: low frequencies are slowed by ``factor``, high ones kept, between them a ramp."""

    factor: Positive
    low_frequency_factor: Positive
    high_frequency_factor: Positive
    original_max_tokens: Count


class MlaCard(Spec):
    """DeepSeek-V2's latent attention (arXiv 2405.04434, 2.1): queries, and keys with values, through narrow latents.

    A head's query and key are ``head_dim`` wide without position and ``rope_head_dim`` with it; its value ``value_head_dim``.
    ``query_rank`` None: queries are projected at once.
    """

    kv_rank: Count
    query_rank: Count | None = None
    rope_head_dim: Count
    value_head_dim: Count


class MoeCard(Spec):
    """A mixture of experts in place of the dense feed-forward: top-k routing, no token dropped.

    ``shared_dim``: width of the experts that every token passes, all together. ``num_dense_layers``: how many of the first
    layers keep the dense feed-forward, of width ``ffn_dim``; ``dense_layers`` "spread": as many layers among the others do. ``num_groups``: experts lie in equal groups, of which a token
    chooses ``num_groups_per_token`` first (DeepSeek's node-limited routing); None without.
    """

    num_experts: Count
    num_experts_per_token: Count
    expert_dim: Count
    shared_dim: Annotated[int, Field(ge=0)] = 0
    num_dense_layers: Annotated[int, Field(ge=0)] = 0
    dense_layers: Literal["first", "spread"] = "first"
    num_groups: Count | None = None
    num_groups_per_token: Count | None = None
    normalize_top_k: bool = True
    load_balance_weight: Annotated[float, Field(ge=0)] = 0.01
    z_loss_weight: Annotated[float, Field(ge=0)] = 0.001

    @model_validator(mode="after")
    def _check(self) -> MoeCard:
        if self.num_experts_per_token > self.num_experts:
            raise ValueError(f"num_experts_per_token {self.num_experts_per_token} must be at most num_experts {self.num_experts}")
        if (self.num_groups is None) != (self.num_groups_per_token is None):
            raise ValueError("num_groups and num_groups_per_token come together")
        if self.num_groups is not None and (self.num_experts % self.num_groups or self.num_groups_per_token > self.num_groups):  # type: ignore[operator]
            raise ValueError(f"num_groups {self.num_groups} must divide num_experts {self.num_experts} and be at least num_groups_per_token")
        return self


class Activation(StrEnum):
    """The feed-forward's: SwiGLU has three matrices, GELU and squared ReLU two."""

    SWIGLU = "swiglu"
    GELU = "gelu"
    SQUARED_RELU = "squared_relu"


class ModelCard(Spec):
    """Shape of one decoder-only transformer.

    ``num_heads`` query heads share ``num_kv_heads`` key/value heads (GQA). ``qk_norm`` is Qwen3's RMSNorm on each head's
    query and key. ``sliding_window_tokens`` is Mistral's: a token sees itself and the window - 1 tokens before it; in
    ``num_window_layers`` layers (None: in all). What is planned but not trained yet: see ``untrainable``.
    """

    vocab_size: Count
    num_layers: Count
    model_dim: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    ffn_dim: Count
    max_sequence_tokens: Count = 8192
    rope_theta: Positive = 500000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: Positive = 1e-5
    tie_embeddings: bool = False
    qk_norm: bool = False
    sliding_window_tokens: Count | None = None
    num_window_layers: Count | None = None
    activation: Activation = Activation.SWIGLU
    mla: MlaCard | None = None
    moe: MoeCard | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelCard:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even, since RoPE turns pairs")
        if self.num_window_layers is not None and (self.sliding_window_tokens is None or self.num_window_layers > self.num_layers):
            raise ValueError(f"num_window_layers {self.num_window_layers} needs sliding_window_tokens and at most num_layers {self.num_layers}")
        if self.moe is not None and self.moe.num_dense_layers >= self.num_layers:
            raise ValueError(f"moe.num_dense_layers {self.moe.num_dense_layers} must be below num_layers {self.num_layers}")
        return self


def untrainable(card: ModelCard) -> list[Problem]:
    """Parts of a card that are planned but that ``nn`` does not compute."""
    moe = card.moe
    parts = {
        "model.mla": card.mla is not None,
        "model.activation": card.activation is not Activation.SWIGLU,
        "model.num_window_layers": card.num_window_layers not in (None, card.num_layers),
        "model.moe.shared_dim": moe is not None and moe.shared_dim > 0,
        "model.moe.num_groups": moe is not None and moe.num_groups is not None,
        "model.moe.num_dense_layers": moe is not None and moe.num_dense_layers > 0,
    }
    return [Problem(path=path, value="set", rule="can be planned and simulated, not trained by Colossus yet") for path, there in parts.items() if there]

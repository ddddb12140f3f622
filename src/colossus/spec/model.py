"""The decoder family: Llama 3, Qwen3, Mistral and Mixtral are values of one card, not classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from colossus.spec.base import Spec

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class RopeScaling(Spec):
    """Llama 3's rule for longer contexts: low frequencies are slowed by ``factor``, high ones kept, between them a ramp."""

    factor: Positive
    low_frequency_factor: Positive
    high_frequency_factor: Positive
    original_max_tokens: Count


class MoeCard(Spec):
    """A mixture of experts in place of the dense feed-forward: top-k routing, no token dropped."""

    num_experts: Count
    num_experts_per_token: Count
    expert_dim: Count
    normalize_top_k: bool = True
    load_balance_weight: Annotated[float, Field(ge=0)] = 0.01
    z_loss_weight: Annotated[float, Field(ge=0)] = 0.001

    @model_validator(mode="after")
    def _check(self) -> MoeCard:
        if self.num_experts_per_token > self.num_experts:
            raise ValueError(f"num_experts_per_token {self.num_experts_per_token} must be at most num_experts {self.num_experts}")
        return self


class ModelCard(Spec):
    """Shape of one decoder-only transformer.

    ``num_heads`` query heads share ``num_kv_heads`` key/value heads (GQA). ``qk_norm`` is Qwen3's RMSNorm on each head's
    query and key. ``sliding_window_tokens`` is Mistral's: a token sees itself and the window - 1 tokens before it.
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
    moe: MoeCard | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelCard:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even, since RoPE turns pairs")
        return self

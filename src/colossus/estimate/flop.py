"""FLOP of training a decoder, in closed form, by parts.

A multiply-add is two FLOP. Only GEMMs are counted: norms, RoPE, softmax, activations and the optimizer are elementwise,
under 1 % of the whole from model_dim 1024 up. The backward pass of a GEMM is two GEMMs of the same size, so that a trained
GEMM costs 6 FLOP per weight and token (Kaplan et al. 2020, 2.1), and attention three times its forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossus.estimate.parameters import key_value_projection, num_feed_forward_matrices, num_moe_layers, query_projection
from colossus.spec.layout import Remat
from colossus.spec.model import ModelCard


@dataclass(frozen=True, kw_only=True)
class TrainFlop:
    """FLOP of one training step over the whole batch, on all devices together.

    ``recompute_flop`` is what the backward pass does again; the rest is the model's own work, the numerator of MFU.
    """

    projections_flop: float
    attention_flop: float
    feed_forward_flop: float
    router_flop: float
    head_flop: float
    recompute_flop: float

    @property
    def model_flop(self) -> float:
        return self.projections_flop + self.attention_flop + self.feed_forward_flop + self.router_flop + self.head_flop

    @property
    def total_flop(self) -> float:
        return self.model_flop + self.recompute_flop


def train_flop(
    card: ModelCard,
    num_sequences: int,
    sequence_tokens: int,
    remat: Remat = Remat.NONE,
    *,
    attended_keys: float | None = None,
    tp: int = 1,
) -> TrainFlop:
    """FLOP of one step, forward and backward.

    ``attended_keys``: keys that a query is multiplied with in a layer, on average. None counts only the pairs that the mask
    lets through: (T + 1) / 2 when causal, fewer in layers with a window. ``sequence_tokens`` gives the convention of PaLM
    (Chowdhery et al. 2022, appendix B); what an implementation really computes lies between. ``tp`` above the number of
    key/value heads copies their projections.
    """
    num_tokens = num_sequences * sequence_tokens
    keys = _mean_keys(card, sequence_tokens) if attended_keys is None else attended_keys
    forward = _attention_flop_per_token(card, keys, max(1, tp // card.num_kv_heads)) | _feed_forward_flop_per_token(card)
    return TrainFlop(
        projections_flop=3 * num_tokens * (forward["qkv"] + forward["output"]),
        attention_flop=3 * num_tokens * (forward["scores"] + forward["values"]),
        feed_forward_flop=3 * num_tokens * (forward["up"] + forward["down"] + forward["expert_down"]),
        router_flop=3 * num_tokens * forward["router"],
        head_flop=3 * num_tokens * 2 * card.model_dim * card.vocab_size,
        recompute_flop=num_tokens * sum(forward[part] for part in _recomputed(remat)),
    )


def mean_causal_keys(sequence_tokens: int, window: int | None = None) -> float:
    """Keys that a token sees, itself included, on average over a sequence: ``mean(min(i + 1, window))``."""
    seen = min(window or sequence_tokens, sequence_tokens)
    return seen - seen * (seen - 1) / (2 * sequence_tokens)


def _mean_keys(card: ModelCard, sequence_tokens: int) -> float:
    """Keys that a token sees in a layer, on average over the layers with the window and those without."""
    windowed = mean_causal_keys(sequence_tokens, card.sliding_window_tokens)
    if card.num_window_layers is None:
        return windowed
    share = card.num_window_layers / card.num_layers
    return share * windowed + (1 - share) * mean_causal_keys(sequence_tokens)


def _attention_flop_per_token(card: ModelCard, keys: float, kv_copies: int) -> dict[str, float]:
    """Forward FLOP per token of all layers' attention, by GEMM; latent attention as it is trained, keys and values spread out."""
    layers, d, k, mla = card.num_layers, card.model_dim, card.head_dim, card.mla
    if mla is None:
        qkv, query_dim, value_dim = d * k * (card.num_heads + 2 * card.num_kv_heads * kv_copies), k, k
    else:
        qkv, query_dim, value_dim = query_projection(card, mla) + key_value_projection(card, mla), k + mla.rope_head_dim, mla.value_head_dim
    return {
        "qkv": layers * 2 * qkv,
        "output": layers * 2 * d * value_dim * card.num_heads,
        "scores": layers * 2 * card.num_heads * query_dim * keys,
        "values": layers * 2 * card.num_heads * value_dim * keys,
    }


def _feed_forward_flop_per_token(card: ModelCard) -> dict[str, float]:
    """Forward FLOP per token of all layers' feed-forwards, by GEMM: dense and shared experts together, routed experts' way down apart."""
    sparse, moe = num_moe_layers(card), card.moe
    one = 2 * card.model_dim
    dense = (card.num_layers - sparse) * card.ffn_dim + (0 if moe is None else sparse * moe.shared_dim)
    routed = 0 if moe is None else sparse * moe.num_experts_per_token * moe.expert_dim
    return {
        "up": one * (dense + routed) * (num_feed_forward_matrices(card) - 1),
        "down": one * dense,
        "expert_down": one * routed,
        "router": 0 if moe is None else one * sparse * moe.num_experts,
    }


def _recomputed(remat: Remat) -> tuple[str, ...]:
    """GEMMs that the backward pass does again, with plain attention.

    Selective keeps every GEMM's and the attention's output, but not the scores. Full keeps a layer's input alone; the last
    GEMM of a dense layer is not done again, since no gradient needs its output (with experts the gates' gradient does).
    """
    if remat is Remat.NONE:
        return ()
    if remat is Remat.SELECTIVE:
        return ("scores", "router")
    return ("qkv", "output", "scores", "values", "up", "router", "expert_down")

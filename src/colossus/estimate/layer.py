"""Time of one layer on one rank, forward and backward, by kind of work.

Formulas: GEMMs as listed by Narayanan et al. 2021 (arXiv 2104.04473) for tensor parallelism; latent attention after
DeepSeek-V2 (2405.04434); attention's backward pass is 2.5 forward passes (Dao 2023, 2307.08691, with recomputed scores).
Ignored: dropout, biases, positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossus.estimate.collectives import all_to_all_s, gather_s
from colossus.estimate.context import kernel_tokens
from colossus.estimate.passes import Pass
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Numbers, Shape


@dataclass(frozen=True, kw_only=True)
class Gemms:
    """The GEMM clock of a device under a profile."""

    device: Device
    profile: Profile
    cut: Cut

    def __call__(self, m: Numbers, n: Numbers, k: Numbers, count: Numbers = 1.0) -> Pass:
        """``count`` products (m, k)(k, n), and both gradients: (m, n)(n, k) and (k, m)(m, n)."""
        m, n, k = np.maximum(m, 1.0), np.maximum(n, 1.0), np.maximum(k, 1.0)
        return Pass(forward_s=count * self._one_s(m, n, k), backward_s=count * (self._one_s(m, k, n) + self._one_s(k, n, m)))

    def _one_s(self, m: Numbers, n: Numbers, k: Numbers) -> Numbers:
        d, p = self.device, self.profile
        casting = np.where(self.cut.is_low_precision > 0, p.quantize, 1.0)
        slowing = 1 + d.m_half / m + d.n_half * casting / n + d.k_half / k
        return 2 * m * n * k / (d.gemm_flop_per_s * p.gemm_fraction) * slowing


def attention_projections(shape: Shape, cut: Cut, gemm: Gemms) -> Pass:
    """Queries, keys, values and output. More tp than key/value heads copies these."""
    t, d, h, tp = cut.tokens, shape.model_dim, shape.num_heads, cut.tp
    out = gemm(t, d, h * shape.value_dim / tp)
    plain = gemm(t, (h + 2 * np.maximum(shape.num_kv_heads, tp)) * shape.head_dim / tp, d)
    ranks = gemm(t, shape.query_rank, d) + gemm(t, h * shape.query_dim / tp, np.where(shape.query_rank > 0, shape.query_rank, d))
    latent = ranks + gemm(t, shape.kv_rank + shape.rope_head_dim, d) + gemm(t, h * (shape.head_dim + shape.value_dim) / tp, shape.kv_rank)
    return Pass(
        forward_s=out.forward_s + np.where(shape.is_latent, latent.forward_s, plain.forward_s),
        backward_s=out.backward_s + np.where(shape.is_latent, latent.backward_s, plain.backward_s),
    )


def mean_keys(shape: Shape, cut: Cut) -> Numbers:
    """Keys that a query meets, on average over positions and layers; causal, half the sequence in all but window layers."""
    length = cut.sequence_tokens
    whole = (length + 1) / 2
    seen: Numbers = np.where(shape.window_tokens > 0, np.minimum(shape.window_tokens, length), length)
    windowed = seen - seen * (seen - 1) / (2 * length)
    share = shape.num_window_layers / shape.num_layers
    return whole * (1 - share) + windowed * share


def attention_core(shape: Shape, cut: Cut, device: Device, profile: Profile) -> Pass:
    """Scores and their use: 2 keys (query_dim + value_dim) FLOP for each token and head, and passes over scores without flash.

    Never faster than memory gives queries, keys and values and takes the output.
    """
    keys = mean_keys(shape, cut)
    heads = shape.num_heads / cut.tp
    flop = 2 * cut.tokens * keys * heads * (shape.query_dim + shape.value_dim)
    halves = 1 + profile.attention_half_tokens / kernel_tokens(cut) + profile.attention_half_dim / shape.value_dim
    rate = device.attention_flop_per_s * profile.attention_fraction / halves
    scores_s = profile.score_passes * cut.tokens * cut.sequence_tokens * heads * cut.value_bytes / device.memory_bytes_per_s
    forward_s = np.maximum(flop / rate, attention_bytes(shape, cut) / device.memory_bytes_per_s)
    return Pass(forward_s=forward_s + scores_s, backward_s=2.5 * profile.attention_backward * forward_s + 2 * scores_s)


def attention_bytes(shape: Shape, cut: Cut) -> Numbers:
    """Of a forward pass with flash attention: queries and the output of a rank's tokens, keys and values of all that it sees."""
    heads, kv_heads = shape.num_heads / cut.tp, np.maximum(shape.num_kv_heads / cut.tp, 1.0)
    return cut.value_bytes * (cut.tokens * heads + cut.tokens * cut.cp * kv_heads) * (shape.query_dim + shape.value_dim)


def feed_forward(shape: Shape, cut: Cut, gemm: Gemms, width: Numbers) -> Pass:
    """The dense feed-forward of a given width."""
    return gemm(cut.tokens, shape.ffn_inputs * width / cut.tp, shape.model_dim) + gemm(cut.tokens, shape.model_dim, width / cut.tp)


def experts(shape: Shape, cut: Cut, gemm: Gemms, profile: Profile) -> Pass:
    """Routed experts: ``num_experts / ep`` products on a rank, over the tokens that the ep group sends to each."""
    local = np.maximum(shape.num_experts, 1.0) / cut.ep
    tokens = cut.tokens / cut.tp * shape.num_experts_per_token / local
    width = np.maximum(shape.expert_dim, 1.0)
    routed = gemm(tokens, shape.ffn_inputs * width, shape.model_dim, local) + gemm(tokens, shape.model_dim, width, local)
    return routed * profile.expert_imbalance + gemm(cut.tokens / cut.tp, shape.num_experts, shape.model_dim)


def elementwise(width: Numbers, tokens: Numbers, cut: Cut, device: Device, passes: Numbers) -> Pass:
    """Norms, activations, residuals: so many passes over ``width`` values of each token; the backward pass takes two."""
    once_s = passes * tokens * width * cut.value_bytes / device.memory_bytes_per_s
    return Pass(forward_s=once_s, backward_s=2 * once_s)


def attention_width(shape: Shape, cut: Cut) -> Numbers:
    heads = 2 * shape.num_heads * shape.query_dim + 2 * np.maximum(shape.num_kv_heads, cut.tp) * shape.head_dim
    return (8 * shape.model_dim + heads) / cut.tp


def expert_width(shape: Shape) -> Numbers:
    """Of one token at all its experts: gate, up and product in each, and four copies of the token on the way there and back."""
    each = (shape.ffn_inputs + 1) * shape.expert_dim + 4 * shape.model_dim
    return shape.num_experts_per_token * each + (shape.ffn_inputs + 1) * shape.shared_dim


def tensor_parallel(shape: Shape, cut: Cut, device: Device, *, is_moe: bool) -> Pass:
    """Sequence-parallel tp (Korthikanti et al. 2022): gather and scatter the tokens around attention and around the feed-forward.

    The backward pass gathers one input again. Experts replace the feed-forward's half by their own all-to-all.
    """
    one_s = gather_s(device, cut.tokens * shape.model_dim * cut.value_bytes, cut.tp, np.ones_like(cut.tp)) * (0.5 if is_moe else 1.0)
    return Pass(forward_s=4 * one_s, backward_s=5 * one_s)


def expert_parallel(shape: Shape, cut: Cut, device: Device) -> Pass:
    """Tokens travel to their experts and back: two all-to-alls a pass.

    Node-limited routing (DeepSeek-V3, arXiv 2412.19437, 2.1.2 and 3.2.2): a token's experts lie in few groups, a group in one domain
    where there are no more domains than groups, and one copy for each domain crosses the network.
    """
    num_bytes = cut.tokens / cut.tp * shape.num_experts_per_token * shape.model_dim * cut.value_bytes
    domains = np.maximum(cut.ep / device.domain_chips, 1.0)
    most = shape.num_groups_per_token * np.maximum(domains / np.maximum(shape.num_expert_groups, 1.0), 1.0)
    kept = np.where(shape.num_expert_groups > 0, np.minimum(most / np.maximum(shape.num_experts_per_token, 1.0), 1.0), 1.0)
    once_s = 2 * all_to_all_s(device, num_bytes, cut.ep, np.ones_like(cut.ep), kept)
    return Pass(forward_s=once_s, backward_s=once_s)

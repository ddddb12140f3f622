"""Time of one step of our own trainer on processors, in parts, from what its kernels were measured to do there.

The closed forms for accelerators (estimate/step.py) count 16-bit programs whose messages hide behind compute. On a processor nothing
overlaps, all is float32 and gloo's messages are few and large (decision 005), so the parts here simply add up.
Ignored: what a mixture's routing moves, and that tp's products are XLA's own and slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from colossus.estimate.parameters import num_feed_forward_matrices, num_parameters, parameters
from colossus.spec.kernels import GangRates
from colossus.spec.layout import FORWARD_FRACTION, RECOMPUTED, Layout, Remat
from colossus.spec.model import ModelCard

_FLOAT_BYTES = 4
# Floats the optimizer reads and writes for each of its parameters: gradient twice (norm, update), weight and two moments in and out.
UPDATE_FLOATS = 8
# The same for a parameter of a stack that is cut into layers, its gradient being stacked again.
SLICE_FLOATS = 4
ATTENTION_PRODUCTS = 7
# What each kind of part is made of, as `colossus calibrate` may scale it.
GROUPS: dict[str, tuple[str, ...]] = {
    "compute": ("gemm", "attention", "head", "recompute", "overhead", "host"),
    "memory": ("elementwise", "optimizer"),
    "communication": ("dp", "fsdp", "tp", "jitter"),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one device does in one microbatch: tokens and sizes after tp's cut; ``turns`` microbatches make a step."""

    card: ModelCard
    layout: Layout
    tokens: float
    sequence_tokens: int
    turns: int

    @classmethod
    def of(cls, card: ModelCard, layout: Layout, num_sequences: int, sequence_tokens: int) -> Work:
        tokens = num_sequences / layout.num_data_shards / layout.num_microbatches * sequence_tokens
        return cls(card=card, layout=layout, tokens=tokens, sequence_tokens=sequence_tokens, turns=layout.num_microbatches)


def local_step(work: Work, rates: GangRates) -> dict[str, float]:
    """Seconds of a step by part; their sum is the step."""
    gemm_s, attention_s = work.turns * _gemm_s(work, rates), work.turns * _attention_s(work, rates)
    elementwise_s = work.turns * (_elementwise_s(work, rates) + _slices_s(work, rates))
    compute = {
        "gemm": gemm_s,
        "attention": attention_s,
        "head": work.turns * _head_s(work, rates),
        "elementwise": elementwise_s,
        "recompute": _recompute_s(work, gemm_s, attention_s, elementwise_s),
        "optimizer": _update_s(work, rates),
    }
    saved = min(0.0, rates.rest_fraction)  # kernels one after the other find in caches what they did not find when timed alone
    parts = {name: seconds * (1 + saved) for name, seconds in compute.items()} | _messages_s(work, rates)
    # What a whole step took longer than its parts in the probe is its noise: profiles of real steps see less than a hundredth beside them (LAB.md, 2026-11-25).
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def product_s(rates: GangRates, m: float, n: float, k: float) -> float:
    slowing = 1 + sum(half / size for half, size in zip(rates.gemm_halves, (m, n, k), strict=True))
    return 2 * m * n * k / rates.gemm_flop_per_s * slowing


def products(card: ModelCard, tokens: float, tp: int) -> Iterator[tuple[float, float, float]]:
    """(tokens, outputs, inputs) of every product of all layers, forward, on one device."""
    d, heads, kv_heads = card.model_dim, card.num_heads / tp, max(card.num_kv_heads / tp, 1)
    for _ in range(card.num_layers):
        yield tokens, heads * card.head_dim, d
        yield tokens, kv_heads * card.head_dim, d
        yield tokens, kv_heads * card.head_dim, d
        yield tokens, d, heads * card.head_dim
        routed = 1 if card.moe is None else card.moe.num_experts
        rows = tokens if card.moe is None else tokens * card.moe.num_experts_per_token / card.moe.num_experts
        width = (card.ffn_dim if card.moe is None else card.moe.expert_dim) / tp
        for _ in range(routed):
            yield from [(rows, width, d)] * (num_feed_forward_matrices(card) - 1)
            yield rows, d, width


def _gemm_s(work: Work, rates: GangRates) -> float:
    """Forward, and both gradients: (m, n)(n, k) and (k, m)(m, n)."""
    sizes = products(work.card, work.tokens, work.layout.tp)
    return sum(product_s(rates, m, n, k) + product_s(rates, m, k, n) + product_s(rates, n, k, m) for m, n, k in sizes)


def attention_flop(tokens: float, sequence_tokens: int, heads: float, head_dim: int, window: int | None = None) -> float:
    """Forward and backward over what the causal mask shows: seven products of 2 head_dim FLOP for each pair."""
    seen = min(window or sequence_tokens, sequence_tokens)
    keys = seen - seen * (seen - 1) / (2 * sequence_tokens)
    return ATTENTION_PRODUCTS * 2 * tokens * keys * heads * head_dim


def _attention_s(work: Work, rates: GangRates) -> float:
    card = work.card
    flop = attention_flop(work.tokens, work.sequence_tokens, card.num_heads / work.layout.tp, card.head_dim, card.sliding_window_tokens)
    length, dim = rates.attention_halves
    return card.num_layers * flop / rates.attention_flop_per_s * (1 + length / work.sequence_tokens + dim / card.head_dim)


def _head_s(work: Work, rates: GangRates) -> float:
    """Logits, loss and both gradients: three products of tokens, model_dim and vocabulary."""
    card = work.card
    flop = 6 * work.tokens * card.model_dim * card.vocab_size / work.layout.tp
    return flop / rates.head_flop_per_s * (1 + rates.head_halves[0] / card.model_dim)


def layer_floats(tokens: float, model_dim: float, rotated: float, ffn_dim: float) -> float:
    """Read and written between a layer's products, forward and backward.

    Two norms (2 and 3 passes each), two residuals (3 each, and their gradients' sums 3 each), rotation of ``rotated`` values of each
    token (2 and 2), SwiGLU (3 and 5).
    """
    return tokens * (2 * 5 * model_dim + 2 * 6 * model_dim + 4 * rotated + 8 * ffn_dim)


def _elementwise_s(work: Work, rates: GangRates) -> float:
    """Of all layers; the gradients of what queries, keys and values, gate and up read are summed (4 and 3 passes). Embedding: 5 passes."""
    card, tp = work.card, work.layout.tp
    rotated = (card.num_heads + card.num_kv_heads) * card.head_dim / tp
    routed = 1 if card.moe is None else card.moe.num_experts_per_token
    ffn = (card.ffn_dim if card.moe is None else card.moe.expert_dim) * routed / tp
    each = layer_floats(work.tokens, card.model_dim, rotated, ffn) + 7 * work.tokens * card.model_dim
    floats = card.num_layers * each + 5 * work.tokens * card.model_dim + card.vocab_size * card.model_dim / tp
    return _FLOAT_BYTES * floats / rates.elementwise_bytes_per_s


def _slices_s(work: Work, rates: GangRates) -> float:
    return _FLOAT_BYTES * SLICE_FLOATS * _layer_parameters(work.card) / work.layout.tp / rates.slices_bytes_per_s


def _update_s(work: Work, rates: GangRates) -> float:
    held = sum(part.on_device(work.layout) for part in parameters(work.card, work.layout.tp))
    return _FLOAT_BYTES * UPDATE_FLOATS * held / rates.update_bytes_per_s


def _recompute_s(work: Work, gemm_s: float, attention_s: float, elementwise_s: float) -> float:
    parts_s = {"gemm": gemm_s, "attention": attention_s, "elementwise": elementwise_s}
    return sum(FORWARD_FRACTION[name] * parts_s[name] for name in RECOMPUTED[work.layout.remat])


def _layer_parameters(card: ModelCard) -> int:
    tables = sum(part.num for part in parameters(card) if part.name in ("embed", "lm_head"))
    return num_parameters(card) - tables


def _messages_s(work: Work, rates: GangRates) -> dict[str, float]:
    """What each mesh axis sends, by gloo: see nn/decoder.py's ``_communicates_at_ends`` for why so few messages."""
    layout, card, turns = work.layout, work.card, work.turns
    layers, table = _layer_parameters(card) / layout.tp, card.vocab_size * card.model_dim / layout.tp
    rows = work.tokens * card.model_dim
    found = {}
    if layout.dp > 1:
        found["dp"] = turns * _reduce_s(rates, layers / layout.fsdp + 2 * table, _NUM_STACKS + 2)
    if layout.fsdp > 1:
        gathers = 1 if layout.remat is Remat.NONE else 2
        moved = _gather_s(rates, gathers * layers + 2 * table + rows, gathers * _NUM_STACKS + 3)
        found["fsdp"] = turns * (moved + _reduce_s(rates, layers + table, _NUM_STACKS + 1))
    if layout.tp > 1:
        times = 4 * card.num_layers + 2
        found["tp"] = turns * (_gather_s(rates, times * rows, times) + _reduce_s(rates, times * rows, times))
    return found


# Arrays that the layers' weights are stacked in: four of attention, three of the feed-forward, two norms.
_NUM_STACKS = 9


def _reduce_s(rates: GangRates, floats: float, num_messages: int) -> float:
    return num_messages * rates.reduce_latency_s + _FLOAT_BYTES * floats / (rates.reduce_bytes_per_s or rates.update_bytes_per_s)


def _gather_s(rates: GangRates, floats: float, num_messages: int) -> float:
    return num_messages * rates.gather_latency_s + _FLOAT_BYTES * floats / (rates.gather_bytes_per_s or rates.update_bytes_per_s)


def scaled(parts_s: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """Parts times the factor of their group; groups without one stay."""
    factor_of = {part: factors.get(group, 1.0) for group, names in GROUPS.items() for part in names}
    return {name: seconds * factor_of.get(name, 1.0) for name, seconds in parts_s.items()}

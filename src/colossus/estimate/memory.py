"""Bytes on one device while a decoder trains, in closed form, by use.

Sizes per element: master weights, gradients and moments 4 (float32); activations and gathered weights s, 4 or 2 by
precision. What a mesh axis cuts is divided by its size: see estimate/parameters.py and the note at each function.
"""

from __future__ import annotations

from math import ceil

from colossus.estimate.parameters import Part, parameters
from colossus.estimate.parameters import num_parameters as num_parameters
from colossus.spec.job import OptimizerKind, Precision
from colossus.spec.layout import Layout, Remat
from colossus.spec.model import ModelCard
from colossus.spec.plan import MemoryEstimate

_MASTER_BYTES = 4
# One chunk of float32 logits, as nn/loss.py cuts them (a test holds the two equal), and how many live at a time: the
# logits, their exponentials, their gradient.
CPU_CHUNK_BYTES, CHUNK_BYTES = 4 * 2**20, 512 * 2**20
_CHUNK_COPIES = 3
# Layers that a CPU's program writes out one after the other (nn/compute.py; a test holds the two equal).
MAX_UNROLLED_LAYERS = 12
# What plain attention keeps of each score for its backward pass: exponentials, probabilities and the mask, in float32's
# measure. Read off XLA's own account of the real step (tests/estimate/test_memory.py).
_SCORE_COPIES = 2.5
# Blocks of queries that plain attention makes of a sequence, at most, and their least size (nn/attention.py).
_MAX_BLOCKS, _MIN_BLOCK = 16, 128


def train_memory(
    card: ModelCard,
    layout: Layout,
    *,
    num_sequences: int,
    sequence_tokens: int,
    precision: Precision = Precision.FLOAT32,
    optimizer: OptimizerKind = OptimizerKind.ADAMW,
    platform: str = "cpu",
    fused: bool = False,
) -> MemoryEstimate:
    """Bytes on one device at the step's peak; ``num_sequences`` is the global batch of an optimizer step.

    ``fused``: attention is known to run in a kernel that keeps no scores.

    Ignored: the program itself, its constants, communication buffers and the allocator's fragments.
    """
    parts = parameters(card, layout.tp)
    held = sum(part.on_device(layout) for part in parts)
    tokens = ceil(num_sequences / (layout.num_data_shards * layout.num_microbatches)) * sequence_tokens
    size = 4 if precision is Precision.FLOAT32 else 2
    sets = 1 if layout.num_microbatches == 1 else 2  # the sum over microbatches, and the one being added
    return MemoryEstimate(
        weights_bytes=round(_MASTER_BYTES * held),
        copies_bytes=round(_gathered_bytes(card, layout, size) + _copied_layers_bytes(card, layout, platform)),
        gradients_bytes=round(_MASTER_BYTES * held * sets),
        optimizer_bytes=round(sum(_MASTER_BYTES * part.on_device(layout) * num_moments(part, optimizer) for part in parts)),
        activations_bytes=round(_activations_bytes(card, layout, tokens, sequence_tokens, size, fused or (platform == "gpu" and size == 2))),
        logits_bytes=round(_logits_bytes(card, layout, tokens, size, platform)),
    )


def state_bytes(card: ModelCard, layout: Layout, optimizer: OptimizerKind) -> float:
    """What a device's part of the saved state takes: weights and moments."""
    return sum(_MASTER_BYTES * part.on_device(layout) * (1 + num_moments(part, optimizer)) for part in parameters(card, layout.tp))


def num_moments(part: Part, optimizer: OptimizerKind) -> int:
    """AdamW keeps two moments of every parameter, Muon one of each matrix and AdamW's two of the rest."""
    return 1 if optimizer is OptimizerKind.MUON and part.is_matrix else 2


def program_memory(param_bytes: int, layout: Layout) -> MemoryEstimate:
    """A network known only by its parameters: AdamW's state cut evenly over fsdp; activations unknown, said as none."""
    held = ceil(param_bytes / layout.fsdp)
    return MemoryEstimate(weights_bytes=held, gradients_bytes=held, optimizer_bytes=2 * held, activations_bytes=0, logits_bytes=0)


def _gathered_bytes(card: ModelCard, layout: Layout, size: int) -> float:
    """Weights as they are used: two layers' (one in use, one on its way) in the compute dtype, whole over fsdp.

    Nothing where the master itself is used: float32 and no fsdp.
    """
    if layout.fsdp == 1 and size == _MASTER_BYTES:
        return 0.0
    stacked = sum(part.num for part in parameters(card) if part.name not in ("embed", "lm_head"))
    return size * (2 * stacked / card.num_layers + card.vocab_size * card.model_dim) / layout.tp


def _copied_layers_bytes(card: ModelCard, layout: Layout, platform: str) -> float:
    """On a CPU: all layers once more, as slices of the stacked weights where they are unrolled, or gathered at once over fsdp.

    The whole gradients take the same place later in the step (see nn/decoder.py).
    """
    at_once = layout.fsdp > 1 and layout.tp == 1 and card.moe is None
    if platform != "cpu" or layout.remat is not Remat.NONE or not (at_once or card.num_layers <= MAX_UNROLLED_LAYERS):
        return 0.0
    return _MASTER_BYTES * sum(part.num for part in parameters(card) if part.name not in ("embed", "lm_head")) / layout.tp


def _activations_bytes(card: ModelCard, layout: Layout, tokens: int, sequence_tokens: int, size: int, fused: bool) -> float:
    """What the layers keep for the backward pass, and one layer's working set, of ``tokens`` tokens on this device."""
    scores = 0.0 if fused else _scores_bytes_per_token(card, layout, sequence_tokens)
    width = _elements_per_token(card, layout)
    inputs = width["residual"]
    named = inputs + width["projections"] + width["attention"] + width["feed_forward"]
    everything = named + width["elementwise"]
    kept = {Remat.NONE: size * everything + _SCORE_COPIES * scores, Remat.SELECTIVE: size * named, Remat.FULL: size * inputs}[layout.remat]
    # The layer that the backward pass is in: its recomputed values and their gradients, scores of one block at a time.
    working = size * 2 * everything + 2 * scores / (1 if layout.remat is Remat.NONE else _num_blocks(sequence_tokens))
    return tokens * (card.num_layers * kept + working)


def _elements_per_token(card: ModelCard, layout: Layout) -> dict[str, float]:
    """Elements a token leaves in one layer, by remat's names for them.

    residual: the layer's input, cut by tp along the sequence (sequence parallelism, Korthikanti et al. 2022). projections:
    queries, keys, values and the attention's projection. feed_forward: gate and up (with experts also down, and k of each).
    elementwise: what a plain backward pass keeps besides: two norms' outputs, rotated queries and keys, and silu's
    sigmoid, silu itself and its product.
    """
    d, k = card.model_dim, card.head_dim
    kv_heads = card.num_kv_heads / layout.tp if card.num_kv_heads % layout.tp == 0 else 1
    heads = card.num_heads / layout.tp
    experts = 1 if card.moe is None else card.moe.num_experts_per_token
    ffn = (card.ffn_dim if card.moe is None else card.moe.expert_dim) * experts / layout.tp
    return {
        "residual": d / layout.tp,
        "projections": (heads + 2 * kv_heads) * k + d / layout.tp,
        "attention": heads * k,
        "feed_forward": 2 * ffn + (d * experts if card.moe else 0),
        "elementwise": 3 * d / layout.tp + (heads + kv_heads) * k + 3 * ffn + (2 * d * experts if card.moe else 0),
    }


def _scores_bytes_per_token(card: ModelCard, layout: Layout, sequence_tokens: int) -> float:
    """Float32 probabilities that plain attention keeps of a token in one layer: heads x keys its block can reach.

    Kernels (cuDNN on GPUs, ours on CPUs where it is built) keep none; where that is not certain they are counted.
    """
    blocks = _num_blocks(sequence_tokens)
    keys = sequence_tokens * (blocks + 1) / (2 * blocks)
    window = card.sliding_window_tokens
    return 4 * card.num_heads / layout.tp * (keys if window is None else min(keys, window + sequence_tokens / blocks))


def _num_blocks(sequence_tokens: int) -> int:
    return max(1, min(_MAX_BLOCKS, sequence_tokens // _MIN_BLOCK))


def _logits_bytes(card: ModelCard, layout: Layout, tokens: int, size: int, platform: str) -> float:
    """The head's: chunks of logits, the gathered kernel, its float32 gradient (whole over fsdp until the end), and d_x."""
    width = card.vocab_size / layout.tp
    chunk = min(tokens * width * 4, CPU_CHUNK_BYTES if platform == "cpu" else CHUNK_BYTES)
    kernel = card.model_dim * width
    copies = 0 if layout.fsdp == 1 and size == _MASTER_BYTES and not card.tie_embeddings else size
    return _CHUNK_COPIES * chunk + kernel * (copies + _MASTER_BYTES) + 2 * tokens * card.model_dim * size

"""What the trainer's own step does on one device, in closed form: its products, and the bytes it sends over each mesh axis.

Payload as ``spec.program.Collective`` counts it: the whole of a gathered array, and the whole of what is summed, cut or not.
Left out: scalars, the norms' gains' sums over tp, and what fewer key/value heads than tp cost.
"""

from __future__ import annotations

from math import ceil

from colossus.estimate.flop import train_flop
from colossus.estimate.parameters import parameters
from colossus.spec.job import Precision
from colossus.spec.layout import Layout, Remat
from colossus.spec.model import ModelCard

_FLOAT32_BYTES = 4
# Blocks of queries that plain attention makes of a sequence (nn/attention.py; a test holds the two equal).
MAX_BLOCKS, MIN_BLOCK = 16, 128


def step_flop(card: ModelCard, layout: Layout, num_sequences: int, sequence_tokens: int) -> float:
    """FLOP of a step on one device, recomputing included, with attention in its plain form."""
    keys = block_keys(sequence_tokens, card.sliding_window_tokens)
    return train_flop(card, num_sequences, sequence_tokens, layout.remat, attended_keys=keys, tp=layout.tp).total_flop / layout.num_devices


def block_keys(sequence_tokens: int, window: int | None = None) -> float:
    """Keys that plain attention multiplies a query with, on average: all that the mask lets any query of its block see."""
    size = max(MIN_BLOCK, ceil(sequence_tokens / MAX_BLOCKS))
    starts = range(0, sequence_tokens, size)
    ends = [min(start + size, sequence_tokens) for start in starts]
    return sum((end - start) * (end - (0 if window is None else max(0, start - window + 1))) for start, end in zip(starts, ends, strict=True)) / sequence_tokens


def step_traffic(
    card: ModelCard,
    layout: Layout,
    num_sequences: int,
    sequence_tokens: int,
    precision: Precision,
    *,
    adds_before_sending: bool = True,
    scatters_embedding: bool = False,
) -> dict[str, float]:
    """Payload of one optimizer step on one device, by mesh axes; only those that carry anything.

    ``adds_before_sending``: compilers for accelerators add the gradients of what one input was multiplied with (queries, keys and
    values; gate and up) before they send them; the CPU's sends each. ``scatters_embedding``: a GPU's compiler scatters the
    embedding's gradient over fsdp and sums the parts over dp, where tp does not cut the table; others sum the whole over both.
    """
    size = 2 if precision is Precision.BFLOAT16 else _FLOAT32_BYTES
    tokens = num_sequences * sequence_tokens / layout.num_data_shards
    turns = layout.num_microbatches
    bytes_over = {
        "dp": turns * (_layers(card, layout) * size + _table(card, layout) * _FLOAT32_BYTES) / layout.fsdp,
        "fsdp": turns * _weights_bytes(card, layout, size),
        "tp": _activations_bytes(card, layout, tokens, size, adds_before_sending),
    }
    found = {axis: num_bytes for axis, num_bytes in bytes_over.items() if getattr(layout, axis) > 1}
    if together := "+".join(axis for axis in ("dp", "fsdp") if axis in found):
        rows_alone = layout.dp == layout.tp == 1
        if scatters_embedding and layout.tp == 1 and layout.dp > 1 and layout.fsdp > 1:
            table = turns * size * _table(card, layout)
            return found | {"dp": found["dp"] + table / layout.fsdp, "fsdp": found["fsdp"] + table}
        found[together] = found.get(together, 0.0) + size * (tokens * card.model_dim if rows_alone else turns * _table(card, layout))
    return found


def _layers(card: ModelCard, layout: Layout) -> float:
    """Numbers in all layers' weights, a tp rank's part, whole over fsdp."""
    inner = (part for part in parameters(card, layout.tp) if part.name not in ("embed", "lm_head"))
    return sum(part.num / (layout.tp if part.cut_by_tp else 1) for part in inner)


def _table(card: ModelCard, layout: Layout) -> float:
    return card.vocab_size * card.model_dim / layout.tp


def _weights_bytes(card: ModelCard, layout: Layout, size: int) -> float:
    """A layer's weights are gathered forward, with remat backward too, and their gradients scattered; the tables are gathered once.

    The head's gradient is scattered in float32 (nn/loss.py). The embedding's is summed over dp and fsdp in one message;
    under fsdp alone the gradients of the tokens' rows are exchanged instead.
    """
    gathers = 1 if layout.remat is Remat.NONE else 2
    return (gathers + 1) * _layers(card, layout) * size + _table(card, layout) * (2 * size + _FLOAT32_BYTES)


def _activations_bytes(card: ModelCard, layout: Layout, tokens: float, size: int, adds_before_sending: bool) -> float:
    """Sequence parallelism (Korthikanti et al. 2022): a layer gathers twice and scatters twice, forward and backward.

    With remat the backward pass gathers both inputs again, and with full remat scatters attention's output again. Embedding
    and head take a pair each; the loss sums three numbers a token.
    """
    again = {Remat.NONE: 0, Remat.SELECTIVE: 2, Remat.FULL: 3}[layout.remat]
    layer, ends = (8 + again, 4) if adds_before_sending else (11 + again, 5)
    return tokens * (card.model_dim * size * (card.num_layers * layer + ends) + 3 * _FLOAT32_BYTES)

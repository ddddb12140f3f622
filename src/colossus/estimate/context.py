"""Attention under context parallelism: how long its kernels are, and what passing keys and values costs.

Three kinds. Ring (Liu et al. 2023, arXiv 2310.01889): blocks of keys and values pass all ranks while attention runs; each rank
has two of ``2 cp`` blocks, an early and a late one, so that causal work is even (zigzag). All-gather (Llama 3, 2407.21783,
3.3.2): keys and values are gathered first, attention then runs in two kernels. Ulysses (2309.14509): an all-to-all gives each
rank all tokens of some heads, and another brings the output back. Ignored: rings and Ulysses mixed; masks of documents.
"""

from __future__ import annotations

import numpy as np

from colossus.estimate.collectives import all_to_all_s, gather_s, latency_s
from colossus.estimate.passes import Pass
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Numbers, Shape
from colossus.spec.layout import CpKind

# Partial outputs are merged in float32: two are read, one is written.
_MERGE_BYTES = 3 * 4
_ALL_GATHER, _ULYSSES = (list(CpKind).index(kind) for kind in (CpKind.ALL_GATHER, CpKind.ULYSSES))


def kernel_tokens(cut: Cut) -> Numbers:
    """Tokens along which one attention kernel runs: a zigzag block in a ring; of gathered keys its harmonic mean with the sequence."""
    block = np.where((cut.cp > 1) & (cut.cp_kind != _ULYSSES), cut.sequence_tokens / (2 * cut.cp), cut.sequence_tokens)
    return np.where(cut.cp_kind == _ALL_GATHER, 2 / (1 / block + 1 / cut.sequence_tokens), block)


def context_parallel(shape: Shape, cut: Cut, device: Device, profile: Profile, core: Pass) -> Pass:
    """What cp adds to a layer's attention ``core``."""
    kinds = [_ring(shape, cut, device, profile, core), _all_gather(shape, cut, device), _ulysses(shape, cut, device)]
    pick = lambda name: np.where(cut.cp > 1, np.choose(np.asarray(cut.cp_kind, int), np.broadcast_arrays(*(getattr(kind, name) for kind in kinds))), 0.0)
    return Pass(forward_s=pick("forward_s"), backward_s=pick("backward_s"))


def key_value_width(shape: Shape, cut: Cut) -> Numbers:
    """Values of a token's keys and values on all tp ranks together; more tp than key/value heads copies them."""
    return np.where(shape.is_latent, shape.num_heads * (shape.query_dim + shape.value_dim), 2 * np.maximum(shape.num_kv_heads, cut.tp) * shape.head_dim)


def gathered_bytes(shape: Shape, cut: Cut) -> Numbers:
    """What the all-gather kind holds while a layer runs: keys, values and their gradients of the whole sequence."""
    whole = 2 * cut.tokens * cut.cp * key_value_width(shape, cut) / cut.tp * cut.value_bytes
    return np.where((cut.cp > 1) & (cut.cp_kind == _ALL_GATHER), whole, 0.0)


def _ring(shape: Shape, cut: Cut, device: Device, profile: Profile, core: Pass) -> Pass:
    """``cp`` steps: what attention does not cover of the messages, the launches of each step's kernels, and merging its output."""
    num_bytes = cut.tokens * cut.cp * key_value_width(shape, cut) / cut.tp * cut.value_bytes
    ring_s = gather_s(device, num_bytes, cut.cp, cut.tp) + np.maximum(cut.cp - 2, 0.0) * latency_s(device, cut.cp, cut.tp)
    merge_s = (cut.cp - 1) * cut.tokens * shape.num_heads * shape.value_dim / cut.tp * _MERGE_BYTES / device.memory_bytes_per_s
    steps_s = cut.cp * profile.cp_step_s + merge_s
    return Pass(
        forward_s=steps_s + np.maximum(ring_s - profile.cp_cover * core.forward_s, profile.cp_uncovered * ring_s),
        backward_s=2 * steps_s + np.maximum(2 * ring_s - profile.cp_cover * core.backward_s, 2 * profile.cp_uncovered * ring_s),
    )


def _all_gather(shape: Shape, cut: Cut, device: Device) -> Pass:
    """Keys and values are gathered before attention, and again before its backward pass, whose gradients are scattered: nothing covers it."""
    once_s = gather_s(device, cut.tokens * cut.cp * key_value_width(shape, cut) / cut.tp * cut.value_bytes, cut.cp, cut.tp)
    return Pass(forward_s=once_s, backward_s=2 * once_s)


def _ulysses(shape: Shape, cut: Cut, device: Device) -> Pass:
    """Queries, keys and values to heads, the output back; the same for gradients. Fewer key/value heads than ranks are copied."""
    heads = shape.num_heads * (shape.query_dim + shape.value_dim)
    copies = np.maximum(1.0, cut.tp * cut.cp / np.maximum(shape.num_kv_heads, cut.tp))
    width = heads + key_value_width(shape, cut) * np.where(shape.is_latent, 1.0, copies)
    once_s = all_to_all_s(device, cut.tokens * width / cut.tp * cut.value_bytes, cut.cp, cut.tp)
    return Pass(forward_s=once_s, backward_s=once_s)

"""The roofline of a layout: what each kind of operation does to each byte of the chip's memory, and how fast.

The same lists of products that ``estimate.layer`` times are counted here: as FLOP, and as bytes with every operand read and
every result written once. Norms and activations count one FLOP for each 16-bit value that passes the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from colossus.estimate import layer
from colossus.estimate.layer import Gemms, Pass
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Numbers, Shape
from colossus.estimate.step import StepParts
from colossus.plan.search import Candidates, Question
from colossus.report.roofline import Kind, Roofline

_WIDE_BYTES = 2
# Bytes of a product's operands; results are 16 bits wide.
_OPERAND_BYTES = {"float32": 4.0, "float8": 1.0, "mxfp8": 1.0, "nvfp4": 0.5}
_PEAKS = {"mxfp8": "float8", "nvfp4": "float4"}
_BACKWARD = 2.5  # attention's backward FLOP over forward's (Dao 2023)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """FLOP, bytes and seconds of one microbatch in one layer, forward and backward, and how many layers do it."""

    name: str
    num_flop: float
    num_bytes: float
    duration_s: float
    num_layers: float = 1.0
    is_wide: bool = False  # computes in 16 bits in every precision


def roofline(question: Question, candidates: Candidates, index: int) -> Roofline:
    """Of one layout; kinds that take no time are left out."""
    cut, parts, _ = candidates.at(index)
    rounds = cut.num_microbatches / cut.pp
    step_s, (narrow, wide) = float(candidates.step_s[index]), _peaks(question)
    kinds = [
        Kind(
            name=work.name,
            flop_per_byte=work.num_flop / work.num_bytes,
            flop_per_s=work.num_flop / work.duration_s,
            peak_flop_per_s=(wide if work.is_wide else narrow)[1],
            step_fraction=min(1.0, rounds * work.num_layers * work.duration_s / step_s),
        )
        for work in works(question, cut, parts)
        if work.duration_s > 0 and work.num_flop > 0
    ]
    peaks = sorted({narrow, wide}, key=lambda peak: peak[1])
    return Roofline(memory_bytes_per_s=_scaled(question, "chip.memory_bandwidth", _bandwidth(question)), peak_flop_per_s=peaks, kinds=kinds)


def works(question: Question, cut: Cut, parts: StepParts) -> Iterator[_Work]:
    """Every kind of operation of a step."""
    shape, device, profile = Shape.of(question.card), question.device, question.profile
    clock = Gemms(device=device, profile=profile, cut=cut)
    even = replace(profile, expert_imbalance=1.0)  # the fullest expert takes the time, the mean one is the work
    operand_bytes = _OPERAND_BYTES.get(question.precision, float(_WIDE_BYTES))
    lists = [("attention's projections", lambda gemm: layer.attention_projections(shape, cut, gemm), shape.num_layers)]
    if shape.num_dense_layers:
        lists.append(("feed-forward", lambda gemm: layer.feed_forward(shape, cut, gemm, shape.ffn_dim), shape.num_dense_layers))
    if shape.num_moe_layers:
        lists.append(("experts", lambda gemm: _experts(shape, cut, gemm, profile if gemm is clock else even), shape.num_moe_layers))
    for name, products, num_layers in lists:
        counted, moved, timed = products(_flop), products(_Traffic(operand_bytes)), products(clock)
        yield _Work(name=name, num_flop=float(counted.both_s), num_bytes=float(moved.both_s), duration_s=float(timed.both_s), num_layers=num_layers)
    yield _attention(shape, cut, float(layer.attention_core(shape, cut, device, profile).both_s))
    rounds = cut.num_microbatches / cut.pp
    passed_s = parts.elementwise_s / rounds / shape.num_layers
    passed_bytes = passed_s * device.memory_bytes_per_s
    yield _Work(name="norms and activations", num_flop=passed_bytes / _WIDE_BYTES, num_bytes=passed_bytes, duration_s=passed_s, num_layers=shape.num_layers)
    if cut.pp == 1:  # in a pipeline the head's part is only what the other stages wait for
        yield _head(shape, cut, parts.head_s / cut.num_microbatches)


def _experts(shape: Shape, cut: Cut, gemm: Any, profile: Profile) -> Pass:
    """Routed and shared."""
    routed = layer.experts(shape, cut, gemm, profile)
    return routed + layer.feed_forward(shape, cut, gemm, shape.shared_dim) if shape.shared_dim else routed


def _flop(m: Numbers, n: Numbers, k: Numbers, count: Numbers = 1.0) -> Pass:
    return Pass(forward_s=2 * count * m * n * k, backward_s=4 * count * m * n * k)


@dataclass(frozen=True)
class _Traffic:
    operand_bytes: float

    def __call__(self, m: Numbers, n: Numbers, k: Numbers, count: Numbers = 1.0) -> Pass:
        one = lambda a, b, c: count * (self.operand_bytes * (a * c + c * b) + _WIDE_BYTES * a * b)
        return Pass(forward_s=one(m, n, k), backward_s=one(m, k, n) + one(k, n, m))


def _attention(shape: Shape, cut: Cut, duration_s: float) -> _Work:
    """Flash attention reads queries, keys and values and writes its output; the backward pass does it as often as it multiplies more."""
    flop = 2 * cut.tokens * float(layer.mean_keys(shape, cut)) * shape.num_heads / cut.tp * (shape.query_dim + shape.value_dim)
    moved = float(layer.attention_bytes(shape, cut))
    times = 1 + _BACKWARD
    return _Work(name="attention", num_flop=times * flop, num_bytes=times * moved, duration_s=duration_s, num_layers=shape.num_layers, is_wide=True)


def _head(shape: Shape, cut: Cut, duration_s: float) -> _Work:
    """Logits and both gradients, operands and results in 16 bits."""
    counted = _flop(cut.tokens, shape.vocab_size / cut.tp, shape.model_dim)
    moved = _Traffic(_WIDE_BYTES)(cut.tokens, shape.vocab_size / cut.tp, shape.model_dim)
    return _Work(name="vocabulary head and loss", num_flop=counted.both_s, num_bytes=moved.both_s, duration_s=duration_s, is_wide=True)


def _bandwidth(question: Question) -> float:
    figure = question.machine.node.chip.memory_bandwidth_bytes_per_s
    return figure.value if figure else question.device.memory_bytes_per_s


def _peaks(question: Question) -> tuple[tuple[str, float], tuple[str, float]]:
    """The peak of the precision, and the 16-bit one in which attention and head compute, each with its name."""
    peaks = question.machine.node.chip.peak_flop_per_s
    own = _PEAKS.get(question.precision, question.precision)
    wide = next(name for name in ("bfloat16", "float16", own, *peaks) if name in peaks)
    narrow = own if own in peaks else wide
    return (narrow, _scaled(question, "chip.peak", peaks[narrow].value)), (wide, _scaled(question, "chip.peak", peaks[wide].value))


def _scaled(question: Question, figure: str, value: float) -> float:
    return value * prod(change.factor for change in question.changes if change.figure == figure)

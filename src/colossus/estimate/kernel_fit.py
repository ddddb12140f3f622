"""From timings of the trainer's kernels to the few rates that price a step: non-negative least squares of relative errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from colossus.estimate.local import SLICE_FLOATS, UPDATE_FLOATS, Work, attention_flop, layer_floats, local_step
from colossus.spec.kernels import GangRates, Probe, Timing
from colossus.spec.layout import Layout

_FLOAT_BYTES = 4
# No step saves more of its kernels' time than this; a figure below it is a disturbed measurement.
_LEAST_REST = -0.5


def rates_of(probe: Probe) -> GangRates:
    """The curves through all shapes, and what a whole step takes beside its parts and varies by.

    The latter round by round, each against the rates of its own round: a neighbour's load falls on both.
    """
    rounds = [[one.of_round(number) for one in probe.timings if one.kind != "compile"] for number in range(probe.num_rounds)]
    steps = [one for one in probe.timings if one.kind == "step"]
    lower, upper = np.percentile([seconds / step.median_s for step in steps for seconds in step.repeats_s] or [1.0], [5, 95])
    rests = [rest for timings in rounds for rest in _rests(probe, timings, _curves(probe.num_workers, timings))]
    update = {
        "rest_fraction": max(_LEAST_REST, float(np.median(rests))) if rests else 0.0,
        "compile_s": next((one.median_s for one in probe.timings if one.kind == "compile"), None),
        "lower_fraction": float(lower),
        "upper_fraction": float(upper),
    }
    return _curves(probe.num_workers, probe.timings).model_copy(update=update)


def _curves(num_workers: int, timings: Sequence[Timing]) -> GangRates:
    by_kind: dict[str, list[Timing]] = {}
    for timing in timings:
        by_kind.setdefault(timing.kind, []).append(timing)
    errors: list[float] = []
    products, attentions, heads = by_kind["product"], by_kind["attention"], by_kind["head"]
    gemm = _curve(products, [2.0 * np.prod(one.sizes) for one in products], [one.sizes for one in products], errors)
    attention = _curve(attentions, [_attention_flop(one) for one in attentions], [(one.sizes[1], one.sizes[3]) for one in attentions], errors)
    head = _curve(heads, [6.0 * np.prod(one.sizes) for one in heads], [one.sizes[1:2] for one in heads], errors)
    messages = {kind: _line(by_kind[kind]) for kind in ("reduce", "gather") if kind in by_kind}
    reduce, gather = messages.get("reduce", (None, 0.0)), messages.get("gather", (None, 0.0))
    return GangRates(
        num_workers=num_workers,
        gemm_flop_per_s=gemm[0],
        gemm_halves=(gemm[1], gemm[2], gemm[3]),
        attention_flop_per_s=attention[0],
        attention_halves=(attention[1], attention[2]),
        head_flop_per_s=head[0],
        head_halves=(head[1],),
        elementwise_bytes_per_s=_rate((layer_floats(one.sizes[0], one.sizes[1], 2 * one.sizes[1], one.sizes[2]), one) for one in by_kind["elementwise"]),
        slices_bytes_per_s=_rate((SLICE_FLOATS * one.sizes[0], one) for one in by_kind["slices"]),
        update_bytes_per_s=_rate((UPDATE_FLOATS * one.sizes[0], one) for one in by_kind["update"]),
        reduce_bytes_per_s=reduce[0],
        reduce_latency_s=reduce[1],
        gather_bytes_per_s=gather[0],
        gather_latency_s=gather[1],
        lower_fraction=1.0,
        upper_fraction=1.0,
        residual_fraction=float(np.median(np.abs(errors))),
    )


def _rests(probe: Probe, timings: Sequence[Timing], rates: GangRates) -> Iterator[float]:
    """Of each timed step, (measured less the sum of parts) over the parts of compute."""
    for step in timings:
        if step.kind == "step":
            layout = Layout.from_data({step.variant: probe.num_workers}, origin="probe")
            parts = local_step(Work.of(probe.step_card, layout, *step.sizes), rates)
            compute_s = sum(seconds for name, seconds in parts.items() if name not in ("dp", "fsdp"))
            yield (step.median_s - sum(parts.values())) / compute_s


def _attention_flop(timing: Timing) -> float:
    sequences, length, heads, dim = timing.sizes
    return attention_flop(sequences * length, length, heads, dim)


def _curve(timings: Sequence[Timing], flop: Sequence[float], sizes: Sequence[Sequence[int]], errors: list[float]) -> list[float]:
    """Rate and halves of ``flop / rate (1 + half_1 / size_1 + ...)``; adds the relative errors to ``errors``."""
    columns = np.column_stack([np.ones(len(sizes)), *[1 / np.array(column, float) for column in zip(*sizes, strict=True)]])
    found = _solve(columns * np.array(flop, float)[:, None], timings, errors)
    return [1 / found[0], *(found[1:] / found[0])]


def _line(timings: Sequence[Timing]) -> tuple[float, float]:
    """Rate and latency of messages."""
    found = _solve(np.array([[one.sizes[0], 1.0] for one in timings]), timings, [])
    return 1 / found[0], float(found[1])


def _solve(terms: np.ndarray, timings: Sequence[Timing], errors: list[float]) -> np.ndarray:
    """Seconds of each term, none below zero; the first, which all else is counted in, stays above it."""
    from scipy.optimize import nnls

    measured_s = np.array([one.median_s for one in timings])
    found, _ = nnls(terms / measured_s[:, None], np.ones(len(timings)))
    if not found[0]:
        found = np.zeros(terms.shape[1])
        found[0] = np.median(measured_s / terms[:, 0])
    errors.extend(terms @ found / measured_s - 1)
    return found


def _rate(counted: Iterable[tuple[float, Timing]]) -> float:
    """Bytes per second over all of them together."""
    pairs = list(counted)
    return float(np.median([_FLOAT_BYTES * floats / one.median_s for floats, one in pairs]))

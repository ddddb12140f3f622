"""From samples to figures, by the definitions of ``spec.load``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from colossus.serve.load.sample import Sample
from colossus.spec.load import ClientCost, Latency, LoadPoint, Objectives

_MOST_STEPS = 300  # of the picture of requests in flight


def latency(values_s: Sequence[float]) -> Latency | None:
    """None of no values."""
    if not values_s:
        return None
    curve = np.percentile(np.asarray(values_s), np.arange(101))
    named: dict[str, Any] = {f"p{share}_s": round(float(curve[share]), 6) for share in (50, 90, 95, 99)}
    return Latency(
        num_values=len(values_s),
        mean_s=round(float(np.mean(values_s)), 6),
        max_s=round(float(curve[100]), 6),
        curve_s=tuple(round(float(value), 6) for value in curve),
        **named,
    )


def is_good(sample: Sample, objectives: Objectives) -> bool:
    """Answered, and within every objective; one token alone has no TPOT to miss."""
    if sample.error is not None:
        return False
    pairs = ((sample.ttft_s, objectives.ttft_s), (sample.tpot_s, objectives.tpot_s), (sample.e2e_s, objectives.e2e_s))
    return all(most is None or value is None or value <= most for value, most in pairs)


def in_flight(samples: Sequence[Sample]) -> tuple[tuple[float, int], ...]:
    """How many requests were on their way at which time."""
    changes = sorted([(sample.arrival_s, 1) for sample in samples] + [(sample.end_s, -1) for sample in samples])
    steps: list[tuple[float, int]] = []
    number = 0
    for at_s, change in changes:
        number += change
        steps.append((round(at_s, 4), number))
    every = -(-len(steps) // _MOST_STEPS)
    return tuple(steps[::every] + (steps[-1:] if every > 1 and steps else []))


def load_point(samples: Sequence[Sample], objectives: Objectives, *, load: dict[str, Any], num_warmup_requests: int, client: ClientCost) -> LoadPoint:
    """All figures of one load; ``load`` holds ``label`` and ``num_clients`` or ``offered_requests_per_s``."""
    done = [sample for sample in samples if sample.error is None]
    begin_s, end_s = min((sample.arrival_s for sample in samples), default=0.0), max((sample.end_s for sample in samples), default=0.0)
    wall_s = max(end_s - begin_s, 1e-9)
    tokens, events = sum(sample.tokens for sample in done), sum(len(sample.texts_s) for sample in done)
    prompt_tokens = sum(sample.num_prompt_tokens or sample.ask.prompt_tokens for sample in done)
    wanted = objectives != Objectives()
    num_good = sum(is_good(sample, objectives) for sample in done) if wanted else None
    return LoadPoint(
        **load,
        num_requests=len(samples),
        num_warmup_requests=num_warmup_requests,
        num_completed=len(done),
        num_good=num_good,
        errors=dict(Counter(sample.error for sample in samples if sample.error is not None)),
        wall_s=wall_s,
        num_prompt_tokens=prompt_tokens,
        num_cached_tokens=sum(sample.num_cached_tokens for sample in done),
        num_output_tokens=tokens,
        num_short_answers=sum(sample.tokens < sample.ask.output_tokens for sample in done),
        num_events_per_token=events / tokens if tokens else None,
        counted_by="usage" if all(sample.num_output_tokens is not None for sample in done) else "events",
        requests_per_s=len(done) / wall_s,
        output_tokens_per_s=tokens / wall_s,
        prompt_tokens_per_s=prompt_tokens / wall_s,
        goodput_requests_per_s=None if num_good is None else num_good / wall_s,
        ttft=latency([sample.ttft_s for sample in done if sample.texts_s]),
        tpot=latency([sample.tpot_s for sample in done if sample.tpot_s is not None]),
        itl=latency([after - before for sample in done for before, after in pairwise(sample.texts_s)]),
        e2e=latency([sample.e2e_s for sample in done]),
        in_flight=in_flight(samples),
        client=client,
    )

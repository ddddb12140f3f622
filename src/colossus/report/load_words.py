"""A load test in words: one row a load, percentiles, and what must be known to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colossus.report.words import count, duration, percent
from colossus.spec.load import Latency, LoadPoint, LoadTest, Objectives

KINDS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
MEANINGS = {
    "ttft": "from arrival to the first text, queueing included",
    "tpot": "(E2E - TTFT) / (tokens - 1) of each answer",
    "itl": "between two arrivals of text of one answer",
    "e2e": "from arrival to the end of the answer",
}


def latency_of(point: LoadPoint, kind: str) -> Latency | None:
    found: Latency | None = getattr(point, kind)
    return found


def objective_words(objectives: Objectives) -> str:
    """``TTFT <= 500 ms and TPOT <= 50 ms``; empty where there is none."""
    told = [f"{KINDS[kind]} <= {duration(most)}" for kind in ("ttft", "tpot", "e2e") if (most := getattr(objectives, f"{kind}_s")) is not None]
    return " and ".join(told)


def header(test: LoadTest) -> list[str]:
    """Of the table of loads."""
    goodput = ["goodput/s"] if objective_words(test.objectives) else []
    return ["load", "requests/s", "output tok/s", *goodput, *(f"{name} p50 / p99" for name in KINDS.values()), "failed"]


def row(test: LoadTest, point: LoadPoint) -> list[str]:
    goodput = [number(point.goodput_requests_per_s)] if objective_words(test.objectives) else []
    latencies = [two(latency_of(point, kind)) for kind in KINDS]
    return [point.label, number(point.requests_per_s), number(point.output_tokens_per_s), *goodput, *latencies, failed(point)]


def named(test: LoadTest, others: Mapping[str, LoadTest]) -> dict[str, LoadTest]:
    """This test, by its model's name, and the others."""
    return {f"{test.model}, now" if test.model in others else test.model: test, **others}


def labels(test: LoadTest) -> set[str]:
    """Of its loads."""
    return {point.label for point in test.points}


def beside_notes(test: LoadTest, others: Mapping[str, LoadTest]) -> list[str]:
    """What makes others no equals."""
    alone = [f"No load of this test was played on {name} too." for name, other in others.items() if not labels(test) & labels(other)]
    return alone + [
        f"{name} was asked for something else: {other.workload}, {other.endpoint} (here: {test.workload}, {test.endpoint})."
        for name, other in others.items()
        if (other.workload, other.endpoint) != (test.workload, test.endpoint)
    ]


def beside_header() -> list[str]:
    """Of the table of several servers."""
    return ["load", "server", "output tok/s", *(f"{name} p50 / p99" for name in KINDS.values()), "failed"]


def beside_rows(tests: Mapping[str, LoadTest]) -> list[list[str]]:
    """Load by load, each server that was tested at it; loads that only one of them had are left out."""
    labels = dict.fromkeys(point.label for test in tests.values() for point in test.points)
    rows = []
    for label in labels:
        found = [(name, point) for name, test in tests.items() for point in test.points if point.label == label]
        if len(found) > 1:
            rows += [
                [label, name, number(point.output_tokens_per_s), *(two(latency_of(point, kind)) for kind in KINDS), failed(point)] for name, point in found
            ]
    return rows


def two(latency: Latency | None) -> str:
    return "–" if latency is None else f"{duration(latency.p50_s)} / {duration(latency.p99_s)}"


def number(value: float | None) -> str:
    """Three digits, no power of ten."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def failed(point: LoadPoint) -> str:
    """``0``, or how many by kind."""
    return ", ".join(f"{times} x {kind}" for kind, times in sorted(point.errors.items())) or "0"


PERCENTILES = ("", "values", "mean", "p50", "p90", "p95", "p99", "max")


def percentile_rows(point: LoadPoint) -> list[list[str]]:
    """Every latency of one load."""
    rows = []
    for kind, name in KINDS.items():
        if (found := latency_of(point, kind)) is not None:
            times = (found.mean_s, found.p50_s, found.p90_s, found.p95_s, found.p99_s, found.max_s)
            rows.append([name, f"{found.num_values:,}", *map(duration, times)])
    return rows


def verdict(test: LoadTest) -> str:
    """The most output tokens a second, and the goodput where objectives are set."""
    best = max(test.points, key=lambda point: point.output_tokens_per_s)
    told = f"{number(best.output_tokens_per_s)} output tokens/s at {best.label}"
    if objective_words(test.objectives):
        good = max(test.points, key=lambda point: point.goodput_requests_per_s or 0.0)
        told += f"; {number(good.goodput_requests_per_s)} good answers/s at {good.label} ({objective_words(test.objectives)})"
    num_failed = sum(sum(point.errors.values()) for point in test.points)
    return told + (f"; {count(num_failed, 'request')} failed" if num_failed else "; no request failed")


def terms(test: LoadTest) -> str:
    """What was asked of whom."""
    return f"{test.model} at {test.url}{test.endpoint}, {test.workload}, seed {test.seed}"


def client_words(points: Sequence[LoadPoint]) -> str:
    """What the load generator cost itself."""
    busiest = max(point.client.cpu_fraction for point in points)
    late = max(point.client.lag_p99_s for point in points)
    told = f"The client took {percent(busiest)} of one core at most, its event loop woke up to {duration(late)} late (p99)"
    sent = max((point.client.send_lag_p99_s for point in points if point.num_clients is None), default=None)
    return told + ("." if sent is None else f", requests left up to {duration(sent)} after their arrival (p99), which latencies include.")


def warm_up_words(points: Sequence[LoadPoint]) -> str:
    number_warm = max(point.num_warmup_requests for point in points)
    return (
        f"{count(number_warm, 'warm-up request')} before each load {'is' if number_warm == 1 else 'are'} left out."
        if number_warm
        else "No warm-up: the first requests count."
    )

"""What a load test of a server came to: latencies, rates and errors at each load.

TTFT: from arrival to the first text. TPOT: (E2E - TTFT) / (tokens - 1). ITL: between two arrivals of text of one answer; a server that sends several
tokens at once has few and long ones. E2E: from arrival to the end of the answer. Goodput: answers a second that met every objective.
"""

from __future__ import annotations

from colossus.spec.base import FiniteSpec


class Objectives(FiniteSpec):
    """Service-level objectives: an answer is good when it meets all that are set."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


class Latency(FiniteSpec):
    """Of many values of one kind; ``curve_s`` holds percentiles 0 to 100."""

    num_values: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float
    curve_s: tuple[float, ...]


class ClientCost(FiniteSpec):
    """What the load generator itself cost, to see whether it was the limit.

    :param cpu_fraction: of one core.
    :param lag_p99_s: how late its event loop woke up.
    :param send_lag_p99_s: how late requests left after their intended arrival (open loop).
    """

    cpu_fraction: float
    lag_p99_s: float
    lag_max_s: float
    send_lag_p99_s: float


class LoadPoint(FiniteSpec):
    """One load: so many clients that wait for their answers, or so many arrivals a second.

    :param wall_s: from the first arrival to the last end.
    :param errors: failed requests by kind.
    :param in_flight: (time, requests on their way) over the test, at most a few hundred steps.
    :param counted_by: ``usage`` where the server counted tokens, ``events`` where each event with text was taken for one.
    """

    label: str
    num_clients: int | None = None
    offered_requests_per_s: float | None = None
    num_requests: int
    num_warmup_requests: int
    num_completed: int
    num_good: int | None = None
    errors: dict[str, int]
    wall_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_short_answers: int
    num_events_per_token: float | None = None
    counted_by: str
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    goodput_requests_per_s: float | None = None
    ttft: Latency | None = None
    tpot: Latency | None = None
    itl: Latency | None = None
    e2e: Latency | None = None
    in_flight: tuple[tuple[float, int], ...]
    client: ClientCost


class LoadTest(FiniteSpec):
    """All loads of one test, with what was asked of whom."""

    url: str
    model: str
    endpoint: str
    workload: str
    seed: int
    started_at_s: float
    objectives: Objectives = Objectives()
    points: tuple[LoadPoint, ...]
    notes: tuple[str, ...] = ()

"""Prometheus' view: vLLM's names where it has them, so that its dashboards work unchanged, and our own under ``colossus:``."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from colossus.serve.measures import Histogram, Measures
from colossus.serve.replicas import Fleet, Replica, totals
from colossus.serve.request import Finish
from colossus.serve.router import Router

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ["model_name"]
_ENGINE = ["model_name", "engine"]
# name, what it says, what of ``totals``
_ENGINE_COUNTERS = (
    ("vllm:num_preemptions", "Requests that gave their pages back to others and are computed again.", "num_preemptions"),
    ("vllm:prefix_cache_hits", "Tokens of prompts that the prefix cache had.", "num_cached_tokens"),
    ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead.", "num_drafted_tokens"),
    ("vllm:spec_decode_num_accepted_tokens", "Tokens guessed ahead and right.", "num_accepted_tokens"),
    ("colossus:engine_steps", "Steps of the engine.", "num_steps"),
    ("colossus:engine_busy_seconds", "Time in steps.", "busy_s"),
    ("colossus:engine_compilations", "Programs compiled after warm-up; any is a fault.", "num_compilations"),
)
_STATES = ("starting", "ready", "waiting", "failed", "stopped")


class Metrics:
    """A collector: figures are read from the router and the fleet when they are asked for."""

    def __init__(self, model_name: str, fleet: Fleet, router: Router, measures: Measures) -> None:
        self._model = model_name
        self._fleet = fleet
        self._router = router
        self._measures = measures
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """As Prometheus scrapes it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All families, for ``prometheus_client``."""
        yield from self._loads()
        yield from self._engine_counters()
        yield from self._request_counters()
        yield from self._histograms()
        yield from self._own()

    def _gauge(self, name: str, text: str, values: dict[int, float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_ENGINE)
        for index, value in values.items():
            family.add_metric([self._model, str(index)], value)
        return family

    def _loads(self) -> Iterator[Metric]:
        stats = {replica.index: replica.stats for replica in self._fleet.replicas if replica.stats is not None}
        yield self._gauge("vllm:num_requests_running", "Requests in the engine's steps.", {i: one.num_running for i, one in stats.items()})
        yield self._gauge("vllm:num_requests_waiting", "Requests waiting in the engine.", {i: one.num_waiting for i, one in stats.items()})
        used = {i: one.num_used_pages / max(1, one.num_pages) for i, one in stats.items()}
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache's pages held by requests; 1 is all.", used)
        yield self._gauge("colossus:kv_pages", "Pages of the KV cache.", {i: one.num_pages for i, one in stats.items()})
        yield self._gauge("colossus:kv_pages_used", "Pages held by requests.", {i: one.num_used_pages for i, one in stats.items()})
        yield self._gauge("colossus:kv_pages_cached", "Free pages that the prefix cache knows.", {i: one.num_cached_pages for i, one in stats.items()})

    def _engine_counters(self) -> Iterator[Metric]:
        counts = {replica.index: totals(replica) for replica in self._fleet.replicas}
        for name, text, key in _ENGINE_COUNTERS:
            yield self._counter(name, text, {index: one[key] for index, one in counts.items()})
        looked_up = {index: one["num_prompt_tokens"] + one["num_cached_tokens"] for index, one in counts.items()}
        yield self._counter("vllm:prefix_cache_queries", "Tokens of prompts looked up in the prefix cache.", looked_up)

    def _counter(self, name: str, text: str, values: dict[int, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=_ENGINE)
        for index, value in values.items():
            family.add_metric([self._model, str(index)], value)
        return family

    def _request_counters(self) -> Iterator[Metric]:
        measures = self._measures
        yield self._count("vllm:prompt_tokens", "Tokens of prompts whose answer began, those found in the prefix cache included.", measures.num_prompt_tokens)
        yield self._count("vllm:generation_tokens", "Tokens of answers.", measures.num_output_tokens)
        family = CounterMetricFamily("vllm:request_success", "Requests that ended, by how.", labels=["model_name", "finished_reason"])
        for finish in Finish:
            family.add_metric([self._model, finish.value], measures.ended[finish])
        yield family
        yield self._count("colossus:requests_refused", "Requests refused because the queue was full.", measures.num_refused)
        yield self._count("colossus:requests_retried", "Requests given to another engine after theirs was lost.", measures.num_retries)

    def _count(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_MODEL)
        family.add_metric([self._model], value)
        return family

    def _histograms(self) -> Iterator[Metric]:
        measures = self._measures
        yield self._histogram("vllm:time_to_first_token_seconds", "From arrival to the first token, queueing included.", measures.first_token_s)
        yield self._histogram("vllm:inter_token_latency_seconds", "Between tokens; those that come together share the time.", measures.token_s)
        yield self._histogram("vllm:request_time_per_output_token_seconds", "Mean time between a request's tokens.", measures.per_token_s)
        yield self._histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", measures.request_s)
        yield self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", measures.prompt_tokens)
        yield self._histogram("vllm:request_generation_tokens", "Tokens of an answer.", measures.output_tokens)

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family, seen, buckets = HistogramMetricFamily(name, text, labels=_MODEL), 0, []
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound is None else repr(float(bound)), float(seen)))
        family.add_metric([self._model], buckets, histogram.total)
        return family

    def _own(self) -> Iterator[Metric]:
        yield self._count_now("colossus:requests_in_flight", "Requests between arrival and last token.", self._router.num_requests)
        yield self._count_now("colossus:requests_parked", "Requests that wait for an engine to start.", self._router.num_parked)
        work = {replica.index: float(self._router.outstanding_tokens(replica)) for replica in self._fleet.replicas}
        yield self._gauge("colossus:outstanding_tokens", "Tokens that the engine was given to compute and has not, as estimated.", work)
        losses = {replica.index: float(replica.num_losses) for replica in self._fleet.replicas}
        yield self._counter("colossus:engine_losses", "Engine processes that ended or hung.", losses)
        family = GaugeMetricFamily("colossus:engine_state", "1 for the state that the engine is in.", labels=[*_ENGINE, "state"])
        for replica in self._fleet.replicas:
            self._add_states(family, replica)
        yield family

    def _add_states(self, family: GaugeMetricFamily, replica: Replica) -> None:
        for state in _STATES:
            family.add_metric([self._model, str(replica.index), state], float(replica.state == state))

    def _count_now(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_MODEL)
        family.add_metric([self._model], value)
        return family

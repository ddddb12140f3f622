"""What is counted of requests, and how Prometheus, the page and a trace collector see it."""

from __future__ import annotations

import asyncio
import http.server
import json
import math
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from colossus.serve.calls import Call
from colossus.serve.flight import Flight
from colossus.serve.logs import RequestLog
from colossus.serve.measures import HISTORY_S, Histogram, Measures, Spread, percentiles
from colossus.serve.request import Finish, Output
from colossus.serve.settings import DoorSettings, RouterSettings
from colossus.serve.tracing import Tracing, TracingError
from tests.serve.clusters import ask, until
from tests.serve.doors import serving

EXPECTED = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prefix_cache_queries", "vllm:prefix_cache_hits",
    "vllm:prompt_tokens", "vllm:generation_tokens", "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds", "vllm:request_success", "vllm:num_preemptions",
    "vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens", "vllm:request_prompt_tokens", "vllm:request_generation_tokens",
}  # fmt: skip


@given(st.lists(st.floats(1e-3, 1000), min_size=1, max_size=200))
def test_percentiles_are_within_five_per_cent(values):
    one, two = Spread(), Spread()
    for number, value in enumerate(values):
        (one if number % 2 else two).add(value)
    for share, found in zip((0.5, 0.9, 0.99), percentiles([one, two]), strict=True):
        exact = sorted(values)[math.ceil(share * len(values)) - 1]
        assert found == pytest.approx(exact, rel=0.06)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 9))))
def test_a_histogram_adds_many_at_once_as_one_by_one(values):
    at_once, singly = Histogram((1, 2, 5)), Histogram((1, 2, 5))
    for value, times in values:
        at_once.add(value, times)
        for _ in range(times):
            singly.add(value)
    assert at_once.counts == singly.counts
    assert at_once.total == pytest.approx(singly.total)


def test_a_requests_times_add_up():
    measures, flight = Measures(), Flight(ask(max_tokens=7), None, 10.0)
    for now, tokens in ((12.0, (1,)), (12.5, (2, 3, 4, 5)), (13.0, (6, 7))):
        flight.take(Output(id="x", tokens=tokens))
        measures.observe_output(flight, Output(id="x", tokens=tokens), now)
    measures.observe_end(flight, Finish.LENGTH)
    assert measures.first_token_s.total == pytest.approx(2.0)
    assert sum(measures.token_s.counts) == 6 and measures.token_s.total == pytest.approx(1.0)
    assert measures.per_token_s.total == pytest.approx(1 / 6)
    assert measures.num_output_tokens == 7 and measures.num_prompt_tokens == 3


def test_seconds_without_events_are_there_too(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("colossus.serve.measures.time.monotonic", lambda: now[0])
    measures = Measures()
    measures.count_refused()
    now[0] += 3
    assert [second.num_refused for second in measures.seconds(10)] == [1, 0, 0, 0]
    now[0] += 10_000
    seconds = measures.seconds(HISTORY_S + 1)
    assert len(seconds) == HISTORY_S + 1 and [one.time_s for one in seconds] == list(range(int(now[0]) - HISTORY_S, int(now[0]) + 1))


def test_prometheus_reads_what_requests_and_engines_did(tmp_path):
    async def main():
        async with serving(tmp_path, routing=RouterSettings(num_replicas=2), step_tokens=2) as served:
            for number in range(4):
                assert (await served.say(number, max_tokens=9)).status == 200
            await until(lambda: sum(replica.stats.num_output_tokens for replica in served.door.fleet.replicas if replica.stats) == 36)
            before = await read(served)
            assert before.keys() >= EXPECTED
            assert before["vllm:generation_tokens"] == 36 and before["vllm:prompt_tokens"] == 4
            assert before["vllm:request_success"] == 4
            assert before["vllm:num_requests_running"] == 0
            assert before["colossus:engine_steps"] > 0
            served.door.fleet.replicas[0].process.kill()
            await until(lambda: served.door.fleet.replicas[0].generation == 2 and len(served.door.fleet.ready) == 2)
            after = await read(served)
            assert after["colossus:engine_steps"] >= before["colossus:engine_steps"]  # counters do not go back with a new process
            assert after["colossus:engine_losses"] == 1

    async def read(served):
        text = await (await served.http.get(f"{served.url}/metrics")).text()
        families = list(text_string_to_metric_families(text))
        for family in families:
            if family.type == "histogram":
                check_histogram(family)
        return {family.name: sum(sample.value for sample in family.samples if not sample.name.endswith(("_bucket", "_sum"))) for family in families}

    def check_histogram(family):
        counts = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        assert counts == sorted(counts)
        assert counts[-1] == next(sample.value for sample in family.samples if sample.name.endswith("_count"))

    asyncio.run(main())


def test_the_page_sees_the_last_seconds(tmp_path):
    async def main():
        async with serving(tmp_path, token_s=0.005) as served:
            running = asyncio.create_task(served.say(max_tokens=300))
            seen = {}

            async def has_history():
                nonlocal seen
                seen = await (await served.http.get(f"{served.url}/stats")).json()
                return any(second["output_tokens_per_s"] and second["running"] for second in seen["history"])

            while not await has_history():
                await asyncio.sleep(0.05)
            assert seen["running"] == 1 and seen["in_flight"] == 1 and seen["output_tokens_per_s"] > 0
            assert seen["engine"]["model"] == "scripted" and 0 < seen["kv_used_fraction"] < 1
            assert set(seen["ttft_s"]) == set(seen["itl_s"]) == {"p50", "p90", "p99"}
            await running

    asyncio.run(main())


def test_the_log_turns_when_it_is_long(tmp_path):
    path = tmp_path / "log"
    log = RequestLog(path, most_bytes=1000)
    for number in range(20):
        log.write(Call(id=f"c{number}", method="GET", route="/", error="x" * 1000))
    log.close()
    old = path.with_name("log.1")
    assert path.stat().st_size < 2000 and old.exists()
    assert all(json.loads(line)["id"] for line in old.read_text().splitlines())


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_traces_follow_their_callers(tmp_path):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    server.bodies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()

    async def main():
        settings = DoorSettings(otlp_endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces", drain_s=0.2)
        async with serving(tmp_path, settings) as served:
            parent = {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01", "x-request-id": "mine"}
            assert (await served.say(headers=parent, max_tokens=6)).status == 200
            await served.http.get(f"{served.url}/health")

    asyncio.run(main())
    server.shutdown()
    server.server_close()
    spans = [
        span
        for body in server.bodies
        for part in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    ]
    (span,) = spans
    assert span.trace_id.hex() == "a1" * 16 and span.parent_span_id.hex() == "b2" * 8
    values = {one.key: one.value for one in span.attributes}
    assert values["gen_ai.usage.output_tokens"].int_value == 6 and values["gen_ai.request.id"].string_value == "mine"
    assert [event.name for event in span.events] == ["first_token"]


def test_without_opentelemetry_the_words_say_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match="not installed") as caught:
        Tracing("http://127.0.0.1:1/v1/traces", "m")
    assert "otel" in caught.value.hint

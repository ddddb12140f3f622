"""OpenTelemetry: a span for each request, under the caller's own trace where it sent one. Imported only when it is asked for."""

from __future__ import annotations

import time
from typing import Any

from colossus.serve.calls import Call
from colossus.spec.errors import ColossusError

_INSTALL = "pip install 'colossus[otel]' brings it"


class TracingError(ColossusError):
    """Traces were asked for and cannot be made."""


class Tracing:
    """Spans in OpenTelemetry's words for generative AI, sent in the background to an OTLP collector over HTTP."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise TracingError("traces need OpenTelemetry, which is not installed", hint=_INSTALL) from error
        self._model = model_name
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(resource=Resource.create({"service.name": "colossus-serve"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("colossus.serve")

    def begin(self, call: Call, headers: dict[str, str]) -> Any:
        """The call's span. ``headers``: of which ``traceparent`` and ``tracestate`` are looked at."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(headers)
        return self._tracer.start_span(f"{call.method} {call.route}", context=context, kind=SpanKind.SERVER)

    def end(self, call: Call, span: Any) -> None:
        """Its figures and its end."""
        from opentelemetry.trace import StatusCode

        span.set_attributes(
            {
                "http.request.method": call.method,
                "http.route": call.route,
                "http.response.status_code": call.status or 0,
                "enduser.id": call.owner,
                "gen_ai.request.id": call.id,
                "gen_ai.request.model": self._model,
                "gen_ai.usage.input_tokens": call.num_prompt_tokens,
                "gen_ai.usage.output_tokens": call.num_output_tokens,
                "gen_ai.usage.cache_read.input_tokens": call.num_cached_tokens,
            }
        )
        if call.first_output_s is not None:
            span.set_attribute("gen_ai.server.time_to_first_token", call.first_output_s - call.started_s)
            ago_s = time.monotonic() - call.first_output_s
            span.add_event("first_token", timestamp=time.time_ns() - int(ago_s * 1e9))
        if call.error is not None or (call.status or 0) >= 500:
            span.set_status(StatusCode.ERROR, call.error or f"status {call.status}")
        span.end()

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

"""Answered exchanges in; OpenTelemetry spans to a collector out, one a request, with where its time went.

The SDK (`octavo[otel]`) is imported only where an endpoint is given. Names of attributes are the semantic conventions'
and vLLM's.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from octavo.base.errors import ConfigError
from octavo.server.openai.timing import PARTS, Timing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from octavo.server.exchange import Exchange

SPAN = "llm_request"
_PARENT = ("traceparent", "tracestate")
_UNNAMED = "unknown_service"
_FAILURE = 500  # from this status on the fault is the server's


class Tracer:
    """Makes spans. processor: what takes them; it never blocks, and drops what a slow collector does not take."""

    def __init__(self, processor: SpanProcessor, *, model: str, version: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        if str(resource.attributes.get("service.name", _UNNAMED)).startswith(_UNNAMED):
            resource = resource.merge(Resource({"service.name": "octavo"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("octavo", version)
        self._context = TraceContextTextMapPropagator()
        self._model = model

    def record(self, exchange: Exchange, seconds: float) -> None:
        """The span of an exchange that has just ended after `seconds`; a child of its `traceparent`, if it has one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name: value.decode("latin-1") for name in _PARENT if (value := exchange.header(name.encode()))}
        end = time.time_ns()
        span = self._tracer.start_span(
            SPAN,
            context=self._context.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=end - int(seconds * 1e9),
            attributes={
                "http.request.method": exchange.method,
                "http.route": exchange.route,
                "http.response.status_code": exchange.status,
                "gen_ai.request.id": exchange.request_id,
                "gen_ai.request.model": self._model,
                "gen_ai.latency.e2e": seconds,
                **_timing(exchange.timing),
            },
        )
        if exchange.status == 0 or exchange.status >= _FAILURE:
            span.set_status(Status(StatusCode.ERROR, "closed by the client" if exchange.status == 0 else None))
        span.end(end)

    def close(self, seconds: float = 10.0) -> None:
        """Send what is left; what a collector has not taken after `seconds` is lost. Blocks: not for the event loop."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(seconds)


def _timing(timing: Timing | None) -> dict[str, Any]:
    """Seconds, as all of gen_ai.latency; nothing of several completions at once."""
    metrics = timing.metrics() if timing is not None else None
    if timing is None or metrics is None:
        return {}
    parts = {name: getattr(metrics, f"{name}_time_ms") / 1000 for name in PARTS}
    return {
        "gen_ai.usage.prompt_tokens": timing.num_prompt,
        "gen_ai.usage.completion_tokens": timing.num_tokens,
        "gen_ai.latency.time_to_first_token": metrics.time_to_first_token_ms / 1000,
        "gen_ai.latency.time_in_queue": parts["queue"],
        "gen_ai.latency.time_in_model_prefill": parts["prefill"],
        "gen_ai.latency.time_in_model_decode": parts["decode"],
        **{f"octavo.time.{name}": parts[name] for name in PARTS},
        "octavo.cached_tokens": metrics.cached_tokens,
        "octavo.num_preemptions": metrics.num_preemptions,
    }


def open_tracer(endpoint: str | None, *, model: str, version: str) -> Tracer | None:
    """A Tracer to an OTLP collector's URL (http://host:4318/v1/traces); None where there is none.

    ConfigError as check_endpoint's.
    """
    if endpoint is None:
        return None
    check_endpoint(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    for handler in logging.getLogger("octavo").handlers:  # its complaints, in the form of ours
        logging.getLogger("opentelemetry").addHandler(handler)
    return Tracer(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), model=model, version=version)


def check_endpoint(endpoint: str) -> None:
    """ConfigError where it is no URL, or the SDK is not installed."""
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"otlp_traces_endpoint={endpoint!r} must be a URL such as http://localhost:4318/v1/traces",
            param="otlp_traces_endpoint",
        )
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"otlp_traces_endpoint needs OpenTelemetry ({error}): pip install 'octavo[otel]'",
            param="otlp_traces_endpoint",
        ) from None

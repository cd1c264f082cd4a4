"""Spans: one a request, under the client's trace, with parts of its time; to a collector over HTTP."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fake_llm import FakeLLM
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from serving import LiveServer, wait_for

from octavo.base.errors import ConfigError, EngineDeadError
from octavo.server.openai.timing import PARTS
from octavo.server.tracing import Tracer, open_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"prompt": "abc", "max_tokens": 4}


class Traced:
    """A server, and the spans that it made."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self._memory = InMemorySpanExporter()
        server.app.tracer = Tracer(SimpleSpanProcessor(self._memory), model="fake/model", version="1")

    def spans(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())


@pytest.fixture
def traced(server: LiveServer) -> Iterator[Traced]:
    yield Traced(server)
    assert server.app.tracer is not None
    server.app.tracer.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span(traced: Traced, stream: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    traced.server.post("/v1/completions", {**BODY, "stream": stream}, **headers)
    wait_for(lambda: len(traced.spans()) == 1)
    (span,) = traced.spans()
    attributes: Any = span.attributes
    assert span.name == "llm_request"
    assert span.kind is SpanKind.SERVER
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert attributes["gen_ai.request.id"] == "mine"
    assert attributes["http.route"] == "/v1/completions"
    assert attributes["http.response.status_code"] == 200
    assert (attributes["gen_ai.usage.prompt_tokens"], attributes["gen_ai.usage.completion_tokens"]) == (4, 4)
    assert span.start_time is not None
    assert span.end_time is not None
    took = (span.end_time - span.start_time) / 1e9
    assert took == pytest.approx(attributes["gen_ai.latency.e2e"], abs=1e-6)
    parts = [attributes[f"octavo.time.{name}"] for name in PARTS]
    assert min(parts) >= 0
    assert sum(parts) >= 0.99 * took
    assert span.status.status_code is StatusCode.UNSET


def test_failures_and_probes(traced: Traced) -> None:
    traced.server.client.get("/livez")
    traced.server.post("/v1/completions", {"prompt": 1})
    traced.server.llm.fail_at, traced.server.llm.failure = 0, EngineDeadError("gone")
    traced.server.post("/v1/completions", BODY, traceparent="nonsense")
    wait_for(lambda: len(traced.spans()) == 2)
    bad, failed = traced.spans()
    assert bad.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.parent is None
    assert "octavo.time.queue" not in (failed.attributes or {})


def test_it_reaches_a_collector() -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        try:
            with LiveServer(FakeLLM(), otlp_traces_endpoint=endpoint) as server:
                server.post("/v1/completions", BODY)
                server.app.tracer.close()  # type: ignore[union-attr]
        finally:
            collector.shutdown()
            thread.join()
    told = ExportTraceServiceRequest.FromString(bodies[0]).resource_spans[0]
    assert told.scope_spans[0].spans[0].name == "llm_request"
    assert {one.key: one.value.string_value for one in told.resource.attributes}["service.name"] == "octavo"


def test_what_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracer(None, model="m", version="1") is None
    with pytest.raises(ConfigError, match="must be a URL"):
        open_tracer("localhost:4317", model="m", version="1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"octavo\[otel\]"):
        open_tracer("http://127.0.0.1:1/v1/traces", model="m", version="1")


def test_the_sdk_is_not_imported_without_an_endpoint() -> None:
    import subprocess

    assert importlib.util.find_spec("opentelemetry.sdk") is not None
    code = "import sys, octavo.server.app; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

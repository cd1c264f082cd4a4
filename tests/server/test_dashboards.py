"""What public dashboards and autoscalers ask Prometheus for is exported, with its type and labels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_llm import FakeLLM
from prometheus_client import CollectorRegistry, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import LiveServer

from octavo.base.metrics import requests
from octavo.base.metrics.registry import Metrics
from octavo.base.metrics.requests import RequestRecorder
from octavo.base.types.messages import EngineStats
from octavo.base.types.output import CompletionOutput, RequestOutput, ToolCall
from octavo.base.types.sampling import SamplingParams

# production-stack: helm/dashboards/vllm-dashboard.json and vllm-model-metrics-dashboard.json, and the older
# observability/vllm-dashboard.json. What these show of the
# router before the engines (healthy_pods_total, current_qps, router_*) is the router's own.
# (name as queried, type, labels that the query or its legend names)
DASHBOARDS = [
    ("e2e_request_latency_seconds_bucket", "histogram", {"le", "model_name"}),
    ("e2e_request_latency_seconds_sum", "histogram", {"model_name"}),
    ("e2e_request_latency_seconds_count", "histogram", {"model_name"}),
    ("time_to_first_token_seconds_bucket", "histogram", {"le", "model_name"}),
    ("time_to_first_token_seconds_sum", "histogram", {"model_name"}),
    ("time_to_first_token_seconds_count", "histogram", {"model_name"}),
    ("time_per_output_token_seconds_bucket", "histogram", {"le", "model_name"}),
    ("time_per_output_token_seconds_sum", "histogram", {"model_name"}),
    ("time_per_output_token_seconds_count", "histogram", {"model_name"}),
    ("num_requests_running", "gauge", {"model_name"}),
    ("num_requests_waiting", "gauge", {"model_name"}),
    ("num_requests_swapped", "gauge", {"model_name"}),
    ("gpu_cache_usage_perc", "gauge", {"model_name"}),
    ("cpu_cache_usage_perc", "gauge", {"model_name"}),
    ("gpu_prefix_cache_hit_rate", "gauge", {"model_name"}),
    ("gpu_prefix_cache_hits_total", "counter", {"model_name"}),
    ("gpu_prefix_cache_queries_total", "counter", {"model_name"}),
    ("prompt_tokens_total", "counter", {"model_name"}),
    ("generation_tokens_total", "counter", {"model_name"}),
    ("request_success_total", "counter", {"model_name", "finished_reason"}),
    ("request_queue_time_seconds_sum", "histogram", {"model_name"}),
    ("request_prefill_time_seconds_sum", "histogram", {"model_name"}),
    ("request_decode_time_seconds_sum", "histogram", {"model_name"}),
    ("request_prompt_tokens_bucket", "histogram", {"le", "model_name"}),
    ("request_generation_tokens_bucket", "histogram", {"le", "model_name"}),
    ("request_max_num_generation_tokens_sum", "histogram", {"model_name"}),
]
# gateway-api-inference-extension and KEDA, and vLLM's own page of metrics
OTHERS = [
    ("kv_cache_usage_perc", "gauge", {"model_name", "engine"}),
    ("request_time_per_output_token_seconds_bucket", "histogram", {"le", "model_name", "engine"}),
    ("inter_token_latency_seconds_bucket", "histogram", {"le", "model_name", "engine"}),
    ("prefix_cache_queries_total", "counter", {"model_name", "engine"}),
    ("prefix_cache_hits_total", "counter", {"model_name", "engine"}),
    ("iteration_tokens_total_bucket", "histogram", {"le", "model_name", "engine"}),
    ("prompt_tokens_cached_total", "counter", {"model_name", "engine"}),
    ("prompt_tokens_by_source_total", "counter", {"model_name", "engine", "source"}),
    ("num_preemptions_total", "counter", {"model_name", "engine"}),
    ("admission_rejections_total", "counter", {"model_name", "engine", "reason"}),
    ("cache_config_info", "gauge", {"block_size", "num_gpu_blocks", "enable_prefix_caching"}),
    ("lora_requests_info", "gauge", {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}),
    ("num_requests_waiting_by_reason", "gauge", {"model_name", "engine", "reason"}),
    ("engine_sleep_state", "gauge", {"model_name", "engine", "sleep_state"}),
    ("tool_call_parser_invocations_total", "counter", {"model_name", "mode", "outcome", "request_type"}),
]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with LiveServer(FakeLLM()) as server:
        server.post("/v1/completions", {"prompt": "abc", "max_tokens": 5})
        yield server


def families(text: str) -> dict[str, Metric]:
    """Family by the name of each of its samples."""
    return {sample.name: one for one in text_string_to_metric_families(text) for sample in one.samples}


def value(text: str, name: str, **labels: str) -> float:
    """The one sample that has these labels."""
    (found,) = (s.value for s in families(text)[name].samples if s.name == name and labels.items() <= s.labels.items())
    return float(found)


@pytest.mark.parametrize(
    ("name", "kind", "labels"), [*DASHBOARDS, *OTHERS], ids=[row[0] for row in [*DASHBOARDS, *OTHERS]]
)
def test_exported(live: LiveServer, name: str, kind: str, labels: set[str]) -> None:
    found = families(live.client.get("/metrics").text)
    family = found[f"vllm:{name}"]
    assert family.type == kind
    for sample in family.samples:
        if sample.name == f"vllm:{name}":
            assert labels <= sample.labels.keys()
            assert sample.labels["model_name"] == "fake/model"


def test_older_names_have_the_newer_ones_values(live: LiveServer) -> None:
    live.llm.stats = EngineStats(kv_usage=0.25, prompt_tokens=50, prefix_queries=40, prefix_hits=30)
    text = live.client.get("/metrics").text
    assert value(text, "vllm:gpu_cache_usage_perc") == value(text, "vllm:kv_cache_usage_perc") == 0.25
    assert value(text, "vllm:gpu_prefix_cache_hits_total") == value(text, "vllm:prefix_cache_hits_total") == 30
    assert value(text, "vllm:gpu_prefix_cache_hit_rate") == 0.75
    assert value(text, "vllm:prompt_tokens_cached_total") == 30
    assert value(text, "vllm:prompt_tokens_by_source_total", source="local_compute") == 20
    assert value(text, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 30
    assert value(text, "vllm:time_per_output_token_seconds_count") == 4
    assert "octavo:gpu_cache_usage_perc" not in text


def test_waiting_and_sleep(live: LiveServer) -> None:
    live.llm.stats = EngineStats(num_waiting=7, num_deferred=2)
    text = live.client.get("/metrics").text
    assert value(text, "vllm:num_requests_waiting_by_reason", reason="capacity") == 5
    assert value(text, "vllm:num_requests_waiting_by_reason", reason="deferred") == 2
    assert value(text, "vllm:engine_sleep_state", sleep_state="awake") == 1
    assert value(text, "vllm:engine_sleep_state", sleep_state="discard_all") == 0
    live.llm.state = "sleeping"
    text = live.client.get("/metrics").text
    assert value(text, "vllm:engine_sleep_state", sleep_state="awake") == 0
    assert value(text, "vllm:engine_sleep_state", sleep_state="discard_all") == 1
    live.llm.state = "ready"


def test_tool_calls_are_counted_by_choice() -> None:
    metrics = Metrics("m", stats=EngineStats, info=dict, asleep=lambda: False)
    recorder = RequestRecorder(metrics.requests, SamplingParams(n=2), streaming=True, tools_of="/v1/responses")
    call = ToolCall("f", "{}")
    choices = [
        CompletionOutput(0, "", [1], tool_calls=[call]),
        CompletionOutput(1, "", [1], finish_reason="stop"),
        CompletionOutput(0, "", [1], finish_reason="stop"),
    ]
    for number, choice in enumerate(choices):
        recorder.take(RequestOutput("r", None, [1], None, [choice], finished=number == 2))
    text = metrics.render().decode()
    labels = {"mode": "streaming", "request_type": "responses"}
    assert value(text, "vllm:tool_call_parser_invocations_total", outcome="tool_call", **labels) == 1
    assert value(text, "vllm:tool_call_parser_invocations_total", outcome="no_tool_call", **labels) == 1
    labels["mode"] = "non_streaming"
    assert value(text, "vllm:tool_call_parser_invocations_total", outcome="tool_call", **labels) == 0


def test_histograms_tell_what_the_clients_library_would() -> None:
    bounds = (0.001, 0.0025, 1, 20)
    values = [0.0, 0.001, 0.0011, 0.5, 1, 3.25, 20, 21]
    registry = CollectorRegistry(auto_describe=False)
    known = Histogram("octavo:x_seconds", "Text.", ("model_name",), buckets=bounds, registry=registry).labels("m")
    metrics = Metrics("m", stats=EngineStats, info=dict, asleep=lambda: False)
    ours = metrics.requests.histograms["x_seconds"] = requests.Histogram("Text.", bounds)
    for value in values:
        known.observe(value)
        ours.observe(value)
    expected = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    found = [
        line.replace(',engine="0"', "").replace('engine="0",', "") for line in metrics.render().decode().splitlines()
    ]
    assert [line for line in found if "octavo:x_seconds" in line] == expected

"""/health, /livez, /readyz through all states of the engine; /version, /metrics."""

from __future__ import annotations

import re

import pytest
from fake_llm import FakeLLM
from serving import LiveServer, wait_for

import octavo
from octavo.base.errors import OverloadedError, RequestFailedError

BODY = {"prompt": "a", "max_tokens": 2}


def test_ready(server: LiveServer) -> None:
    for path in ("/health", "/livez", "/ping", "/readyz", "/version"):
        assert server.client.get(path).status_code == 200, path
        assert server.client.head(path).status_code == 200, path


def test_loading_tells_how_far(server: LiveServer) -> None:
    server.llm.state = "loading"
    answer = server.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "loading", "loading": {"what": "weights", "done": 3, "total": 10}}
    assert int(answer.headers["retry-after"]) > 0
    assert server.client.get("/livez").status_code == 200
    refused = server.post("/v1/completions", BODY)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    server.llm.state = "ready"
    assert server.client.get("/readyz").json() == {"status": "ready"}
    assert server.post("/v1/completions", BODY).status_code == 200


@pytest.mark.parametrize(("state", "live"), [("restarting", 200), ("draining", 200), ("dead", 503)])
def test_other_states(server: LiveServer, state: str, live: int) -> None:
    server.llm.state = state
    assert server.client.get("/readyz").status_code == 503
    assert server.client.get("/readyz").json()["status"] == state
    assert server.client.get("/livez").status_code == live
    assert server.client.get("/health").status_code == live
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        refused = server.post(path, {})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
    assert server.client.get("/v1/models").status_code == 200
    assert server.client.get("/metrics").status_code == 200


def test_a_silent_engine_is_not_alive(server: LiveServer) -> None:
    server.llm.age = 301.0
    assert server.client.get("/livez").status_code == 503
    server.llm.age = 299.0
    assert server.client.get("/livez").status_code == 200
    server.llm.state, server.llm.age = "loading", 900.0
    assert server.client.get("/livez").status_code == 200
    server.llm.state, server.llm.age, server.llm.hung = "restarting", 0.0, True
    assert server.client.get("/livez").status_code == 503


GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info")
COUNTERS = (
    *("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens"),
    *("request_success", "admission_rejections", "numerical_errors"),
)
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
    *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
    *("request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens"),
    *("request_generation_tokens", "request_max_num_generation_tokens", "request_params_n"),
    *("request_params_max_tokens", "request_prefill_kv_computed_tokens", "request_num_preemptions"),
    "iteration_tokens_total",
)
VLLM = [*GAUGES, *(name + "_total" for name in COUNTERS), *(name + "_bucket" for name in HISTOGRAMS)]


def read(server: LiveServer) -> dict[str, float]:
    text = server.client.get("/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_metrics_have_vllms_names(server: LiveServer) -> None:
    server.post("/v1/completions", {"prompt": "abc", "max_tokens": 5, "n": 2})
    server.events("/v1/completions", {"prompt": "abc", "max_tokens": 5})
    samples = read(server)
    names = {re.match(r"[^{]*", key)[0] for key in samples}  # type: ignore[index]
    for name in VLLM:
        assert f"vllm:{name}" in names, name
        assert f"octavo:{name}" in names, name
    labels = '{engine="0",model_name="fake/model"}'
    assert samples[f"vllm:request_generation_tokens_sum{labels}"] == 15
    assert samples[f"octavo:request_generation_tokens_sum{labels}"] == 15
    assert samples[f"vllm:time_to_first_token_seconds_count{labels}"] == 2
    assert samples[f"vllm:inter_token_latency_seconds_count{labels}"] == 8
    assert samples[f"vllm:request_params_n_sum{labels}"] == 3
    assert samples['vllm:request_success_total{engine="0",finished_reason="length",model_name="fake/model"}'] == 3


def test_requests_that_are_cut_off_are_counted(server: LiveServer, llm: FakeLLM) -> None:
    def ended(reason: str) -> float:
        labels = f'engine="0",finished_reason="{reason}",model_name="fake/model"'
        return read(server)[f"vllm:request_success_total{{{labels}}}"]

    llm.delay = 0.05
    with server.client.stream("POST", "/v1/completions", json={"prompt": "abc", "stream": True, "n": 2}) as reply:
        next(reply.iter_lines())
    wait_for(lambda: ended("abort") == 2)
    llm.delay, llm.fail_at = 0, 3
    for llm.failure in (RequestFailedError("a step failed"), KeyError("no name")):
        assert server.post("/v1/completions", {"prompt": "abc"}).status_code == 500
    assert ended("error") == 2
    llm.failure = OverloadedError("the engine was put to sleep")
    assert "put to sleep" in server.post("/v1/completions", {"prompt": "abc", "stream": True}).text
    assert ended("error") == 3  # it had begun
    llm.fail_at, llm.failure = 0, OverloadedError("the queue is full")
    assert server.post("/v1/completions", {"prompt": "abc"}).status_code == 503
    assert server.post("/v1/completions", {"prompt": "a" * 9000}).status_code == 400
    assert (ended("error"), ended("abort"), ended("length"), ended("stop")) == (3, 2, 0, 0)


def test_a_first_token_is_counted_when_it_comes(server: LiveServer, llm: FakeLLM) -> None:
    def counted() -> tuple[float, float]:
        samples, labels = read(server), '{engine="0",model_name="fake/model"}'
        first, whole = (f"vllm:{name}_seconds_count{labels}" for name in ("time_to_first_token", "e2e_request_latency"))
        return samples[first], samples[whole]

    llm.delay = 0.05
    with server.client.stream("POST", "/v1/completions", json={"prompt": "abc", "stream": True, "n": 2}) as reply:
        next(reply.iter_lines())
        assert counted() == (1, 0)
    llm.delay = 0
    server.events("/v1/completions", {"prompt": "abc", "max_tokens": 5})
    server.post("/v1/completions", {"prompt": "abc", "max_tokens": 5, "n": 2})
    assert counted() == (3, 2)


def test_counters_go_on_when_the_engine_begins_anew(server: LiveServer) -> None:
    from octavo.base.types.messages import EngineStats

    key = 'vllm:generation_tokens_total{engine="0",model_name="fake/model"}'
    server.llm.stats = EngineStats(generation_tokens=100, num_running=3, kv_usage=0.5)
    samples = read(server)
    assert samples[key] == 100
    assert samples['vllm:num_requests_running{engine="0",model_name="fake/model"}'] == 3
    assert samples['vllm:kv_cache_usage_perc{engine="0",model_name="fake/model"}'] == 0.5
    server.llm.stats = EngineStats(generation_tokens=7)
    assert read(server)[key] == 107
    server.llm.stats = EngineStats(generation_tokens=8)
    assert read(server)[key] == 108


def test_tokens_of_steps(server: LiveServer) -> None:
    from octavo.base.types.messages import EngineStats

    def found() -> tuple[float, ...]:
        samples = read(server)
        name, labels = "vllm:iteration_tokens_total", 'engine="0",model_name="fake/model"'
        edges = ("1.0", "8.0", "16.0", "16384.0")
        buckets = [samples[f'{name}_bucket{{engine="0",le="{edge}",model_name="fake/model"}}'] for edge in edges]
        ends = ("sum", "count")
        return (*buckets, *(samples[f"{name}_{end}{{{labels}}}"] for end in ends))

    assert found() == (0,) * 6
    server.llm.stats = EngineStats(iteration_tokens=20_011, iterations=[3, 1, *[0] * 11, 1])
    assert found() == (3, 4, 4, 4, 20_011, 5)
    server.llm.stats = EngineStats(iteration_tokens=10, iterations=[1, 0, 1, *[0] * 11])  # of another process
    assert found() == (4, 5, 6, 6, 20_021, 7)


def test_label_sets_are_closed(server: LiveServer) -> None:
    def visit(name: str) -> set[str]:
        server.client.request(f"M{name}", f"/path{name}")
        server.client.get(f"/v1/models/none{name}")
        server.post("/v1/completions", {"prompt": "a", "model": f"m{name}", f"f{name}": 1})
        server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "request_id": f"r{name}", "cache_salt": name})
        read(server)
        return set(read(server))

    once = visit("A")
    assert [visit(name) for name in "BCDEFG"] == [once] * 6


def test_rejections_are_counted(server: LiveServer) -> None:
    server.llm.overloaded = True
    assert server.post("/v1/completions", BODY).status_code == 503
    for state in ("restarting", "loading"):
        server.llm.state = state
        assert server.post("/v1/completions", BODY).status_code == 503
    server.app.traffic.draining = True
    assert server.post("/v1/completions", BODY).status_code == 503
    samples = read(server)
    for reason, count in (("overloaded", 1), ("unavailable", 2), ("draining", 1)):
        key = f'vllm:admission_rejections_total{{engine="0",model_name="fake/model",reason="{reason}"}}'
        assert samples[key] == count


def test_the_version_is_that_of_the_package(server: LiveServer) -> None:
    assert server.client.get("/version").json() == {"version": octavo.__version__}
    assert server.client.get("/openapi.json").json()["info"]["version"] == octavo.__version__

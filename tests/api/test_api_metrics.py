"""LLM.get_metrics: vLLM's types and names, the values of what ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Counted

from octavo import (
    LLM,
    BeamSearchParams,
    Counter,
    Gauge,
    Histogram,
    Metric,
    RequestOutputKind,
    SamplingParams,
    Vector,
)
from octavo.base.errors import ConfigError
from octavo.base.metrics.reader import read_metrics
from octavo.base.metrics.registry import Metrics
from octavo.base.types.messages import EngineStats

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def by_name(llm: LLM) -> dict[str, Metric]:
    """Those of one set of labels; of request_success, choices that were as long as they might."""
    return {
        metric.name: metric for metric in llm.get_metrics() if metric.labels.get("finished_reason") in (None, "length")
    }


def values(llm: LLM) -> dict[str, Any]:
    """Counters' and gauges' values, histograms' counts and sums."""
    found = by_name(llm)
    plain = {name: metric.value for name, metric in found.items() if isinstance(metric, Counter | Gauge)}
    return plain | {name: (one.count, one.sum) for name, one in found.items() if isinstance(one, Histogram)}


def finished(llm: LLM) -> dict[str, int]:
    """Choices, by why they ended."""
    return {
        metric.labels["finished_reason"]: metric.value
        for metric in llm.get_metrics()
        if isinstance(metric, Counter) and metric.name == "vllm:request_success"
    }


def test_what_ran_is_counted_once(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        before = values(llm)
        assert before["vllm:request_generation_tokens"] == (0, 0)
        llm.generate([[5, 6, 7], [8, 9]], PARAMS, use_tqdm=False)
        llm.enqueue([[5, 6]], SamplingParams(n=2, max_tokens=3, ignore_eos=True))
        llm.wait_for_completion(use_tqdm=False)
        kinds = (RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY)
        for kind in kinds:
            list(llm.stream([4], SamplingParams(n=2, max_tokens=5, ignore_eos=True, output_kind=kind)))
        after = values(llm)
        assert after["vllm:request_generation_tokens"] == (6, 2 * 8 + 6 + 3 * 10)
        assert after["vllm:request_prompt_tokens"] == (6, 3 + 2 + 2 + 3)
        assert after["vllm:request_success"] == 2 + 2 + 3 * 2
        assert after["vllm:generation_tokens"] == 2 * 8 + 6 + 3 * 10
        assert after["vllm:e2e_request_latency_seconds"][0] == 6
        assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
        llm.beam_search([[5, 6, 7]], BeamSearchParams(2, 4, ignore_eos=True))
        searched = values(llm)
        assert searched["vllm:request_generation_tokens"] == (7, 2 * 8 + 6 + 3 * 10 + 8)
        assert searched["vllm:request_params_n"][1] == after["vllm:request_params_n"][1] + 2
        found = by_name(llm)
        assert found["vllm:cache_config_info"].labels["block_size"] == "16"
        assert found["vllm:generation_tokens"].labels == {"model_name": checkpoint("llama").name, "engine": "0"}
        longest = found["vllm:request_max_num_generation_tokens"]
        assert isinstance(longest, Histogram)
        assert longest.buckets["+Inf"] == longest.count == 7
        assert longest.buckets["5.0"] == 5


def test_a_stop_string_ends_a_request_when_it_comes(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        text = llm.generate([[5, 6, 7]], PARAMS, use_tqdm=False)[0].outputs[0].text
        before = values(llm)
        stopped = SamplingParams(temperature=0, max_tokens=100, stop=text[1:3])
        longer = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
        outputs = llm.generate([[5, 6, 7], [8, 9]], [stopped, longer], use_tqdm=False)
        assert outputs[0].outputs[0].stop_reason == text[1:3]
        times = [output.metrics for output in outputs]
        assert times[0] is not None
        assert times[1] is not None
        name = "vllm:e2e_request_latency_seconds"
        seconds = values(llm)[name][1] - before[name][1] - (times[1].last_token - times[1].arrival)
        assert times[0].last_token - times[0].arrival <= seconds < (times[1].last_token - times[1].arrival) / 2


def test_a_streams_gaps_are_those_of_one_choice(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        params = SamplingParams(n=4, max_tokens=30, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        stream = llm.stream([5, 6, 7], params)
        for _ in zip(range(4), stream, strict=False):
            pass
        time.sleep(0.5)  # the reader's own pause counts, once
        assert len(list(stream)) > 1
        count, seconds = values(llm)["vllm:inter_token_latency_seconds"]
        assert 29 <= count < 29 + 8  # choices begin in steps of their own
        assert seconds >= 0.5


def test_a_stream_that_is_closed_is_an_abort(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        stream = llm.stream([5, 6, 7], SamplingParams(n=2, max_tokens=50, ignore_eos=True))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        list(llm.stream([5, 6, 7], PARAMS))
        assert finished(llm) == {"stop": 0, "length": 1, "abort": 2, "error": 0}


def test_what_is_asked_of_a_sleeper_is_no_abort(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        llm.sleep()
        for ask in (lambda: llm.generate([5, 6], PARAMS, use_tqdm=False), lambda: list(llm.stream([5, 6], PARAMS))):
            with pytest.raises(ConfigError, match="it sleeps"):
                ask()
        assert finished(llm) == {"stop": 0, "length": 0, "abort": 0, "error": 0}


def test_what_ctrl_c_ends_is_counted(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        advance, steps = llm._stepper._advance, []

        def interrupted(batch: Any) -> None:
            if len(steps) == 6:
                raise KeyboardInterrupt
            steps.append(batch)
            advance(batch)

        monkeypatch.setattr(llm._stepper, "_advance", interrupted)
        short = SamplingParams(max_tokens=2, ignore_eos=True)
        long = SamplingParams(n=2, max_tokens=50, ignore_eos=True)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5, 6, 7], [8, 9]], [short, long], use_tqdm=False)
        assert finished(llm) == {"stop": 0, "length": 1, "abort": 2, "error": 0}
        assert values(llm)["vllm:request_generation_tokens"] == (1, 2)


def test_prompts_of_a_model_that_pools(checkpoint: Callable[[str], Path]) -> None:
    options = {"device": "cpu", "threads": 1, "runner": "pooling"}
    with LLM(str(checkpoint("llama")), **options) as llm:
        llm.embed([[5, 6, 7], [8, 9]], use_tqdm=False)
        assert values(llm)["vllm:request_prompt_tokens"] == (2, 5)


def test_every_type_is_read_as_prometheus_has_it() -> None:
    metrics = Metrics("m", stats=EngineStats, info=dict, asleep=lambda: False)
    metrics.requests.observe("request_params_n", 3)
    found = read_metrics(metrics.registry, "vllm:")
    text = metrics.render().decode()
    for metric in found:
        if isinstance(metric, Counter | Gauge):
            assert type(metric.value) is (int if isinstance(metric, Counter) else float)
            name = metric.name + ("_total" if isinstance(metric, Counter) else "")
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(metric.labels.items()))
            (line,) = (line for line in text.splitlines() if line.startswith(f"{name}{{{labels}}}"))
            assert abs(float(line.rsplit(" ", 1)[1]) - metric.value) < 1
    assert {type(metric) for metric in found} == {Counter, Gauge, Histogram}
    assert not [metric for metric in found if not metric.name.startswith("vllm:")]


def test_counters_by_position_are_a_vector() -> None:
    registry = CollectorRegistry()
    counted = Counted("vllm:accepted_per_pos", "By position.", ["engine", "position"], registry=registry)
    for position, count in ((2, 5), (0, 7)):
        counted.labels("0", str(position)).inc(count)
    assert read_metrics(registry, "vllm:") == [Vector("vllm:accepted_per_pos", {"engine": "0"}, [7, 0, 5])]

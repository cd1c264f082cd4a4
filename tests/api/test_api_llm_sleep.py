"""LLM.sleep and wake_up, enqueue and wait_for_completion: the same answers as without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from octavo import LLM, Counter, SamplingParams
from octavo.base.errors import ConfigError, InputError

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def test_sleep_and_queue(checkpoint: Callable[[str], Path]) -> None:
    prompts = ["The quick brown", "fox", "jumps"]
    with LLM(str(checkpoint("llama")), device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, PARAMS, use_tqdm=False)]
        assert llm.wait_for_completion() == []
        names = llm.enqueue(prompts[:2], PARAMS, priority=[0, 1]) + llm.enqueue(prompts[2], [PARAMS], priority=2)
        with pytest.raises(InputError):
            llm.enqueue([[-1]])
        with pytest.raises(InputError, match="priority holds 2 values for 1 prompts"):
            llm.enqueue(prompts[:1], priority=[1, 2])
        with pytest.raises(ConfigError, match="level must be 1 or 2, got 0"):
            llm.sleep(0)
        llm.sleep(level=2)
        with pytest.raises(ConfigError, match="wake_up"):
            llm.generate("x", PARAMS, use_tqdm=False)
        with pytest.raises(ConfigError, match="wake_up"):
            llm.wait_for_completion()
        llm.wake_up()
        llm.wake_up()
        found = llm.wait_for_completion(use_tqdm=False)
        assert [output.request_id for output in found] == names
        assert [output.outputs[0].token_ids for output in found] == expected
        totals = {metric.name: metric.value for metric in llm.get_metrics() if isinstance(metric, Counter)}
        assert totals["vllm:generation_tokens"] == 48  # of both engines
        assert llm.reset_prefix_cache()
        llm.sleep()
    llm.wake_up()
    with pytest.raises(ConfigError, match="closed"):
        llm.sleep()

"""Random requests, each alone and all in a crowd of few blocks and small chunks: the same answers, whatever they ask.

OCTAVO_TEST_REQUESTS sets their number (60), OCTAVO_TEST_SEED what is drawn (0).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, RequestOutput, SamplingParams
from octavo.base.types.output import Logprob
from octavo.base.types.structured import StructuredOutputsParams

REQUESTS = int(os.environ.get("OCTAVO_TEST_REQUESTS", "60"))
SEED = int(os.environ.get("OCTAVO_TEST_SEED", "0"))
BASE: dict[str, Any] = {"max_model_len": 200, "block_size": 8}
CROWDED: dict[str, Any] = {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 48, "max_num_seqs": 9}
WORDS = ["the", "quick", "brown", "fox", " a", " dog", "\n", "42", "{", '"', "é", "日本", " over", " lazy"]
FORMS = [
    StructuredOutputsParams(regex="[a-z]{1,20}"),
    StructuredOutputsParams(choice=["yes", "no", "maybe"]),
    StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
]
# How often a field is given, and its values: lists are chosen from
FIELDS: dict[str, tuple[float, list[Any]]] = {
    "presence_penalty": (0.25, [-1.5, 0.5, 2.0]),
    "frequency_penalty": (0.25, [-1.0, 0.7, 1.9]),
    "repetition_penalty": (0.25, [0.8, 1.1, 1.8]),
    "logprobs": (0.3, [0, 1, 5]),
    "prompt_logprobs": (0.2, [0, 1, 4]),
    "stop": (0.3, [["a"], ["e ", "the"], ["\n", "qu"], [".", "é"]]),
    "include_stop_str_in_output": (0.2, [True]),
    "ignore_eos": (0.2, [True]),
    "min_tokens": (0.2, [1, 2, 5]),
    "logit_bias": (0.15, [{20: 5.0, 31: -100.0}, {17: 100.0}, {40: -3.5, 41: 2.0}]),
    "allowed_token_ids": (0.1, [list(range(5, 60)), list(range(30, 200, 3))]),
    "bad_words": (0.1, [["the"], ["a", " dog"]]),
    "stop_token_ids": (0.2, [list(range(60, 80)), [7, 9, 100]]),
    "structured_outputs": (0.15, FORMS),
}
SAMPLED: dict[str, tuple[float, list[Any]]] = {
    "top_k": (0.4, [1, 2, 10, 50]),
    "top_p": (0.4, [0.1, 0.5, 0.9]),
    "min_p": (0.3, [0.05, 0.3]),
    "n": (0.2, [2, 3]),
}


def draw(rng: random.Random, fields: Mapping[str, tuple[float, list[Any]]]) -> dict[str, Any]:
    return {name: rng.choice(values) for name, (share, values) in fields.items() if rng.random() < share}


def draw_request(rng: random.Random, common: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A prompt, which may begin like others, and a sampling's fields."""
    prompt = rng.choice(["", *common]) + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 15)))
    fields = {"max_tokens": rng.choice([5, 16, 40]), **draw(rng, FIELDS)}
    if rng.random() < 0.5:
        return prompt, {"temperature": 0.0, **fields}
    seeded = {"temperature": rng.choice([0.3, 0.8, 1.5]), "seed": rng.randrange(10**6)}
    return prompt, {**seeded, **fields, **draw(rng, SAMPLED)}


def shown(output: RequestOutput) -> dict[str, Any]:
    """All that an answer says, but for its id, times and log probabilities."""
    said = [(one.index, one.token_ids, one.text, one.finish_reason, one.stop_reason) for one in output.outputs]
    return {"prompt": output.prompt_token_ids, "said": said}


def logprobs(output: RequestOutput) -> list[dict[int, Logprob] | None]:
    """Of the prompt's tokens and of all answers'."""
    return [*(output.prompt_logprobs or []), *(found for one in output.outputs for found in one.logprobs or [])]


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
def test_random_requests(device: str, checkpoint: Callable[[str], Path]) -> None:
    rng = random.Random(SEED)
    common = [" ".join(rng.choice(WORDS) for _ in range(20)) for _ in range(3)]
    asked = [draw_request(rng, common) for _ in range(REQUESTS)]
    base = {"model": str(checkpoint("llama")), "device": device, **BASE}
    with LLM(**base, enable_prefix_caching=False) as llm:
        alone = [llm.generate([prompt], SamplingParams(**fields), use_tqdm=False)[0] for prompt, fields in asked]
    order = rng.sample(range(REQUESTS), REQUESTS)
    with LLM(**base, **CROWDED) as llm:
        params = [SamplingParams(**asked[i][1]) for i in order]
        crowd = dict(zip(order, llm.generate([asked[i][0] for i in order], params, use_tqdm=False), strict=True))
        assert llm._open_engine().stats().num_preemptions > 0, "the pool was to be too small"
        assert any(output.num_cached_tokens for output in crowd.values()), "prefixes were to be shared"
    for i, (request, mine) in enumerate(zip(asked, alone, strict=True)):
        assert shown(crowd[i]) == shown(mine), request
        for found, expected in zip(logprobs(crowd[i]), logprobs(mine), strict=True):
            assert (found is None) == (expected is None), request
            for token, one in (expected or {}).items():
                assert math.isclose((found or {})[token].logprob, one.logprob, abs_tol=2e-3), request

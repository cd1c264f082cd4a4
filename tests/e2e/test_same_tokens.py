"""Every feature with itself switched off: the same greedy (and seeded) tokens, alone and in a crowd of 32."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity.drive import GPUS

from octavo import LLM, AsyncLLM, RequestOutputKind, SamplingParams

CROWD = 32
MODEL = "gemma3"
BASE = {"max_model_len": 96, "block_size": 8, "max_num_seqs": CROWD, "skip_tokenizer_init": True}

# What is switched, against BASE. A pool of 30 blocks holds 2 to 3 of the 32 sequences' ends: most are preempted.
VARIANTS: dict[str, dict[str, Any]] = {
    "no prefix caching": {"enable_prefix_caching": False},
    "no chunking": {"enable_chunked_prefill": False, "max_num_batched_tokens": 96},
    "small chunks": {"max_num_batched_tokens": CROWD},
    "preemption": {"num_gpu_blocks_override": 30},
    "priority": {"scheduling_policy": "priority"},
    "priority and preemption": {"scheduling_policy": "priority", "num_gpu_blocks_override": 30},
    "steps in lockstep": {"async_scheduling": False},
    "lockstep and preemption": {"async_scheduling": False, "num_gpu_blocks_override": 30},
    "one at a time, small chunks": {"max_num_seqs": 1, "max_num_batched_tokens": 7},
}


def prompts() -> list[list[int]]:
    """32 prompts of 1..60 tokens; every second one begins with the same 24 tokens."""
    rng = random.Random(3)
    common = [rng.randrange(5, 250) for _ in range(24)]
    tails = [[rng.randrange(5, 250) for _ in range(rng.randint(1, 36))] for _ in range(CROWD)]
    return [common + tail if i % 2 else tail for i, tail in enumerate(tails)]


def params(i: int, **kind: Any) -> SamplingParams:
    """Greedy for even, seeded sampling for odd prompts."""
    choice = {"temperature": 0.0} if i % 2 == 0 else {"temperature": 0.9, "top_p": 0.95, "seed": i}
    return SamplingParams(max_tokens=16 + i % 9, ignore_eos=True, detokenize=False, **choice, **kind)


def as_prompts(ids: list[list[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": one} for one in ids]


def check(llm: LLM) -> None:
    """The engine's own account of blocks and rows."""
    assert llm._open_engine().call("check")


def run(llm: LLM, ids: list[list[int]], **kind: Any) -> list[list[int]]:
    outputs = llm.generate(as_prompts(ids), [params(i, **kind) for i in range(len(ids))], use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module", params=["cpu", "torch:cpu", *GPUS])
def setup(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[dict[str, Any], list[list[int]]]:
    """Arguments of an LLM, and the tokens of each prompt run alone."""
    arguments = {"model": str(checkpoint(MODEL)), "device": request.param, **BASE}
    ids = prompts()
    with LLM(**{**arguments, "enable_prefix_caching": False, "async_scheduling": False}) as llm:
        alone = [
            llm.generate(as_prompts([one]), params(i), use_tqdm=False)[0].outputs[0].token_ids
            for i, one in enumerate(ids)
        ]
    return arguments, alone


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_in_a_crowd(variant: str, setup: tuple[dict[str, Any], list[list[int]]]) -> None:
    arguments, alone = setup
    with LLM(**{**arguments, **VARIANTS[variant]}) as llm:
        assert run(llm, prompts()) == alone
        assert run(llm, prompts()) == alone  # once more, over a warm prefix cache
        check(llm)
        if "preemption" in variant:
            assert llm._engine.stats().num_preemptions > 0


def test_prefix_hits_and_n(setup: tuple[dict[str, Any], list[list[int]]]) -> None:
    arguments, alone = setup
    with LLM(**arguments) as llm:
        run(llm, prompts())
        outputs = llm.generate(as_prompts(prompts()), [params(i, n=3) for i in range(CROWD)], use_tqdm=False)
        assert any(output.num_cached_tokens for output in outputs)
        assert [output.outputs[0].token_ids for output in outputs] == alone
        for i, output in enumerate(outputs):
            same = output.outputs[1].token_ids == output.outputs[2].token_ids == alone[i]
            assert same == (i % 2 == 0)  # greedy ones agree, sampled ones have seeds of their own
        check(llm)


KINDS: list[dict[str, Any]] = [
    {"presence_penalty": 0.8, "frequency_penalty": 0.3, "logprobs": 3},
    {"repetition_penalty": 1.3, "min_tokens": 6, "stop_token_ids": list(range(60, 120))},
    {"logit_bias": {7: 4.0, 9: 3.0, 11: -50.0}, "allowed_token_ids": list(range(5, 90)), "logprobs": 0},
    {"logprobs": 20, "min_p": 0.02, "top_k": 40},
    {},
]


def test_kinds_of_sampling_in_a_crowd(setup: tuple[dict[str, Any], list[list[int]]]) -> None:
    """Penalties, lists and log probabilities beside each other: tokens as alone, across preemption."""
    arguments, _ = setup
    ids = prompts()[:15]
    wanted = [params(i, **KINDS[i % len(KINDS)]) for i in range(len(ids))]
    with LLM(**arguments, enable_prefix_caching=False) as llm:
        alone = [llm.generate(as_prompts([one]), wanted[i], use_tqdm=False)[0].outputs[0] for i, one in enumerate(ids)]
    assert len({output.finish_reason for output in alone}) == 2  # some of the stop ids are met, after min_tokens
    with LLM(**{**arguments, **VARIANTS["preemption"]}) as llm:
        crowd = [output.outputs[0] for output in llm.generate(as_prompts(ids), wanted, use_tqdm=False)]
        assert llm._engine.stats().num_preemptions > 0
    for mine, other, asked in zip(crowd, alone, wanted, strict=True):
        assert mine.token_ids == other.token_ids
        assert (mine.logprobs is None) == (asked.logprobs is None)
        for found, expected, token in zip(mine.logprobs or [], other.logprobs or [], mine.token_ids, strict=False):
            assert len(found) in (asked.logprobs, asked.logprobs + 1)
            assert found[token].logprob == pytest.approx(expected[token].logprob, abs=1e-2)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "bfloat16"),
        ("cpu", "int8_per_token_head"),
        *((device, dtype) for device in ("torch:cpu", *GPUS) for dtype in ("bfloat16", "fp8")),
    ],
)
def test_rounded_caches(device: str, dtype: str, checkpoint: Callable[[str], Path]) -> None:
    """K and V are rounded once, when they are written: chunks, hits and preemption bring the same tokens."""
    arguments = {"model": str(checkpoint(MODEL)), "device": device, "kv_cache_dtype": dtype, **BASE}
    ids = prompts()[:12]
    with LLM(**arguments, enable_prefix_caching=False) as llm:
        outputs = [llm.generate(as_prompts([one]), params(i), use_tqdm=False)[0] for i, one in enumerate(ids)]
    alone = [output.outputs[0].token_ids for output in outputs]
    for variant in ("small chunks", "preemption", "one at a time, small chunks"):
        with LLM(**{**arguments, **VARIANTS[variant]}) as llm:
            assert run(llm, ids) == alone
            assert run(llm, ids) == alone  # once more, over a warm prefix cache
            check(llm)


def test_child_process_and_streaming(setup: tuple[dict[str, Any], list[list[int]]]) -> None:
    arguments, alone = setup

    async def one(llm: AsyncLLM, i: int, ids: list[int]) -> list[int]:
        kind = RequestOutputKind.DELTA if i % 3 else RequestOutputKind.CUMULATIVE
        tokens: list[int] = []
        async for output in llm.generate(ids, params(i, output_kind=kind), request_id=f"r{i}"):
            new = output.outputs[0].token_ids
            tokens = tokens + new if kind is RequestOutputKind.DELTA else list(new)
        return tokens

    async def everything() -> list[list[int]]:
        llm = AsyncLLM(**arguments)
        await llm.start()
        try:
            return list(await asyncio.gather(*(one(llm, i, ids) for i, ids in enumerate(prompts()))))
        finally:
            await llm.close(5.0)

    assert asyncio.run(everything()) == alone

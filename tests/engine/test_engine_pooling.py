"""Requests for vectors in the engine: whole prompts in one step, results as bytes, faults that stay in their row."""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import pytest

from octavo.base.config.config import CacheConfig, SchedulerConfig
from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.output import Output
from octavo.base.types.plan import StepPlan, StepResult
from octavo.base.types.pooling import RowPooling
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams
from octavo.engine.engine import Engine

MOST = 32


class Summing:
    """An executor whose vector of a prompt is the sum of its tokens; one that begins with 13 fails."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self.results: deque[StepResult] = deque()
        self.forget: set[int] = set()

    def begin(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        tokens = {begin.row: begin.token_ids for begin in plan.begins}
        for step in plan.rows:
            assert (step.start, step.count, step.sample) == (0, len(tokens[step.row]), True)
        self.results.append(
            StepResult(
                step=plan.step,
                tokens=[0] * len(plan.rows),
                pooled={row: struct.pack("<f", sum(ids)) for row, ids in tokens.items() if ids[0] != 7},
                failed={row: "not finite" for row, ids in tokens.items() if ids[0] == 13},
            )
        )

    def finish(self) -> StepResult:
        return self.results.popleft()

    def call(self, name: str, **arguments: Any) -> Any:
        raise UnsupportedError(name)

    def close(self) -> None:
        return


def run(prompts: list[list[int]]) -> tuple[dict[str, Output], Engine, Summing]:
    executor = Summing()
    scheduler = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=MOST, enable_chunked_prefill=False)
    cache = CacheConfig(block_size=8, enable_prefix_caching=False)
    engine = Engine(executor, scheduler=scheduler, cache=cache, num_blocks=16, max_model_len=MOST)
    for i, prompt in enumerate(prompts):
        engine.add(
            Request(
                request_id=str(i),
                prompt_token_ids=prompt,
                params=SamplingParams(),
                max_tokens=0,
                seed=0,
                pooling=RowPooling(),
            )
        )
    found: dict[str, Output] = {}
    while engine.has_work():
        for output in engine.step():
            assert output.request_id not in found
            found[output.request_id] = output
        engine.check()
    return found, engine, executor


def test_every_prompt_is_one_whole_step_within_the_limits() -> None:
    prompts = [[1] * n for n in (32, 3, 20, 9, 4, 4, 4, 4, 4, 31)]  # as long as the context, too
    found, engine, executor = run(prompts)
    for i, prompt in enumerate(prompts):
        output = found[str(i)]
        assert (output.finish_reason, output.pooled, output.token_ids) == ("stop", struct.pack("<f", len(prompt)), [])
        assert output.times is not None
        assert output.times.last_token >= output.times.scheduled >= output.times.arrival > 0
    assert all(plan.num_tokens <= MOST and len(plan.rows) <= 4 for plan in executor.plans)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.kv_usage) == (sum(map(len, prompts)), 0, 0.0)


def test_a_failed_row_and_a_missing_vector_end_alone() -> None:
    found, _, _ = run([[1, 2], [13, 1], [7, 7], [3]])
    assert (found["1"].finish_reason, found["1"].error) == ("error", "not finite")
    assert found["2"].finish_reason == "error"
    assert [found[name].pooled for name in ("0", "3")] == [struct.pack("<f", 3)] * 2


def test_a_prompt_above_the_context_is_refused() -> None:
    with pytest.raises(InputError, match="do not fit"):
        run([[1] * (MOST + 1)])

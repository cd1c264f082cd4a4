"""What the engine itself takes of a step: sequences by the hundred over an executor that does nothing.

    python benchmarks/engine_cost.py [--seqs 1,64,256] [--steps 400]

One JSON line each: microseconds a step of Engine.step alone, in which every sequence gets a token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque

from octavo.base.config.config import CacheConfig, SchedulerConfig
from octavo.base.types.plan import StepPlan, StepResult
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams
from octavo.engine.engine import Engine


class IdleExecutor:
    """Answers every plan at once: token 7 for each row."""

    def __init__(self) -> None:
        self._plans: deque[StepPlan] = deque()

    def begin(self, plan: StepPlan) -> None:
        """Keep the plan."""
        self._plans.append(plan)

    def mask(self, masks: dict[int, bytes]) -> None:
        """No row is masked."""

    def finish(self) -> StepResult:
        """As many tokens as rows sample."""
        plan = self._plans.popleft()
        return StepResult(step=plan.step, tokens=[7] * sum(row.sample for row in plan.rows))

    def call(self, name: str, **arguments: object) -> None:
        """Nothing is known."""

    def close(self) -> None:
        """Nothing is held."""


def measure(seqs: int, steps: int) -> float:
    """Median microseconds of a step."""
    engine = Engine(
        IdleExecutor(),
        scheduler=SchedulerConfig(max_num_seqs=seqs, max_num_batched_tokens=64 * seqs),
        cache=CacheConfig(block_size=16, enable_prefix_caching=False),
        num_blocks=seqs * (steps + 200) // 16 + seqs,
        max_model_len=steps + 200,
    )
    params = SamplingParams(max_tokens=steps + 50, ignore_eos=True, temperature=0.0)
    for i in range(seqs):
        prompt = list(range(1, 65))
        engine.add(
            Request(request_id=str(i), prompt_token_ids=prompt, params=params, max_tokens=params.max_tokens, seed=i)
        )
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[20:]) * 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqs", default="1,64,256")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    for seqs in map(int, args.seqs.split(",")):
        print(json.dumps({"seqs": seqs, "us_a_step": round(measure(seqs, args.steps), 1)}), flush=True)


if __name__ == "__main__":
    main()

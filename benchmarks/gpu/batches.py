"""One sequence and decode steps by batch, through `LLM.generate` of any engine with vLLM's API; one JSON line.

    python benchmarks/gpu/batches.py MODEL_FOLDER [--engine octavo|vllm] [--batch 1,8,32,64,128,256] [--llm-args JSON]

Random weights, prompts of 512 random tokens, greedy. Each batch runs three times before it is timed, so that nothing is
compiled or captured in what is: a call for 136 tokens less one for 8, over 128.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

PROMPT, SHORT, STEPS = 512, 8, 128


class Timer:
    """An engine, and calls of it timed."""

    def __init__(self, engine: Any, model: Path, args: dict[str, Any]) -> None:
        common = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": 4096, "seed": 0}
        self._engine, self._random = engine, random.Random(0)
        self._llm = engine.LLM(model=str(model), enable_prefix_caching=False, **{**common, **args})

    def seconds(self, batch: int, tokens: int, length: int = PROMPT) -> float:
        """Of `tokens` more for each of `batch` fresh prompts."""
        prompts = [{"prompt_token_ids": [self._random.randrange(10000) for _ in range(length)]} for _ in range(batch)]
        sampling = self._engine.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=tokens, detokenize=False)
        begin = time.perf_counter()
        self._llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - begin

    def step_ms(self, batch: int, length: int = PROMPT) -> float:
        """Milliseconds of a decode step."""
        short = self.seconds(batch, SHORT, length)
        return (self.seconds(batch, SHORT + STEPS, length) - short) / STEPS * 1e3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="octavo")
    parser.add_argument("--batch", type=lambda text: list(map(int, text.split(","))), default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llm-args", type=json.loads, default={})
    args = parser.parse_args()
    timer = Timer(importlib.import_module(args.engine), args.model, args.llm_args)
    steps = {}
    for batch in args.batch:
        for tokens in (SHORT, SHORT, 3 * SHORT):
            timer.seconds(batch, tokens)
        steps[batch] = round(statistics.median(timer.step_ms(batch) for _ in range(args.rounds)), 3)
    alone = sorted(round(timer.step_ms(1, 128), 4) for _ in range(args.rounds))
    line = {"engine": args.engine, "model": args.model.name, "work": "batches", "llm_args": args.llm_args}
    print(json.dumps({**line, "step_ms": steps, "one_sequence_ms": alone}))


if __name__ == "__main__":
    main()

"""Octavo through its public API: seconds of a prefill and of decode steps, with LLM's defaults."""

from __future__ import annotations

import itertools
import time
from typing import Any

import octavo
from octavo import LLM, SamplingParams
from octavo.backends.cpu.native import set_variant
from peers.rows import SETTLE


class OctavoSide:
    """The engine that a worker measures. options: further arguments of LLM; `variant`: of the kernels."""

    def __init__(self, path: str, *, threads: int, options: dict[str, Any]) -> None:
        self._options = options
        variant = options.get("variant", "auto")
        if variant != "auto" and not set_variant(variant):
            raise SystemExit(f"this processor does not run {variant}")
        self._llm = LLM(path, threads=threads, **{name: options[name] for name in options if name != "variant"})
        self._seeds = itertools.count()
        self._prompts: dict[tuple[int, int], list[list[int]]] = {}

    def about(self) -> dict[str, Any]:
        return {"octavo": octavo.__version__, "options": self._options}

    def prefill(self, tokens: int) -> float:
        """Seconds from the prompt's ids to the first token; no prompt begins as one before it did."""
        return self._seconds([self._prompt(tokens)], 1)

    def decode(self, sequences: int, context: int, steps: int) -> float:
        """Seconds of `steps` steps of every sequence, after `context` tokens each and the steps to settle.

        Two calls are timed, one `steps` tokens longer than the other, and subtracted. Their prompts are in the prefix
        cache, so what is subtracted is short and its noise is small.
        """
        key = (sequences, context)
        if key not in self._prompts:
            self._prompts[key] = [self._prompt(context) for _ in range(sequences)]
            self._seconds(self._prompts[key], SETTLE)
        prompts = self._prompts[key]
        short = self._seconds(prompts, SETTLE)
        return self._seconds(prompts, SETTLE + steps) - short

    def close(self) -> None:
        self._llm.close()

    def _prompt(self, tokens: int) -> list[int]:
        seed = next(self._seeds)
        return [100 + (seed * 7919 + position * 17) % 9000 for position in range(tokens)]

    def _seconds(self, prompts: list[list[int]], new: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        batch = [{"prompt_token_ids": prompt} for prompt in prompts]
        start = time.perf_counter()
        outputs = self._llm.generate(batch, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        if any(len(output.outputs[0].token_ids) != new for output in outputs):
            raise SystemExit(f"octavo did not make {new} tokens of every prompt")
        return seconds

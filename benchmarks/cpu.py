"""Start, decode and prefill speed of one model on this machine: one JSON line, medians of three."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

from octavo import LLM, SamplingParams, __version__

REPEAT = 3


def seconds(llm: LLM, prompts: int, length: int, new: int, seed: int) -> float:
    """Wall time of `prompts` prompts of `length` tokens, `new` tokens each; every seed gives other prompts."""
    starts = [seed * 7919 + i * 131 for i in range(prompts)]
    batch = [{"prompt_token_ids": [(start + j * 17) % 9000 + 100 for j in range(length)]} for start in starts]
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(batch, params, use_tqdm=False)
    return time.perf_counter() - start


def median(llm: LLM, prompts: int, length: int, new: int) -> float:
    return statistics.median(seconds(llm, prompts, length, new, seed) for seed in range(REPEAT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--activation-dtype", default="float32")
    arguments = parser.parse_args()
    start = time.perf_counter()
    llm = LLM(
        arguments.model,
        device=arguments.device,
        activation_dtype=arguments.activation_dtype,
        max_model_len=1024,
        enable_prefix_caching=False,
    )
    figures: dict[str, Any] = {"load_s": round(time.perf_counter() - start, 2)}
    seconds(llm, 1, 16, 8, REPEAT)
    for count in (1, 8, 32):
        figures[f"decode_{count}_tok_s"] = round(count * 64 / median(llm, count, 16, 64), 1)
    figures["prefill_512_tok_s"] = round(512 / median(llm, 1, 512, 1), 1)
    about = {"octavo": __version__, "model": arguments.model, "device": arguments.device}
    about["activation_dtype"] = arguments.activation_dtype
    print(json.dumps({**about, "machine": platform.machine(), **figures}))


if __name__ == "__main__":
    main()

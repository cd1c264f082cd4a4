"""What constrained sequences add to a step: a batch of 32, of which none, one, or all follow a JSON Schema.

    python benchmarks/structured_cost.py MODEL [--device auto] [--batch 32] [--steps 60] [--rounds 5]

One JSON line a count: the median milliseconds of a step and its share above that of a free batch, measured in turns;
milliseconds of masks are the engine's own, which run while the device works. Tokens per step are the same throughout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from typing import Any

from octavo import LLM, SamplingParams, StructuredOutputsParams

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}


def steps(llm: LLM, engine: Any, constrained: int, batch: int, count: int) -> list[float]:
    """Seconds of each step in which the whole batch decodes."""
    form = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    for i in range(batch):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=count + 40,
            ignore_eos=True,
            structured_outputs=form if i < constrained else None,
        )
        prompt = llm.get_tokenizer().encode(f"{i}: a list of people as JSON, all of them with an age:")
        engine.add(make(llm, prompt, params))
    found = []
    while len(engine.scheduler.running) < batch or any(s.num_tokens == s.num_prompt for s in engine.scheduler.running):
        engine.step()
    for _ in range(count):
        start = time.perf_counter()
        engine.step()
        found.append(time.perf_counter() - start)
    engine.abort(list(engine._requests))
    while engine.has_work():
        engine.step()
    return found[5:]


_numbers = itertools.count()


def make(llm: LLM, prompt: list[int], params: SamplingParams) -> Any:
    """A Request."""
    from octavo.api.requests import make_request

    return make_request(prompt, params, limits=llm._limits, request_id=f"bench-{next(_numbers)}")


def main() -> None:
    """Read the arguments, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with LLM(args.model, device=args.device, max_num_seqs=args.batch, max_model_len=512) as llm:
        engine = llm._open_client()._engine
        counts = (0, 1, args.batch)
        times: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(args.rounds + 1):
            for count in counts:
                times[count].append(statistics.median(steps(llm, engine, count, args.batch, args.steps)))
        free = statistics.median(times[0][1:])
        for count in counts:
            step = statistics.median(times[count][1:])
            # beside the free batch of the same round, as a machine's clock drifts
            ratios = [mine / theirs for mine, theirs in zip(times[count][1:], times[0][1:], strict=True)]
            share = statistics.median(ratios) - 1
            print(
                json.dumps(
                    {
                        "batch": args.batch,
                        "constrained": count,
                        "step_ms": round(step * 1e3, 2),
                        "free_ms": round(free * 1e3, 2),
                        "added_percent": round(100 * share, 2),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()

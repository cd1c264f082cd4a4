"""What constrained sequences add to a step: a batch of 32, of which none, one, or all follow a JSON Schema.

    python benchmarks/structured_cost.py MODEL [--device auto] [--batch 32] [--steps 40] [--rounds 5]

One JSON line a count: milliseconds of a step (the lower quartile, as other programs only ever add) and what is above a
free batch's. They are measured in turns; each step gives each sequence one token.
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
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with LLM(args.model, device=args.device, max_num_seqs=args.batch, max_model_len=512) as llm:
        engine = llm._open_client()._engine
        counts = (0, 1, args.batch)
        times: dict[int, list[float]] = {count: [] for count in counts}
        for turn in range(args.rounds + 1):
            for count in counts:
                found = steps(llm, engine, count, args.batch, args.steps)
                times[count] += found if turn else []  # the first round warms up
        lower = {count: statistics.quantiles(times[count], n=4)[0] for count in counts}
        for count in counts:
            added = lower[count] - lower[0]
            line = {
                "batch": args.batch,
                "constrained": count,
                "step_ms": round(lower[count] * 1e3, 2),
                "added_ms": round(added * 1e3, 2),
                "added_percent": round(100 * added / lower[0], 2),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""What constrained sequences add to a step: a batch of 32, of which none or all (some) follow a JSON Schema, in turns.

    python benchmarks/structured_cost.py MODEL [--device auto] [--threads N] [--batch 32] [--constrained N] [--pairs 12]

A pair is a free and a constrained batch, one right after the other, each first in every other pair; of each the median
of its steps, in which every sequence gets one token. One JSON line: medians over the pairs, and quartiles of what a
constrained batch adds, in percent. wall: bears little beside it. process: processor time of all threads, the kernels'
too; with --threads 1 none of them waits busily, so that it bears a machine that is not alone. engine: of the thread
that plans, follows grammars and, on less than four cores, computes masks. parts: of that, in constrained steps, what
following the tokens and computing the masks take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from octavo import LLM, SamplingParams, StructuredOutputsParams
from octavo.api.requests import make_request
from octavo.engine.grammar.compiler import Compiler
from octavo.engine.grammar.llguidance import LlguidanceGrammar

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
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "process": time.process_time,
    "engine": time.thread_time,
}
PARTS: dict[str, list[float]] = {"take": [], "masks": []}
_numbers = itertools.count()


def timed(owner: Any, name: str, part: str) -> None:
    """Count the processor time of a method's calls."""
    inner = getattr(owner, name)

    def call(*args: Any) -> Any:
        start = time.thread_time()
        try:
            return inner(*args)
        finally:
            PARTS[part].append(time.thread_time() - start)

    setattr(owner, name, call)


def steps(llm: LLM, constrained: int, batch: int, count: int) -> dict[str, float]:
    """Median milliseconds of the steps in which the whole batch decodes, by clock."""
    engine = llm._open_engine()
    for i in range(batch):
        form = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True) if i < constrained else None
        params = SamplingParams(temperature=0.0, max_tokens=count + 40, ignore_eos=True, structured_outputs=form)
        prompt = llm.get_tokenizer().encode(f"{i}: a list of people as JSON, all of them with an age:")
        engine.add(make_request(prompt, params, limits=llm._limits, request_id=f"bench-{next(_numbers)}"))
    running = engine.scheduler.running
    while len(running) < batch or any(seq.num_tokens < seq.num_prompt + 3 for seq in running):
        engine.step()
    for part in PARTS.values():
        part.clear()
    found: dict[str, list[float]] = {name: [] for name in CLOCKS}
    for _ in range(count):
        starts = {name: clock() for name, clock in CLOCKS.items()}
        engine.step()
        for name, clock in CLOCKS.items():
            found[name].append(1e3 * (clock() - starts[name]))
    parts = {name: 1e3 * sum(times) / count for name, times in PARTS.items()}
    engine.abort(list(engine._requests))
    while engine.has_work():
        engine.step()
    return {name: statistics.median(times) for name, times in found.items()} | parts


def main() -> None:
    """Read the arguments, print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--constrained", type=int, help="sequences of the batch that follow the schema; all if not given"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=12)
    args = parser.parse_args()
    options = {} if args.threads is None else {"threads": args.threads}
    many = args.batch if args.constrained is None else args.constrained
    timed(LlguidanceGrammar, "take", "take")
    timed(Compiler, "masks", "masks")
    pairs: list[dict[bool, dict[str, float]]] = []
    with LLM(args.model, device=args.device, max_num_seqs=args.batch, max_model_len=512, **options) as llm:
        for turn in range(args.pairs + 1):
            order = (False, True) if turn % 2 else (True, False)
            pairs.append({masked: steps(llm, many if masked else 0, args.batch, args.steps) for masked in order})
    pairs = pairs[1:]  # the first warms up
    line: dict[str, Any] = {"batch": args.batch, "constrained": many, "pairs": len(pairs)}
    for name in CLOCKS:
        added = [100 * (pair[True][name] / pair[False][name] - 1) for pair in pairs]
        low, middle, high = statistics.quantiles(added, n=4)
        line[name] = {
            "free_ms": round(statistics.median(pair[False][name] for pair in pairs), 3),
            "constrained_ms": round(statistics.median(pair[True][name] for pair in pairs), 3),
            "added_percent": round(middle, 2),
            "quartiles": [round(low, 2), round(high, 2)],
        }
    line["parts"] = {name: round(statistics.median(pair[True][name] for pair in pairs), 3) for name in PARTS}
    print(json.dumps(line))


if __name__ == "__main__":
    main()

"""A process with one engine and one model: a call in JSON a line on stdin, its result in JSON a line on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module

SIDES = {"octavo": ("peers.octavo_side", "OctavoSide"), "llama.cpp": ("peers.llama_side", "LlamaSide")}
CALLS = ("about", "prefill", "decode")


def pin(threads: int) -> None:
    """Keep this process to the first `threads` cores it may use, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--options", default="{}")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever an engine prints is no answer
    pin(arguments.threads)
    module, name = SIDES[arguments.side]
    side = getattr(import_module(module), name)(
        arguments.model, threads=arguments.threads, options=json.loads(arguments.options)
    )
    for line in sys.stdin:
        call, *values = json.loads(line)
        if call not in CALLS:
            raise SystemExit(f"{call!r} is none of {', '.join(CALLS)}")
        print(json.dumps(getattr(side, call)(*values)), file=answers, flush=True)
    side.close()


if __name__ == "__main__":
    main()

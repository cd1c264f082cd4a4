"""`octavo bench throughput|latency|startup|serve`: flags by vLLM's names in; a table, a JSON file and a chart out."""

from __future__ import annotations

import difflib
from importlib import import_module

from octavo.base.errors import ConfigError, UnsupportedError

BENCHMARKS: dict[str, str] = {
    "throughput": "Many prompts as one batch in this process: requests and tokens a second",
    "latency": "One batch over and over: seconds until it is done",
    "startup": "New processes, cold and warm: seconds until the model is ready and until its first token",
    "serve": "A running server under load: time to first token, time between tokens, throughput",
}
ELSEWHERE = {
    "sweep": "call octavo bench serve or throughput in a loop of your shell, each with a result file of its own",
    "mm-processor": "only text is supported",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark named first; its exit code. SystemExit after --help."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        raise SystemExit(0 if arguments else 2)
    if name in ELSEWHERE:
        raise UnsupportedError(f"bench {name} is not supported: {ELSEWHERE[name]}", param=name)
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.65)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(BENCHMARKS)}"
        raise ConfigError(f"unknown benchmark {name!r}; {hint}", param=name)
    return int(import_module(f"octavo.cli.bench.{name}").main(arguments[1:]))


def _help() -> str:
    lines = [
        "usage: octavo bench BENCHMARK ...",
        "",
        "Measures speed; names of flags and result fields are vLLM's.",
        "",
    ]
    lines += [f"  {name:<12}{text}" for name, text in BENCHMARKS.items()]
    return "\n".join([*lines, "", "octavo bench BENCHMARK --help lists its options."])

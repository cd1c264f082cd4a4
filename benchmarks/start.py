"""In: a model's name. Out: seconds from exec to the first token, and memory then, of each way to start; JSON.

help: `octavo --help` to its end. complete: `octavo complete` to its first text. llm: a script that makes one token.
serve: `octavo serve` until the first token of a streamed request that is sent as soon as the server says Ready.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "The capital of France is"
SCRIPT = """
import sys
from octavo import LLM, SamplingParams
llm = LLM(sys.argv[1], activation_dtype=sys.argv[2])
llm.generate(sys.argv[3], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
print("first", flush=True)
sys.stdin.read()
"""
LIMIT_S = 120.0
FIELDS = {"Rss": "rss_mb", "Pss": "pss_mb", "Anonymous": "anonymous_mb", "Pss_Anon": "", "Pss_File": ""}

Figures = dict[str, float]


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        for child in children.read_text().split():
            found += _tree(int(child))
    return found


def memory(root: int) -> Figures:
    """MB of all processes of the tree together; peak_mb is the sum of each one's own peak. {} where there is no /proc.

    Pages that processes share count once for each in rss_mb, once in all in pss_mb.
    """
    total: Figures = {}
    if not Path("/proc/self/smaps_rollup").exists():
        return total
    for pid in _tree(root):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text() + Path(f"/proc/{pid}/status").read_text()
        for line in lines.splitlines():
            name, _, rest = line.partition(":")
            shown = {"VmHWM": "peak_mb"}.get(name, FIELDS.get(name, ""))
            if shown:
                total[shown] = round(total.get(shown, 0) + int(rest.split()[0]) / 1024, 1)
    return total


def read_until(process: subprocess.Popen[bytes], wanted: Callable[[bytes], bool]) -> bytes:
    """What the process has written once that is enough. Raises RuntimeError where it ends or takes too long."""
    if process.stdout is None:
        raise RuntimeError("the process has no pipe")
    text, end = b"", time.perf_counter() + LIMIT_S
    while not wanted(text):
        if not select.select([process.stdout], [], [], max(0.0, end - time.perf_counter()))[0]:
            raise RuntimeError(f"nothing came for {LIMIT_S} s")
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            raise RuntimeError(f"the process ended with {process.wait()} after {text!r}")
        text += part
    return text


def spawn(
    arguments: list[str], environment: dict[str, str], *, stdin: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def measure_help(_model: str, _dtype: str, environment: dict[str, str]) -> Figures:
    start = time.perf_counter()
    with spawn(["-m", "octavo.cli", "--help"], environment) as process:
        process.communicate()
    return {"seconds": time.perf_counter() - start}


def measure_complete(model: str, dtype: str, environment: dict[str, str]) -> Figures:
    given = ["--activation-dtype", dtype, "--temperature", "0", "--max-tokens", "200", "--ignore-eos"]
    return _measure(["-m", "octavo.cli", "complete", model, PROMPT, *given], environment, stdin=subprocess.DEVNULL)


def measure_llm(model: str, dtype: str, environment: dict[str, str]) -> Figures:
    return _measure(["-c", SCRIPT, model, dtype, PROMPT], environment)


def _measure(arguments: list[str], environment: dict[str, str], *, stdin: int = subprocess.PIPE) -> Figures:
    start = time.perf_counter()
    with spawn(arguments, environment, stdin=stdin) as process:
        read_until(process, bool)
        figures = {"seconds": time.perf_counter() - start, **memory(process.pid)}
        process.communicate()
    return figures


def measure_serve(model: str, dtype: str, environment: dict[str, str]) -> Figures:
    start = time.perf_counter()
    arguments = ["-m", "octavo.cli", "serve", model, "--port", "0", "--activation-dtype", dtype]
    with spawn(arguments, environment) as process:
        text = read_until(process, lambda text: b"Ready: http" in text and text.endswith(b"\n"))
        ready = time.perf_counter() - start
        address = text.decode().partition("Ready: ")[2].split()[0]
        body = json.dumps({"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "stream": True}).encode()
        request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            answer.readline()
        figures = {"seconds": time.perf_counter() - start, "ready_s": ready, **memory(process.pid)}
        process.terminate()
    return figures


WAYS = {"help": measure_help, "complete": measure_complete, "llm": measure_llm, "serve": measure_serve}


def medians(runs: list[Figures]) -> Figures:
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--activation-dtype", default="auto")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS), help="which of " + ", ".join(WAYS))
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "model": Path(arguments.model).name,
        "activation_dtype": arguments.activation_dtype,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "repeat": arguments.repeat,
    }
    given = (arguments.model, arguments.activation_dtype)
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, OCTAVO_CACHE=f"{folder}/cache", PYTHONPYCACHEPREFIX=f"{folder}/compiled")
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
        for way in arguments.ways.split(","):
            WAYS[way](*given, environment)
            if way != "help":
                empty = dict(environment, OCTAVO_CACHE=f"{folder}/{way}")
                report[f"{way}_first"] = medians([WAYS[way](*given, empty)])
            report[way] = medians([WAYS[way](*given, environment) for _ in range(arguments.repeat)])
        kept = [file.stat().st_size for file in Path(folder, "cache").rglob("*") if file.is_file()]
        report["cache_mb"] = round(sum(kept) / 2**20, 1)
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

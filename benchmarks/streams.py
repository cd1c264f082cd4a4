"""Many streams over HTTP at once: tokens a second, and the times between tokens that their clients see.

    python benchmarks/streams.py MODEL [--streams 256] [--clients 8] [--requests 1024] [--rounds 2] [--length 562]
        [--range-ratio 0.82] [--serve "--load-format dummy"]

`octavo serve MODEL`, and `octavo bench serve` in as many processes as --clients says, each with its share of streams
and requests, all begun at once: one client alone may take longer for a token than the server. Prompts
and outputs have --length tokens in the middle, by --range-ratio less and more. One JSON line a round: the first meets
graphs and kernels for the first time. Gaps are of all clients together; p99_ratio: the 99th percentile over the median.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHARES = (50, 95, 99)
LIMIT_S = 600.0
OCTAVO = [sys.executable, "-m", "octavo.cli"]


@contextmanager
def server(model: str, streams: int, flags: str) -> Iterator[str]:
    """The address of a server that is ready; RuntimeError if it ends before."""
    options = ["--port", "0", "--max-num-seqs", str(streams), "--uvicorn-log-level", "warning", *flags.split()]
    command = [*OCTAVO, "serve", model, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://[^\s;]+", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError(f"{' '.join(command)} did not start")
            wait_until_ready(found[0], process)
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)


def wait_until_ready(address: str, process: subprocess.Popen[str]) -> None:
    """Until /readyz says so."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=10):
                return
        except urllib.error.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"the server at {address} did not become ready")


def run_round(address: str, number: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each client wrote."""
    each = {
        "--base-url": address, "--num-prompts": args.requests // args.clients, "--random-range-ratio": args.range_ratio,
        "--max-concurrency": args.streams // args.clients, "--random-input-len": args.length,
        "--random-output-len": args.length, "--tokenizer": args.model,
    }  # fmt: skip
    flags = [str(part) for pair in each.items() for part in pair]
    flags += ["--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.json" for i in range(args.clients)]
        clients = []
        for i, path in enumerate(paths):
            own = ["--seed", str(number * args.clients + i), "--result-dir", folder, "--result-filename", path.name]
            clients.append(subprocess.Popen([*OCTAVO, "bench", "serve", *flags, *own], stdout=subprocess.DEVNULL))
        if any(code != 0 for code in [client.wait() for client in clients]):
            raise RuntimeError("requests failed")
        return [json.loads(path.read_text()) for path in paths]


def sum_up(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One line; a gap that held several tokens counts once. Clients that ended early thin the end of a round out."""
    gaps = sorted(gap for result in results for request in result["itls"] for gap in request)
    firsts = sorted(first for result in results for first in result["ttfts"])
    times = {f"p{share}_ms": round(1e3 * gaps[int(share / 100 * (len(gaps) - 1))], 2) for share in SHARES}
    return {
        "completed": sum(result["completed"] for result in results),
        "tokens_a_second": round(sum(result["output_throughput"] for result in results)),
        **times,
        "p99_ratio": round(times["p99_ms"] / times["p50_ms"], 2),
        "first_ms": round(1e3 * firsts[len(firsts) // 2], 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=256, help="at a time, of all clients")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1024, help="a round, of all clients")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--length", type=int, default=562, help="tokens of a prompt and of an output, in the middle")
    parser.add_argument("--range-ratio", type=float, default=0.82)
    parser.add_argument("--serve", default="", help="further flags of octavo serve")
    args = parser.parse_args(arguments)
    if min(args.streams, args.requests) < args.clients:
        parser.error("every client needs a stream and a request")
    with server(args.model, args.streams, args.serve) as address:
        for number in range(args.rounds):
            line = {"round": number + 1, "streams": args.streams, "clients": args.clients}
            print(json.dumps(line | sum_up(run_round(address, number, args))), flush=True)


if __name__ == "__main__":
    main()

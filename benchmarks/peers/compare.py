"""Two engines and a model file in; samples of each piece of work out, taken in turn, each engine in its own process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from peers.calm import Calm
from peers.rows import Work

SIDES = ("octavo", "llama.cpp")
Samples = dict[str, list[float]]  # by side, tokens a second


class Worker:
    """The process of one side; the others sleep while it answers. tree: where octavo is, if not in Python's path."""

    def __init__(
        self, side: str, model: Path, *, threads: int, options: Mapping[str, Any], tree: Path | None = None
    ) -> None:
        self._side = side
        places = [
            str(Path(__file__).parents[1]),
            *([str(tree.resolve())] if tree else []),
            os.environ.get("PYTHONPATH", ""),
        ]
        place = os.pathsep.join(places).rstrip(os.pathsep)
        command = [sys.executable, "-m", "peers.worker", side, str(model.resolve()), "--threads", str(threads)]
        self._process = subprocess.Popen(
            [*command, "--options", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": place},
            cwd=places[0],  # which comes before PYTHONPATH, and may be some tree's root
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, *message: Any) -> Any:
        """A method's name and arguments; its result. Exits where the process died."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit("a worker needs its pipes")
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._side} ended with {self._process.wait()} at {message}; its words are above")
        return json.loads(line)

    def speed(self, work: Work) -> float:
        """Tokens a second, once."""
        values = [work.context] if work.kind == "prefill" else [work.sequences, work.context, work.steps]
        return work.tokens / self.call(work.kind, *values)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()  # its input ends, and so does it


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> Samples:
    """Every side once to warm up, then A B A B: one sample a side and round."""
    samples: Samples = {name: [] for name in sides}
    for measure in sides.values():
        measure()
    for _ in range(rounds):
        for name, measure in sides.items():
            samples[name].append(measure())
    return samples


def medians(samples: Samples) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


class Pair:
    """Both engines with one model. calm: when their samples are taken."""

    def __init__(self, model: Path, *, threads: int, octavo_options: Mapping[str, Any], calm: Calm) -> None:
        self._calm = calm
        options: dict[str, Mapping[str, Any]] = {"octavo": octavo_options, "llama.cpp": {}}
        self._stack = ExitStack()
        self._workers = {
            side: self._stack.enter_context(Worker(side, model, threads=threads, options=options[side]))
            for side in SIDES
        }

    def measure(self, work: Work, rounds: int) -> Samples:
        def side(worker: Worker) -> Callable[[], float]:
            return lambda: self._calm.measure(lambda: worker.speed(work))

        return alternate({name: side(worker) for name, worker in self._workers.items()}, rounds)

    def about(self) -> dict[str, Any]:
        return {side: worker.call("about") for side, worker in self._workers.items()}

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

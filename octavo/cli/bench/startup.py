"""`octavo bench startup MODEL`: new processes that load the model; seconds to ready and to the first token out.

cold: an empty OCTAVO_CACHE, and the model's files dropped from the system's page cache. warm: both filled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo.api.build import locate
from octavo.api.log import set_up_logging
from octavo.base.config.config import EngineConfig
from octavo.base.errors import ConfigError
from octavo.cli import INTERRUPTED
from octavo.cli.bench import plot
from octavo.cli.bench.figures import WIDTH, heading, mean, note_interrupt, percentiles, progress, write_json
from octavo.cli.bench.foreign import OFFLINE
from octavo.cli.bench.options import OutputOptions, StartupOptions, add_struct, take_struct
from octavo.cli.bench.start_once import FIRST_TOKEN, READY
from octavo.cli.flags import Parser, add_engine, add_model, take_engine
from octavo.cli.output import check_writable

TELLING = 2000  # characters of a failed process's last words


@dataclass(frozen=True)
class Start:
    """One process, in seconds from its creation."""

    ready: float
    first_token: float


def main(arguments: list[str]) -> int:
    """Measure, print and write, after Ctrl-C what there is; the exit code."""
    text = "Seconds from the creation of a process to a loaded model, and to its first token; cold, then warm."
    parser = Parser("bench startup", text, foreign=OFFLINE)
    add_model(parser)
    add_struct(parser, "benchmark", StartupOptions)
    add_struct(parser, "output", OutputOptions)
    add_engine(parser)
    values = parser.parse(arguments)
    options: StartupOptions = take_struct(values, StartupOptions)
    output: OutputOptions = take_struct(values, OutputOptions)
    config = take_engine(values)
    check_writable("--output-json", output.output_json)
    plot.check(output.plot)
    set_up_logging("WARNING")
    phases = _measure(locate(config), options)  # downloads come before the clock
    result: dict[str, Any] = {"model_id": config.model.model}
    for phase, starts in phases.items():
        result.update(summarise(phase, starts))
    _print(phases)
    done, total = sum(map(len, phases.values())), options.num_iters_cold + options.num_iters_warm
    interrupted = note_interrupt(result, done, total, "starts")
    if output.output_json is not None:
        write_json(output.output_json, result)
    if output.plot is not None:
        times = {phase: [(start.ready, start.first_token) for start in starts] for phase, starts in phases.items()}
        plot.startup(output.plot, times, title=Path(config.model.model).name)
    return INTERRUPTED if interrupted else 0


def _measure(config: EngineConfig, options: StartupOptions) -> dict[str, list[Start]]:
    phases: dict[str, list[Start]] = {"cold": [], "warm": []}
    try:
        for _ in progress(options.num_iters_cold, "Cold startup iterations"):
            drop_pages(Path(config.model.model))
            with tempfile.TemporaryDirectory(prefix="octavo-cold-") as folder:
                phases["cold"].append(start_once(config, {"OCTAVO_CACHE": folder}))
        for _ in progress(options.num_iters_warmup, "Warmup iterations"):
            start_once(config, {})
        for _ in progress(options.num_iters_warm, "Warm startup iterations"):
            phases["warm"].append(start_once(config, {}))
    except KeyboardInterrupt:
        if not any(phases.values()):
            raise
    return {phase: starts for phase, starts in phases.items() if starts}


def start_once(config: EngineConfig, environment: dict[str, str]) -> Start:
    """One process that loads the model and makes a token; ConfigError with its last words where it fails."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli.bench.start_once"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    seen: dict[bytes, float] = {}
    with process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ConfigError("the process has no pipes")
        with suppress(BrokenPipeError):  # it ended before it read: its words tell why
            process.stdin.write(msgspec.json.encode(config))
            process.stdin.close()
        for line in process.stdout:
            seen[line.strip()] = time.perf_counter() - begun
        words = process.stderr.read().decode(errors="replace").strip()
    if process.returncode or FIRST_TOKEN.encode() not in seen:
        raise ConfigError(f"the model does not start (exit code {process.returncode}): {words[-TELLING:]}")
    return Start(seen[READY.encode()], seen[FIRST_TOKEN.encode()])


def drop_pages(model: Path) -> None:
    """Ask the system to forget the pages of a model's files that it holds in memory, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summarise(phase: str, starts: list[Start]) -> dict[str, Any]:
    """The result's fields of one phase. Nothing is compiled at a start, which is what compilation times say."""
    columns = {
        "startup": [start.ready for start in starts],
        "compilation": [0.0] * len(starts),
        "first_token": [start.first_token for start in starts],
    }
    found: dict[str, Any] = {}
    for name, times in columns.items():
        found[f"avg_{phase}_{name}_time"] = mean(times)
        found[f"{phase}_{name}_times"] = times
        found[f"{phase}_{name}_percentiles"] = percentiles(times)
    return found


def _print(phases: dict[str, list[Start]]) -> None:
    print(heading("STARTUP TIME BENCHMARK RESULTS", "="))
    for phase, starts in phases.items():
        ready, first = [start.ready for start in starts], [start.first_token for start in starts]
        print(f"{phase.upper()} STARTUP:")
        print(f"Avg startup time: {mean(ready):.3f} seconds")
        print(f"Avg time to the first token: {mean(first):.3f} seconds")
        print("Startup time percentiles:")
        for percent, value in percentiles(ready).items():
            print(f"  {percent}%: {value:.3f} seconds")
    print("=" * WIDTH)

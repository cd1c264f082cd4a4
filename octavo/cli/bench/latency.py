"""`octavo bench latency MODEL`: one batch of random prompts over and over; seconds of each run out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from octavo.api.llm import LLM
from octavo.base.errors import RequestFailedError
from octavo.base.types.sampling import SamplingParams
from octavo.cli import INTERRUPTED
from octavo.cli.bench import plot
from octavo.cli.bench.datasets import Texts, make_samples
from octavo.cli.bench.figures import deviation, mean, note_interrupt, percentiles, progress, write_json
from octavo.cli.bench.foreign import OFFLINE
from octavo.cli.bench.options import DatasetOptions, LatencyOptions, OutputOptions, add_struct, take_struct
from octavo.cli.bench.throughput import check_room
from octavo.cli.flags import Parser, add_engine, add_model, take_engine
from octavo.cli.interrupt import second_interrupt_exits
from octavo.cli.output import check_writable
from octavo.cli.session import open_llm


def main(arguments: list[str]) -> int:
    """Measure, print and write, after Ctrl-C what there is; the exit code."""
    text = "Seconds for one batch of random prompts, from the first token in to the last one out. No prefix caching."
    parser = Parser("bench latency", text, foreign=OFFLINE)
    add_model(parser)
    add_struct(parser, "benchmark", LatencyOptions)
    add_struct(parser, "output", OutputOptions)
    add_engine(parser)
    values = parser.parse(arguments)
    options: LatencyOptions = take_struct(values, LatencyOptions)
    output: OutputOptions = take_struct(values, OutputOptions)
    values.setdefault("enable_prefix_caching", False)  # the same prompts every time: a cache would skip them
    config = take_engine(values)
    check_writable("--output-json", output.output_json)
    plot.check(output.plot)
    with open_llm(config) as llm:
        check_room(llm, options.input_len, options.output_len)
        latencies = _measure(llm, options, seed=config.model.seed)
    result = summarise(latencies)
    _print(result)
    interrupted = note_interrupt(result, len(latencies), options.num_iters, "iterations")
    if output.output_json is not None:
        write_json(output.output_json, {"model_id": config.model.model, **result})
    if output.plot is not None:
        about = (
            f"{Path(config.model.model).name}: {options.batch_size} × {options.input_len} in, {options.output_len} out"
        )
        plot.latency(output.plot, latencies, title=about)
    return INTERRUPTED if interrupted else 0


@second_interrupt_exits()
def _measure(llm: LLM, options: LatencyOptions, *, seed: int) -> list[float]:
    random = DatasetOptions(
        num_prompts=options.batch_size, random_input_len=options.input_len, random_output_len=options.output_len
    )
    prompts = [sample.prompt for sample in make_samples(random, Texts(llm.tokenizer), seed=seed)]
    params = SamplingParams(
        n=options.n,
        temperature=1.0,
        top_p=1.0,
        ignore_eos=True,
        max_tokens=options.output_len,
        detokenize=not options.disable_detokenize,
    )

    def run() -> float:
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        for output in outputs:
            if output.error is not None:
                raise RequestFailedError(output.error)
        return seconds

    for _ in progress(options.num_iters_warmup, "Warmup iterations"):
        run()
    latencies: list[float] = []
    try:
        for _ in progress(options.num_iters, "Bench iterations"):
            latencies.append(run())
    except KeyboardInterrupt:
        if not latencies:
            raise
    return latencies


def summarise(latencies: list[float]) -> dict[str, Any]:
    """The result's fields; seconds."""
    return {
        "avg_latency": mean(latencies),
        "std_latency": deviation(latencies),
        "latencies": latencies,
        "percentiles": percentiles(latencies),
    }


def _print(result: dict[str, Any]) -> None:
    print(f"Avg latency: {result['avg_latency']} seconds")
    print(f"Std latency: {result['std_latency']} seconds")
    for percent, value in result["percentiles"].items():
        print(f"{percent}% percentile latency: {value} seconds")

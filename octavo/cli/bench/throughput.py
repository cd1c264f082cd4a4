"""`octavo bench throughput MODEL`: a dataset's prompts as one batch in this process; tokens a second out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from octavo.api.llm import LLM
from octavo.api.outputs import OnOutput
from octavo.base.errors import ConfigError
from octavo.base.types.output import RequestOutput
from octavo.base.types.sampling import SamplingParams
from octavo.cli import INTERRUPTED
from octavo.cli.bench import plot
from octavo.cli.bench.datasets import Sample, Texts, make_samples
from octavo.cli.bench.figures import note_interrupt, report_errors, write_json
from octavo.cli.bench.foreign import THROUGHPUT
from octavo.cli.bench.options import DatasetOptions, OutputOptions, ThroughputOptions, add_struct, take_struct
from octavo.cli.flags import Parser, add_engine, add_model, take_engine
from octavo.cli.interrupt import second_interrupt_exits
from octavo.cli.output import check_writable
from octavo.cli.session import open_llm


def main(arguments: list[str]) -> int:
    """Measure, print and write, after Ctrl-C what there is; exit code 1 if a request failed."""
    parser = Parser("bench throughput", "Requests and tokens a second of many prompts at once.", foreign=THROUGHPUT)
    add_model(parser)
    add_struct(parser, "benchmark", ThroughputOptions)
    add_struct(parser, "dataset", DatasetOptions)
    add_struct(parser, "output", OutputOptions)
    add_engine(parser)
    values = parser.parse(arguments)
    options: ThroughputOptions = take_struct(values, ThroughputOptions)
    dataset: DatasetOptions = take_struct(values, DatasetOptions)
    output: OutputOptions = take_struct(values, OutputOptions)
    config = take_engine(values)
    check_writable("--output-json", output.output_json)
    plot.check(output.plot)
    with open_llm(config) as llm:
        samples = make_samples(dataset, Texts(llm.tokenizer, llm.render_chat), seed=config.model.seed)
        for sample in samples:
            check_room(llm, sample.prompt_len, sample.output_len)
        if warm := samples[: options.num_warmups]:
            _run(llm, warm, options)
            llm.reset_prefix_cache()  # else the same prompts would be found there
        outputs: list[RequestOutput] = []
        start = time.monotonic()
        try:
            _run(llm, samples, options, on_output=outputs.append)
        except KeyboardInterrupt:
            if not outputs:
                raise
        elapsed = time.monotonic() - start
    result = summarise(outputs, elapsed)
    _print(result)
    interrupted = note_interrupt(result, len(outputs), len(samples), "requests")
    if output.output_json is not None:
        write_json(output.output_json, {"model_id": config.model.model, **result})
    if output.plot is not None:
        title = f"{Path(config.model.model).name}: {_sentence(result)}"
        plot.throughput(output.plot, *timeline(outputs, start), title=title)
    failed = report_errors([output.error for output in outputs if output.error is not None])
    return INTERRUPTED if interrupted else failed


def check_room(llm: LLM, prompt_len: int, output_len: int) -> None:
    """ConfigError where a request would be cut off by the context, and so be faster than it says."""
    if prompt_len + output_len > llm.max_model_len:
        raise ConfigError(
            f"{prompt_len} tokens in and {output_len} out do not fit max_model_len={llm.max_model_len}; ask for "
            "shorter ones, or raise --max-model-len where the model allows it",
            param="max_model_len",
        )


@second_interrupt_exits()
def _run(llm: LLM, samples: list[Sample], options: ThroughputOptions, *, on_output: OnOutput = None) -> None:
    """on_output: with a bar, too."""
    params = [
        SamplingParams(
            n=options.n,
            temperature=1.0,
            top_p=1.0,
            ignore_eos=True,
            max_tokens=sample.output_len,
            detokenize=not options.disable_detokenize,
        )
        for sample in samples
    ]
    shown = on_output is not None and sys.stderr.isatty()
    llm.generate([sample.prompt for sample in samples], params, use_tqdm=shown, on_output=on_output)


def summarise(outputs: list[RequestOutput], elapsed: float) -> dict[str, Any]:
    """The result's fields. Failed requests count in `failed` alone."""
    done = [output for output in outputs if output.error is None]
    prompt = sum(len(output.prompt_token_ids) for output in done)
    generated = sum(_generated(output) for output in done)
    return {
        "elapsed_time": elapsed,
        "num_requests": len(done),
        "failed": len(outputs) - len(done),
        "total_num_tokens": prompt + generated,
        "total_prompt_tokens": prompt,
        "total_output_tokens": generated,
        "requests_per_second": len(done) / elapsed,
        "tokens_per_second": (prompt + generated) / elapsed,
        "output_tokens_per_second": generated / elapsed,
    }


def _generated(output: RequestOutput) -> int:
    return sum(len(completion.token_ids) for completion in output.outputs)


def timeline(outputs: list[RequestOutput], start: float) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """When tokens came (a request's evenly between its first and last), and spans, of requests that ended well."""
    tokens, spans = [], []
    for output in outputs:
        if output.error is not None or (times := output.metrics) is None:
            continue
        count = _generated(output)
        step = (times.last_token - times.first_token) / max(count - 1, 1)
        tokens += [(times.first_token - start + step * place, 1.0) for place in range(count)]
        spans.append((times.scheduled - start, times.last_token - start))
    return tokens, spans


def _sentence(result: dict[str, Any]) -> str:
    return (
        f"{result['requests_per_second']:.2f} requests/s, {result['tokens_per_second']:.2f} total tokens/s, "
        f"{result['output_tokens_per_second']:.2f} output tokens/s"
    )


def _print(result: dict[str, Any]) -> None:
    print(f"Throughput: {_sentence(result)}")
    print(f"Total num prompt tokens:  {result['total_prompt_tokens']}")
    print(f"Total num output tokens:  {result['total_output_tokens']}")

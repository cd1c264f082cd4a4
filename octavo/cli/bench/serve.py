"""`octavo bench serve`: load on a running OpenAI-compatible server; vLLM's table, JSON fields and a chart out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.api.build import open_text
from octavo.api.log import set_up_logging
from octavo.base.config import env
from octavo.base.errors import ConfigError, OctavoError
from octavo.cli import INTERRUPTED
from octavo.cli.bench import load, plot
from octavo.cli.bench.client import Client, Outcome, check_url
from octavo.cli.bench.datasets import Sample, Texts, make_samples
from octavo.cli.bench.figures import note_interrupt, progress, report_errors, write_json
from octavo.cli.bench.foreign import SERVE
from octavo.cli.bench.options import DatasetOptions, ServeOptions, add_struct, take_struct
from octavo.cli.bench.report import Timings, details, parse_wanted, print_table, summarise
from octavo.cli.flags import Parser
from octavo.cli.output import check_writable


@dataclass(frozen=True)
class Run:
    """What was measured, and of what. tokenizer_id: None without one.  asked: requests that were to be measured."""

    model: str
    tokenizer_id: str | None
    texts: Texts
    asked: int
    outcomes: list[Outcome]
    duration: float


def main(arguments: list[str]) -> int:
    """Measure, print and write, after Ctrl-C what there is; exit code 1 if a request failed."""
    text = "Sends requests to a running server, as many and as fast as asked, and tells how long answers took."
    parser = Parser("bench serve", text, foreign=SERVE)
    add_struct(parser, "benchmark", ServeOptions)
    add_struct(parser, "dataset", DatasetOptions)
    values = parser.parse(arguments)
    options: ServeOptions = take_struct(values, ServeOptions)
    dataset: DatasetOptions = take_struct(values, DatasetOptions)
    wanted = parse_wanted(options)
    load.check_ramp(options)
    metadata = _pairs("--metadata", options.metadata)
    plot.check(options.plot)
    check_url(_base_url(options))
    _headers(options)
    _check_result(options)
    set_up_logging("WARNING")
    _allow_files()
    run = asyncio.run(_measure(options, dataset))
    tokenizer = run.texts.tokenizer
    count = None if tokenizer is None else lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    timings = Timings(run.outcomes, count)
    result = {
        **_about(options, dataset, run),
        **metadata,
        **summarise(timings, run.outcomes, run.duration, wanted),
        **(details(timings, run.outcomes) if options.save_detailed else {}),
    }
    print_table(result, options, wanted)
    interrupted = note_interrupt(result, len(run.outcomes), run.asked, "requests")
    if options.save_result or options.append_result:
        path = result_path(options, run.model, result["date"])
        write_json(path, result, append=options.append_result)
        print(f"Written to {path}")
    if options.plot is not None:
        plot.serve(
            options.plot, timings, title=f"{Path(run.model).name}: {result['output_throughput']:.0f} output tokens/s"
        )
    failed = report_errors([outcome.error for outcome in run.outcomes if outcome.error])
    return INTERRUPTED if interrupted else failed


async def _measure(options: ServeOptions, dataset: DatasetOptions) -> Run:
    base_url = _base_url(options)
    async with Client(base_url=base_url, headers=_headers(options), insecure=options.insecure) as client:
        model = options.model or await load.first_model(client, base_url, seconds=options.ready_check_timeout_sec)
        tokenizer_id = None if options.skip_tokenizer_init else options.tokenizer or model
        texts = _open_texts(tokenizer_id, chat=options.backend == "openai-chat")
        samples = make_samples(dataset, texts, seed=options.seed)
        ignore_eos = options.ignore_eos or dataset.dataset_name == "random"
        send = load.sender(options, client, model=options.served_model_name or model, ignore_eos=ignore_eos)
        if options.ready_check_timeout_sec:
            await load.wait_until_ready(send, samples[0], seconds=options.ready_check_timeout_sec)
        warm: list[Sample] = [samples[0]] * options.num_warmups
        warmed, _ = await _load(options, warm, [0.0] * len(warm), send, text="Warmup requests")
        if len(warmed) < len(warm):
            raise KeyboardInterrupt
        due = load.arrivals(options, len(samples))
        outcomes, duration = await _load(options, samples, due, send, text="Requests")
    if not outcomes:
        raise KeyboardInterrupt
    return Run(model, tokenizer_id, texts, len(samples), outcomes, duration)


async def _load(
    options: ServeOptions, samples: list[Sample], due: list[float], send: load.Send, *, text: str
) -> tuple[list[Outcome], float]:
    with progress(len(samples), text, shown=not options.disable_tqdm) as bar:
        return await load.drive(samples, due, send, max_concurrency=options.max_concurrency, bar=bar)


def _open_texts(tokenizer_id: str | None, *, chat: bool) -> Texts:
    """chat: the server applies the template."""
    if tokenizer_id is None:
        return Texts(None, as_ids=False)
    try:
        tokenizer, template = open_text(tokenizer_id)
    except OctavoError as error:
        raise ConfigError(
            f"no tokenizer was found under the model's name: {error.message}; name one by --tokenizer",
            param="--tokenizer",
        ) from None
    return Texts(tokenizer, None if chat or template is None else template.render_ids, as_ids=False)


def _headers(options: ServeOptions) -> dict[str, str]:
    key = env.read("OPENAI_API_KEY") or env.read("OCTAVO_API_KEY")
    given = {name.lower(): value for name, value in _pairs("--header", options.header).items()}
    headers = {**({"authorization": f"Bearer {key}"} if key else {}), **given}
    for name, value in headers.items():
        if not (name + value).isascii() or not (name + value).isprintable():
            source = "--header" if name in given else "OPENAI_API_KEY or OCTAVO_API_KEY"
            raise ConfigError(f"{source}: the header {name} must be printable ASCII", param="--header")
    return headers


def _pairs(flag: str, given: list[str]) -> dict[str, str]:
    pairs = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{flag} {item!r} must be KEY=VALUE", param=flag)
        pairs[name.strip()] = value.strip()
    return pairs


def _base_url(options: ServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return options.base_url or f"http://{host}:{options.port}"


def _check_result(options: ServeOptions) -> None:
    """ConfigError, before anything is measured, where the result could not be written."""
    if not (options.save_result or options.append_result):
        return
    if "/" in (options.label or ""):
        raise ConfigError(f"--label {options.label} is part of a file's name; write it without /", param="--label")
    if options.result_dir is not None:
        try:
            Path(options.result_dir).expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--result-dir {options.result_dir} is no folder and cannot be made: {error.strerror}",
                param="--result-dir",
            ) from None
    check_writable("--result-filename", str(result_path(options, options.model or "model", "20000101-000000")))


def _allow_files() -> None:
    """Every request has a connection: take as many open files as the system grants."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _about(options: ServeOptions, dataset: DatasetOptions, run: Run) -> dict[str, Any]:
    about: dict[str, Any] = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": run.model,
        "tokenizer_id": run.tokenizer_id,
        "num_prompts": dataset.num_prompts,
        "request_rate": "inf" if options.request_rate == float("inf") else options.request_rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
    }
    if options.ramp_up_strategy is not None:
        about |= {name: getattr(options, name) for name in ServeOptions.__struct_fields__ if name.startswith("ramp_up")}
    return about


def result_path(options: ServeOptions, model: str, date: str) -> Path:
    """Where the result goes: LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json unless --result-filename says."""
    rate = f"{options.request_rate}qps"
    if options.ramp_up_strategy is not None:
        rate = f"ramp-up-{options.ramp_up_strategy}-{options.ramp_up_start_rps}qps-{options.ramp_up_end_rps}qps"
    width = "" if options.max_concurrency is None else f"-concurrency{options.max_concurrency}"
    name = f"{options.label or options.backend}-{rate}{width}-{model.rsplit('/', 1)[-1]}-{date}.json"
    return Path(options.result_dir or ".").expanduser() / (options.result_filename or name)

"""ServeOptions and Samples in, requests sent when they are due, Outcomes out, in the order of the Samples."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

from octavo.base.errors import ConfigError
from octavo.cli.bench.client import Client, Outcome
from octavo.cli.bench.datasets import Sample
from octavo.cli.bench.options import ServeOptions

PATHS = {"openai": "/v1/completions", "vllm": "/v1/completions", "openai-chat": "/v1/chat/completions"}
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)
RETRY_S = 1.0
EVEN = 1e9  # burstiness from which on gaps are equal

Send = Callable[[int, Sample], Awaitable[Outcome]]


def make_body(options: ServeOptions, sample: Sample, *, model: str, ignore_eos: bool) -> dict[str, Any]:
    """The request's JSON."""
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if options.backend == "openai-chat":
        body["messages"] = [{"role": "user", "content": sample.prompt}]
        body["max_completion_tokens"] = sample.output_len
    else:
        body["prompt"] = sample.prompt
        body["max_tokens"] = sample.output_len
    if options.logprobs is not None:
        chat = {"logprobs": True, "top_logprobs": options.logprobs}
        body.update(chat if options.backend == "openai-chat" else {"logprobs": options.logprobs})
    if ignore_eos:
        body["ignore_eos"] = True
    body.update({name: value for name in SAMPLING if (value := getattr(options, name)) is not None})
    return {**body, **options.extra_body}


def sender(options: ServeOptions, client: Client, *, model: str, ignore_eos: bool) -> Send:
    """What sends one Sample, given its number."""
    path = options.endpoint or PATHS[options.backend]

    async def send(number: int, sample: Sample) -> Outcome:
        body = make_body(options, sample, model=model, ignore_eos=ignore_eos)
        return await client.send(path, body, sample, request_id=f"{options.request_id_prefix}{number}")

    return send


def check_ramp(options: ServeOptions) -> None:
    """ConfigError where the ramp's flags do not belong together."""
    start, end = options.ramp_up_start_rps, options.ramp_up_end_rps
    if options.ramp_up_strategy is None:
        if start is not None or end is not None:
            raise ConfigError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy linear or exponential")
        return
    if options.request_rate != float("inf"):
        raise ConfigError("--request-rate and --ramp-up-strategy both set the rate; give one of the two")
    if start is None or end is None or start > end:
        raise ConfigError("--ramp-up-strategy needs --ramp-up-start-rps and a --ramp-up-end-rps that is not below it")


def arrivals(options: ServeOptions, count: int) -> list[float]:
    """When each request is due, in seconds after the start: gamma-distributed gaps, Poisson where burstiness is 1.

    With a fixed rate the gaps are scaled so that the last one is due at count / rate, whatever was drawn.
    """
    rng = random.Random(options.seed)
    due, at = [], 0.0
    for number in range(count):
        rate = _rate(options, number / max(count - 1, 1))
        if rate != float("inf"):
            at += _gap(rng, rate, options.burstiness)
        due.append(at)
    if options.ramp_up_strategy is None and at > 0:
        scale = count / options.request_rate / at
        return [time * scale for time in due]
    return due


def _gap(rng: random.Random, rate: float, burstiness: float) -> float:
    if burstiness > EVEN:
        return 1 / rate
    return rng.gammavariate(burstiness, 1 / (rate * burstiness))


def _rate(options: ServeOptions, done: float) -> float:
    start, end = options.ramp_up_start_rps or 1, options.ramp_up_end_rps or 1
    if options.ramp_up_strategy == "linear":
        return start + (end - start) * done
    if options.ramp_up_strategy == "exponential":
        return float(start * (end / start) ** done)
    return options.request_rate


async def drive(
    samples: Sequence[Sample], due: Sequence[float], send: Send, *, max_concurrency: int | None, bar: Any
) -> tuple[list[Outcome], float]:
    """Every Sample's Outcome, and the seconds from the start to the last one's end; if it is cancelled, of those that
    have ended."""
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()

    async def one(number: int, sample: Sample) -> Outcome:
        arrived = time.perf_counter()
        async with gate:
            outcome = await send(number, sample)
        outcome.queue_time = outcome.start - arrived
        bar.update(1)
        return outcome

    start = time.perf_counter()
    tasks: list[asyncio.Task[Outcome]] = []
    try:
        for number, (sample, at) in enumerate(zip(samples, due, strict=True)):
            if (wait := start + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(one(number, sample)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:  # Ctrl-C
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks if not task.cancelled()], time.perf_counter() - start


async def first_model(client: Client, base_url: str, *, seconds: int) -> str:
    """The server's first model; asked for again, for so long, where nothing answers yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            names = await client.models()
            break
        except ValueError as error:
            if time.monotonic() + RETRY_S > end or str(error).startswith("HTTP 4"):
                waited = "" if seconds else ", give it time by --ready-check-timeout-sec"
                raise ConfigError(
                    f"{base_url}: {error}; start a server there{waited}, or name another by --base-url"
                ) from None
        await asyncio.sleep(RETRY_S)
    if not names:
        raise ConfigError(f"{base_url} lists no model; name one by --model", param="--model")
    return names[0]


async def wait_until_ready(send: Send, sample: Sample, *, seconds: int) -> None:
    """Send `sample` until it is answered. ConfigError with the last error after `seconds`, or for a refusal at once."""
    end = time.monotonic() + seconds
    while (outcome := await send(0, sample)).error:
        if time.monotonic() + RETRY_S > end:
            raise ConfigError(f"the server did not answer within {seconds} s: {outcome.error}")
        if outcome.error.startswith("HTTP 4") and not outcome.error.startswith("HTTP 429"):
            raise ConfigError(f"the server refuses such a request: {outcome.error}")
        await asyncio.sleep(RETRY_S)

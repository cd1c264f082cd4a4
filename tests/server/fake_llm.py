"""FakeLLM: AsyncLLM's methods without a model. Prompts are bytes, answers a fixed text, faults on request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from octavo.api.requests import Limits, make_request
from octavo.base.config.config import EngineConfig, ModelConfig, SchedulerConfig
from octavo.base.errors import EngineDeadError, OverloadedError
from octavo.base.types.messages import EngineStats
from octavo.base.types.output import CompletionOutput, Logprob, RequestOutput, RequestTimes
from octavo.base.types.sampling import RequestOutputKind, SamplingParams
from octavo.text.messages import ContentForm, plain_extra, plain_list, plain_messages
from octavo.text.template import RESERVED

ANSWER = 'The "quick" brown fox\n\tjumps over the lazy dog: naïve 日本語 \\ {"a": 1}. ' * 20
MAX_MODEL_LEN = 512
BOS, EOS = 256, 257


class FakeTokenizer:
    """A byte is a token."""

    vocab_size = 258
    eos_token_ids = [EOS]
    special_tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return ([BOS] if add_special_tokens else []) + list(text.encode())

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        special = {BOS: "<bos>", EOS: "<eos>"}
        if len(ids) == 1 and ids[0] in special:
            return "" if skip_special_tokens else special[ids[0]]
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_strings([token_id])[0].encode() if token_id in (BOS, EOS) else bytes([token_id])

    def special_ids(self) -> dict[str, int]:
        return {"<bos>": BOS, "<eos>": EOS}

    def token_to_id(self, token: str) -> int | None:
        return self.special_ids().get(token)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [{BOS: "<bos>", EOS: "<eos>"}.get(token) or f"<0x{token:02X}>" for token in ids]


class FakeLLM:
    """Answers every prompt with `answer`, one character a token (its ids are the character's code, cut to a byte).

    delay: seconds before each token.  fail_at: raise `failure` before this token.  row_error: end with that error.
    silent_from: from this token on there is no text, as while a tool call is being written.
    started, aborted, finished: what happened to requests, by internal id.
    """

    def __init__(self, *, model: str = "fake/model", policy: Any = "fcfs", max_num_seqs: int = 8) -> None:
        self.config = EngineConfig(
            model=ModelConfig(model=model),
            scheduler=SchedulerConfig(scheduling_policy=policy, max_num_seqs=max_num_seqs),
        )
        self.tokenizer = FakeTokenizer()
        template = SimpleNamespace(source="", fault=None)
        self.model = SimpleNamespace(
            sampling={},
            template=template,
            template_for=lambda tools: template,
            spec=SimpleNamespace(pooling=None, vocab_size=258),
            tokenizer=self.tokenizer,
        )
        self.info: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "block_size": 16, "num_gpu_blocks": 100}
        self.answer = ANSWER
        self.state = "ready"
        self.engine_pid = 1
        self.loading = ("weights", 3, 10)
        self.stats = EngineStats()
        self.age = 0.0
        self.hung = False
        self.delay = 0.0
        self.fail_at: int | None = None
        self.silent_from: int | None = None
        self.failure: Exception = EngineDeadError("the engine process ended")
        self.row_error: str | None = None
        self.overloaded = False
        self.retry_after = 7
        self.start_error: Exception | None = None
        self.start_gate: asyncio.Event | None = None
        self.most_running = 0
        self.running: set[str] = set()
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.finished: list[str] = []
        self.seen: list[tuple[list[int], SamplingParams, int, str]] = []
        self.rendered: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
        self.closed = False

    def on_engine_end(self, function: Callable[[], None]) -> None:
        """Its engine never ends."""

    async def start(self) -> None:
        if self.start_gate is not None:
            self.state = "loading"
            await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error
        self.state = "ready"

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109
        self.closed = True

    def heartbeat_age(self) -> float:
        return self.age

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        await asyncio.sleep(0)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def decode(self, ids: list[int]) -> str:
        await asyncio.sleep(0)
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    async def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        extra = dict(options["chat_template_kwargs"])
        plain_list(extra.pop("documents", None), "documents")
        plain_list(options["tools"], "tools")
        plain_extra(extra, RESERVED)
        shown = plain_messages(messages, ContentForm())
        self.rendered.append((messages, options))
        await asyncio.sleep(0)
        return [BOS, *"\n".join(f"{m['role']}: {m['content']}" for m in shown).encode()]

    def check_generates(self) -> None:
        """It does."""

    async def check(self, params: SamplingParams) -> None:
        """Every form is taken, and none is kept."""

    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        parsing: Any = None,
        judged: Any = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        if self.overloaded:
            raise OverloadedError("the queue is full", retry_after=self.retry_after)
        limits = Limits(vocab_size=258, max_model_len=MAX_MODEL_LEN, tokenizer=self.tokenizer, eos_token_ids=(EOS,))
        request = make_request(
            prompt, params, limits=limits, request_id=request_id, priority=priority, cache_salt=cache_salt
        )
        self.seen.append((prompt, params, priority, cache_salt))
        self.started.append(request_id)
        self.running.add(request_id)
        self.stats = EngineStats(num_running=len(self.running))
        self.most_running = max(self.most_running, len(self.running))
        try:
            async for output in self._steps(request_id, prompt, params, request.max_tokens):
                yield output
            self.finished.append(request_id)
        finally:
            self.running.discard(request_id)
            if request_id not in self.finished:
                self.aborted.append(request_id)

    def beam_search(
        self, prompt: list[int], params: SamplingParams, *, length_penalty: float, width_name: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        assert (type(length_penalty), width_name) == (float, "n")
        return self.generate(prompt, params, **more)

    async def follow(
        self, prompt: list[int], params: SamplingParams, take: Callable[[RequestOutput], Any], **options: Any
    ) -> None:
        async with aclosing(self.generate(prompt, params, **options)) as outputs:
            async for output in outputs:
                full = take(output)
                if full is not None:
                    await asyncio.wait([full])

    async def _steps(
        self, request_id: str, prompt: list[int], params: SamplingParams, most: int
    ) -> AsyncGenerator[RequestOutput, None]:
        times = RequestTimes(arrival=time.monotonic(), scheduled=time.monotonic())
        text, reason, stop = _cut(self.answer[:most], params)
        count = len(text)
        whole = params.output_kind is RequestOutputKind.FINAL_ONLY
        for number in range(count):
            await asyncio.sleep(self.delay)
            times.first_token = times.first_token or time.monotonic()
            times.last_token = time.monotonic()
            if number == self.fail_at:
                raise self.failure
            last = number == count - 1
            if whole and not last:
                continue
            start = 0 if whole else number
            if self.silent_from is not None and number >= self.silent_from:
                start = count
            outputs = [
                _completion(index, text[start : number + 1], params, (reason, stop) if last else (None, None))
                for index in range(params.n)
            ]
            first = whole or number == 0
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=prompt,
                prompt_logprobs=_prompt_logprobs(prompt, params) if first else None,
                outputs=outputs,
                finished=last,
                metrics=times,
                num_cached_tokens=4,
                error=self.row_error if last else None,
            )


def _cut(text: str, params: SamplingParams) -> tuple[str, str, str | None]:
    for stop in params.stop_strings:
        at = text.find(stop)
        if at > 0:
            return text[: at + len(stop) if params.include_stop_str_in_output else at], "stop", stop
    return text, "length", None


def _entry(token: int, text: str, most: int) -> dict[int, Logprob]:
    entry = {token: Logprob(-0.25, 1, text)}
    for rank in range(2, most + 1):
        entry[(token + rank) % 256] = Logprob(-float(rank), rank, f"<{rank}>")
    return entry


def _prompt_logprobs(prompt: list[int], params: SamplingParams) -> list[dict[int, Logprob] | None] | None:
    if params.prompt_logprobs is None:
        return None
    tokens = FakeTokenizer()
    return [None, *(_entry(i, tokens.decode([i]), params.prompt_logprobs) for i in prompt[1:])]


def _completion(index: int, text: str, params: SamplingParams, end: tuple[str | None, str | None]) -> CompletionOutput:
    ids = [ord(char) % 256 for char in text]
    logprobs = None
    if params.logprobs is not None:
        logprobs = [_entry(token, char, params.logprobs) for token, char in zip(ids, text, strict=True)]
    return CompletionOutput(
        index=index,
        text=text,
        token_ids=ids,
        logprobs=logprobs,
        finish_reason=end[0],
        stop_reason=end[1],
        text_logprobs=None if logprobs is None else list(zip(ids, logprobs, strict=True)),
    )

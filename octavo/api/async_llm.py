"""AsyncLLM: a model in a supervised child process. Prompts in, streams of RequestOutputs out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from octavo.api.arguments import engine_config
from octavo.api.aside import aside, both
from octavo.api.build import Model, locate, make_limits, open_model
from octavo.api.engine_process import EngineProcess
from octavo.api.outputs import RequestProgress, TokenTexts
from octavo.api.pooling import AnyPoolingOutput, Pair, PoolingProgress, make_pooling_request
from octavo.api.prompts import Prompt, parse_conversations, parse_prompt
from octavo.api.requests import Limits, make_request
from octavo.api.socket_client import News, SocketClient, make_error
from octavo.base.config.config import EngineConfig
from octavo.base.errors import ConfigError, EngineDeadError, OctavoError, OverloadedError
from octavo.base.types.messages import EngineStats, Loading, Outputs
from octavo.base.types.output import Output, RequestOutput
from octavo.base.types.pooling import PoolingParams
from octavo.base.types.ports import TextTokenizer
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams

if TYPE_CHECKING:
    from octavo.text.tools.parser import Parsing

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "restarting", "sleeping", "draining", "dead"]
Value = TypeVar("Value")

TEXT_THREADS = 4
GRAMMAR_THREADS = 2  # apart, as a grammar may take seconds to be refused
FAILED_STARTS = 5  # in a row, then the engine is given up
STEADY = 60.0  # seconds of life after which the next death counts as the first
LONGEST_PAUSE = 30.0


class _Stream:
    """One request under way: its progress, who waits for it, and what ended it early."""

    def __init__(self, progress: RequestProgress | PoolingProgress) -> None:
        self.progress = progress
        self.failure: OctavoError | None = None
        self.news = News()

    def fail(self, error: OctavoError) -> None:
        self.failure = self.failure or error
        self.news.set()


class AsyncLLM:
    """One model, many concurrent requests, in an engine process that is supervised.

    model: an EngineConfig, or a model's name with options as for LLM.  state: loading, ready, restarting (the process
    died and comes back by itself), sleeping, draining (closing: no new requests) or dead.  loading: what is loaded,
    done, total.  info: engine.info() of the living process.  All methods belong to the event loop that ran `start`.
    process: one that was spawned ahead, for the first life of the engine.
    The process knows families of installed packages (entry points), not what this one added by register_model.
    """

    def __init__(self, model: EngineConfig | str, *, process: EngineProcess | None = None, **engine_args: Any) -> None:
        self._process = process
        self.config = engine_config(model, engine_args)
        self.state: State = "loading"
        self.loading: tuple[str, int, int] = ("starting", 0, 1)
        self.info: dict[str, Any] = {}
        self.stats = EngineStats()
        self.num_restarts = 0
        self._model: Model | None = None
        self._limits: Limits | None = None
        self._client: SocketClient | None = None
        self._child_config = self.config
        self._streams: dict[str, _Stream] = {}
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(TEXT_THREADS, "octavo-text")
        self._grammar_pool = ThreadPoolExecutor(GRAMMAR_THREADS, "octavo-grammar")
        self._supervisor: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._turning = asyncio.Lock()  # to sleep, or awake
        self._deaths = 0
        self._born = 0.0

    async def start(self) -> None:
        """Load the model; returns when it is ready. Raises what prevents it, after which the state is dead."""
        try:
            self._child_config = await aside(locate, self.config, progress=self._note_loading)
            opening = aside(open_model, self._child_config.model, progress=self._note_loading)
            self._model, _ = await both(opening, self._spawn())
        except BaseException:
            await self.close(0)
            raise
        if self._client is None:
            await self.close(0)
            raise EngineDeadError("the engine process ended while the model was loading")
        self._texts = TokenTexts(self._model.tokenizer)
        self._limits = make_limits(self._model, self.config.model, max_model_len=self.info["max_model_len"])
        self.state = "ready"

    @property
    def model(self) -> Model:
        """The opened model: spec, tokenizer, template. OverloadedError before it is known."""
        if self._model is None:
            raise OverloadedError("the model is loading; try again", retry_after=2)
        return self._model

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The model's tokenizer; None before it is loaded and with skip_tokenizer_init."""
        return self._model.tokenizer if self._model else None

    @property
    def engine_pid(self) -> int | None:
        """The engine process's id."""
        return self._client.pid if self._client else None

    def heartbeat_age(self) -> float:
        """Seconds since the engine process was last heard of; 0 while there is none."""
        return time.monotonic() - self._client.last_heard if self._client else 0.0

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, SamplingParams' own defaults elsewhere."""
        return self.model.default_sampling_params()

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        chat: bool = False,
        parsing: Parsing | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """RequestOutputs as params.output_kind asks for them; what a slow reader missed comes merged.

        Closing the iterator aborts the request.  chat: the prompt was made by a chat template and begins as it shall.
        parsing: how the text is parted into content, reasoning and tool calls.
        Raises InputError, OverloadedError (busy, loading, restarting, draining), EngineDeadError. A request that fails
        by itself ends with `error` set.
        """
        client = self._admit()
        row = parse_prompt(prompt)
        make = partial(
            self._make_request, row, params, priority=priority, cache_salt=cache_salt or row.cache_salt, chat=chat
        )
        if getattr(params, "structured_outputs", None):
            request = await asyncio.get_running_loop().run_in_executor(self._grammar_pool, make)
        elif row.token_ids is None or getattr(params, "bad_words", None):
            request = await self._run(make)
        else:
            request = make()
        if client is not self._client or self.state != "ready":
            client = self._admit()
        progress = RequestProgress(
            request,
            request_id=request_id,
            prompt=row.text,
            tokenizer=self.tokenizer,
            texts=self._texts,
            parsing=parsing,
        )
        stream = self._streams[request.request_id] = _Stream(progress)
        try:
            client.add(request)
            async for output in self._read(stream):
                yield output
        finally:
            self._forget(request.request_id, stream)

    async def pool(self, prompt: Prompt | Pair, params: PoolingParams, *, priority: int = 0) -> AnyPoolingOutput:
        """What a model that pools makes of a prompt, or of two texts that it reads together; raises as `generate`."""
        self._admit()
        number = str(next(self._numbers))
        request = await self._run(
            make_pooling_request, prompt, params, limits=self._known_limits(), request_id=number, priority=priority
        )
        client, stream = self._admit(), _Stream(PoolingProgress(request, request_id=number))
        self._streams[number] = stream
        try:
            client.add(request)
            output: AnyPoolingOutput = await anext(self._read(stream))
            return output
        finally:
            self._forget(number, stream)

    def check_generates(self) -> None:
        """UnsupportedError for a model that makes vectors."""
        self._known_limits().check_generates()

    async def check(self, params: SamplingParams) -> None:
        """InputError where structured_outputs ask for what cannot be done. `generate` tells it too, but later."""
        checker = self._limits.checker if self._limits is not None else None
        if params.structured_outputs is not None and checker is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._grammar_pool, checker.check, params.structured_outputs)

    async def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """A conversation as the chat template makes it, in token ids. options: those of Model.render_chat."""
        (conversation,) = parse_conversations(messages)
        return await self._run(self.model.render_chat, conversation, **options)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to token ids, off the event loop."""
        return await self._run(self._text_tokenizer().encode, text, add_special_tokens=add_special_tokens)

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Token ids to text, off the event loop."""
        return await self._run(self._text_tokenizer().decode, token_ids, skip_special_tokens=skip_special_tokens)

    async def call(self, name: str, **arguments: Any) -> Any:
        """A rare thing by name (engine.Engine.call). RequestFailedError where the engine refuses."""
        return await self._admit().call(name, arguments)

    async def sleep(self) -> None:
        """End the engine process: the device is free of weights and cache until `wake_up`. Requests under way fail."""
        async with self._turning:
            if self.state == "sleeping":
                return
            client = self._admit()
            self.state, self._client, self.stats = "sleeping", None, EngineStats()
            self._fail_all(OverloadedError("the engine was put to sleep; try again later", retry_after=5))
            await client.close()

    async def wake_up(self) -> None:
        """Load the model again; returns when it is ready. Raises what prevents it: then it sleeps on."""
        async with self._turning:
            if self.state == "sleeping":
                await self._spawn()
                if self.state != "sleeping":  # closed meanwhile
                    await self.close(0)
                else:
                    self.state = "ready"

    async def close(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - a grace period, not a deadline of the call
        """Take no more requests, give running ones `timeout` seconds, end the engine process. Idempotent."""
        if self.state == "dead" and self._client is None:
            return
        self.state = "draining"
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if self._streams and timeout > 0:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout)
        self._fail_all(EngineDeadError("the server is shutting down; the request was cut off"))
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        if self._process is not None:
            self._process.drop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._grammar_pool.shutdown(wait=False, cancel_futures=True)
        if self._limits is not None:
            self._limits.close()
        self.state = "dead"

    def _text_tokenizer(self) -> TextTokenizer:
        if self.model.tokenizer is None:
            raise ConfigError("there is no tokenizer: skip_tokenizer_init is set", param="skip_tokenizer_init")
        return self.model.tokenizer

    def _admit(self) -> SocketClient:
        """The client that takes requests now, or OverloadedError saying what is going on."""
        if self.state == "ready" and self._client is not None:
            return self._client
        reasons = {
            "loading": "the model is loading; try again",
            "restarting": "the engine is restarting; try again",
            "sleeping": "the engine is asleep",
            "draining": "the server is shutting down",
            "dead": "the engine has ended",
        }
        raise OverloadedError(reasons.get(self.state, "the engine is not ready"), retry_after=2)

    def _known_limits(self) -> Limits:
        if self._limits is None:
            raise OverloadedError("the model is loading; try again", retry_after=2)
        return self._limits

    def _make_request(
        self, row: Prompt, params: SamplingParams, *, priority: int, cache_salt: str, chat: bool
    ) -> Request:
        limits = self._known_limits()
        return make_request(
            row.ids(limits.tokenizer, add_special_tokens=not chat),
            params,
            limits=limits,
            request_id=str(next(self._numbers)),
            priority=priority,
            cache_salt=cache_salt,
        )

    async def _read(self, stream: _Stream) -> AsyncIterator[Any]:
        while True:
            await stream.news.wait()
            stream.news.clear()
            # what has come is handed out before the failure that cut it short is raised
            if (output := stream.progress.take()) is not None:
                yield output
                if output.finished:
                    return
            if stream.failure is not None:
                raise stream.failure

    def _forget(self, number: str, stream: _Stream) -> None:
        self._streams.pop(number, None)
        if not stream.progress.finished and stream.failure is None:
            self._abort([number])
        if not self._streams:
            self._idle.set()

    async def _run(self, function: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
        """In the text threads: tokenizers release the GIL, templates may take long."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments, **options))

    def _note_loading(self, what: str, done: int, total: int) -> None:
        self.loading = (what, done, total)

    async def _spawn(self) -> None:
        client = SocketClient(on_message=self._on_message, on_lost=self._on_lost)
        process, self._process = self._process, None
        try:
            self.info = await client.start(self._child_config, process)
        except BaseException:
            await client.close(grace=0)
            raise
        if client.lost:  # it told that it was ready and died before this task ran again
            raise EngineDeadError("the engine process ended as soon as it was ready")
        self._client, self._born = client, time.monotonic()

    def _on_message(self, message: Loading | Outputs) -> None:
        if isinstance(message, Loading):
            self.loading = (message.what, message.done, message.total)
            return
        self.stats = message.stats
        for output in message.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                self._push(stream, output)

    def _push(self, stream: _Stream, output: Output) -> None:
        refused = output.finish_reason == "error" and output.error_kind not in (None, "RequestFailedError")
        if refused:
            stream.fail(make_error(output.error_kind, output.error or "", retry_after=output.retry_after))
            return
        try:
            names = stream.progress.push(output)
        except Exception as error:  # one request's text must never end another's stream
            logger.exception("request %s failed while its text was made", stream.progress.request_id)
            stream.fail(make_error(None, f"the output could not be made into text ({type(error).__name__})"))
            names = [output.request_id]
        if names:
            self._abort(names)
        stream.news.set()

    def _abort(self, names: list[str]) -> None:
        if self._client is not None:
            with suppress(EngineDeadError):  # then there is nothing left to abort
                self._client.abort(names)

    def _fail_all(self, error: OctavoError) -> None:
        for stream in self._streams.values():
            stream.fail(error)

    def _on_lost(self, error: OctavoError) -> None:
        logger.error("the engine process is lost: %s", error.message)
        self._client = None
        self._fail_all(error if isinstance(error, EngineDeadError) else EngineDeadError(error.message))
        if self.state == "ready":
            self.state = "restarting"
            self._deaths = self._deaths + 1 if time.monotonic() - self._born < STEADY else 1
            self._supervisor = asyncio.get_running_loop().create_task(self._respawn())

    async def _respawn(self) -> None:
        """Start the process again, after pauses that double; after FAILED_STARTS failed starts in a row it is dead."""
        for attempt in range(FAILED_STARTS):
            pause = min(0.1 * 2 ** (self._deaths - 1 + attempt), LONGEST_PAUSE) if self._deaths + attempt > 1 else 0.0
            await asyncio.sleep(pause)
            try:
                await self._spawn()
            except (OctavoError, OSError) as error:
                logger.error("the engine process does not start: %s", error)
                continue
            self.num_restarts += 1
            self.state = "ready"
            logger.warning("the engine process is back (restart %d)", self.num_restarts)
            return
        self.state = "dead"

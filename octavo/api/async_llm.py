"""AsyncLLM: a model in a supervised child process. Prompts in, streams of RequestOutputs out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.api.arguments import engine_config
from octavo.api.aside import aside, both, in_pool
from octavo.api.beam_search import BeamSearch
from octavo.api.build import locate, make_limits, open_model
from octavo.api.engine_process import EngineProcess
from octavo.api.model import Model
from octavo.api.outputs import RequestProgress, TokenTexts
from octavo.api.pooling import AnyPoolingOutput, Pair, PoolingProgress, make_pooling_request
from octavo.api.prompts import Prompt, PromptType, is_short, parse_conversations, parse_prompt
from octavo.api.requests import Limits, make_request
from octavo.api.streams import Stream, Take, hand_out
from octavo.api.supervisor import State, Supervisor
from octavo.api.unused import check_sleep, check_wake_up
from octavo.base.config.config import EngineConfig
from octavo.base.errors import ConfigError
from octavo.base.types.messages import EngineStats
from octavo.base.types.output import RequestOutput
from octavo.base.types.pooling import PoolingParams
from octavo.base.types.ports import TextTokenizer
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams, reasoning_budget
from octavo.base.types.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from octavo.text.pretrained import PretrainedTokenizer
    from octavo.text.tools.parser import Parsing

Value = TypeVar("Value")

TEXT_THREADS = 4
GRAMMAR_THREADS = 2  # apart, as a grammar may take seconds to be refused
WATCHDOG_TIMEOUT = 300.0


class AsyncLLM:
    """One model, many concurrent requests, in an engine process that is supervised.

    model: an EngineConfig, or a model's name with options as for LLM.  state: loading, ready, restarting (the process
    died and comes back by itself), sleeping, draining (closing: no new requests) or dead.  loading: what is loaded,
    done, total.  info: engine.info() of the living process.  All methods belong to the event loop that ran `start`.
    process: one that was spawned ahead, for the first life of the engine.  watchdog_timeout: seconds of silence after
    which the engine process is taken to hang and is killed; longer than any step takes.
    Requests under way when the process dies go on in the next one, as if nothing had happened but a pause.
    The process knows families of installed packages (entry points), not what this one added by register_model.
    """

    def __init__(
        self,
        model: EngineConfig | str | os.PathLike[str],
        *,
        process: EngineProcess | None = None,
        watchdog_timeout: float = WATCHDOG_TIMEOUT,
        **engine_args: Any,
    ) -> None:
        self.config = engine_config(model, engine_args)
        self._supervisor = Supervisor(self.config, process, watchdog_timeout=watchdog_timeout)
        self._model: Model | None = None
        self._limits: Limits | None = None
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(TEXT_THREADS, "octavo-text")
        self._grammar_pool = ThreadPoolExecutor(GRAMMAR_THREADS, "octavo-grammar")
        self._turning = asyncio.Lock()  # to sleep, or awake

    async def start(self) -> None:
        """Load the model, once; returns when it is ready. Raises what prevents it, after which the state is dead."""
        if self._supervisor.started or self.state != "loading":
            raise ConfigError("this AsyncLLM was started, or closed, before; make a new one")
        self._supervisor.started = True
        try:
            await self._supervisor.unless_closed(self._load())
        except BaseException:
            await self.close(0)
            raise
        self._supervisor.state = "ready"

    async def _load(self) -> None:
        located = self._supervisor.config = await aside(locate, self.config, progress=self._note_loading)
        opening = aside(open_model, located.model, progress=self._note_loading)
        self._model, _ = await both(opening, self._supervisor.spawn())
        self._texts = TokenTexts(self._model.tokenizer)
        self._limits = make_limits(self._model, self.config.model, max_model_len=self.info["max_model_len"])

    @property
    def state(self) -> State:
        """What the engine does; see the class."""
        return self._supervisor.state

    @property
    def loading(self) -> tuple[str, int, int]:
        """What is loaded, done, total."""
        return self._supervisor.loading

    @property
    def info(self) -> dict[str, Any]:
        """engine.info() of the living process."""
        return self._supervisor.info

    @property
    def stats(self) -> EngineStats:
        """The engine when it was last heard of."""
        return self._supervisor.stats

    def on_engine_end(self, function: Callable[[], None]) -> None:
        """Call it when an engine process has ended, or is put to sleep: `stats` begin anew after that."""
        self._supervisor.on_life_end = function

    @property
    def num_restarts(self) -> int:
        """How often the engine process was started again."""
        return self._supervisor.num_restarts

    @property
    def hung(self) -> bool:
        """The engine process was silent for watchdog_timeout seconds, and no new one is ready yet."""
        return self._supervisor.hung

    @property
    def model(self) -> Model:
        """The opened model: spec, tokenizer, template. Before it is known, raises as `generate`."""
        if self._model is None:
            raise self._supervisor.refusal()
        return self._model

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The model's tokenizer; None before it is loaded and with skip_tokenizer_init."""
        return self._model.tokenizer if self._model else None

    async def get_tokenizer(self) -> PretrainedTokenizer:
        """The same by Transformers' names (apply_chat_template ...); ConfigError with skip_tokenizer_init."""
        return self.model.pretrained

    @property
    def engine_pid(self) -> int | None:
        """The engine process's id."""
        client = self._supervisor.client
        return client.pid if client else None

    def heartbeat_age(self) -> float:
        """Seconds since the engine process was last heard of; 0 while there is none."""
        return self._supervisor.heartbeat_age()

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, SamplingParams' own defaults elsewhere."""
        return self.model.default_sampling_params()

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        parsing: Parsing | None = None,
        judged: StructuredOutputsParams | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """RequestOutputs as sampling_params.output_kind asks for them; what a slow reader missed comes merged.

        Closing the iterator aborts the request.  parsing: how the text is parted into content, reasoning and tool
        calls.  judged: a lenient form that was made part of another.
        Raises InputError, OverloadedError (busy, loading, restarting, draining), EngineDeadError, ConfigError before
        `start`. A request that fails by itself ends with `error` set.
        """
        self._supervisor.admit()
        judge = self._known_limits().judge(sampling_params, judged)
        progress = await self._progress(
            prompt, sampling_params, request_id=request_id, priority=priority, cache_salt=cache_salt, parsing=parsing
        )
        stream = Stream(progress, request_id)
        try:
            self._supervisor.open(stream)
            async for output in stream.read():
                if judge is not None and judge.asks(output.outputs):
                    await in_pool(self._grammar_pool, judge.see, output.outputs)
                elif judge is not None:
                    judge.see(output.outputs)
                yield output
        finally:
            self._supervisor.forget(stream)

    async def follow(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        take: Take,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        parsing: Parsing | None = None,
        judged: StructuredOutputsParams | None = None,
    ) -> None:
        """`generate` for one who is called with each output, and waits for none. Returns after the last.

        take: returns None, or a future: until that is done it is not called again, and what comes is merged.
        Cancelling aborts the request. Raises as `generate`, and what `take` raises.
        """
        self._supervisor.admit()
        options: dict[str, Any] = {"priority": priority, "cache_salt": cache_salt, "parsing": parsing}
        if self._known_limits().judge(params, judged) is not None:  # an end waits for another process
            await hand_out(self.generate(prompt, params, request_id=request_id, judged=judged, **options), take)
            return
        stream = Stream(await self._progress(prompt, params, request_id=request_id, **options), request_id)
        ended = stream.hand_to(take)
        try:
            self._supervisor.open(stream)
            await ended
        finally:
            self._supervisor.forget(stream)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests by the ids that `generate` was given: it yields what has come, finish_reason abort, and ends."""
        self._supervisor.abort({request_id} if isinstance(request_id, str) else set(request_id))

    async def beam_search(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        length_penalty: float = 1.0,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        parsing: Parsing | None = None,
        width_name: str = "n",
    ) -> AsyncIterator[RequestOutput]:
        """The best sequences that params.n beams find, as the completions of one RequestOutput (LLM.beam_search).

        Of params, n, max_tokens, temperature, ignore_eos, logprobs and what tells of the text is used. Each beam's step
        is a request. width_name: what an error calls n.  Raises as `generate`.
        """
        self._supervisor.admit()
        progress = await self._progress(
            prompt, params, request_id=request_id, priority=priority, cache_salt=cache_salt, parsing=parsing
        )
        search = BeamSearch(
            progress,
            length_penalty=length_penalty,
            limits=self._known_limits(),
            texts=self._texts,
            width_name=width_name,
        )
        streams: list[Stream] = []
        try:
            while not search.finished:
                rows = await self._run(search.rows, self._numbers)
                before, streams = streams, [Stream(row) for row in rows]
                self._supervisor.go_on(before, streams)
                search.push([await anext(stream.read()) for stream in streams])
        finally:
            for stream in streams:
                self._supervisor.forget(stream)
        if (output := search.request_output()) is not None:
            yield output

    async def pool(self, prompt: Prompt | Pair, params: PoolingParams, *, priority: int = 0) -> AnyPoolingOutput:
        """What a model that pools makes of a prompt, or of two texts that it reads together; raises as `generate`."""
        self._supervisor.admit()
        number = str(next(self._numbers))
        request = await self._run(
            make_pooling_request, prompt, params, limits=self._known_limits(), request_id=number, priority=priority
        )
        stream = Stream(PoolingProgress(request, request_id=number))
        try:
            self._supervisor.open(stream)
            output: AnyPoolingOutput = await anext(stream.read())
            return output
        finally:
            self._supervisor.forget(stream)

    def check_generates(self) -> None:
        """UnsupportedError for a model that makes vectors."""
        self._known_limits().check_generates()

    async def check(self, params: SamplingParams) -> None:
        """InputError where structured_outputs ask for what cannot be done. `generate` tells it too, but later."""
        if params.structured_outputs is not None and self._limits is not None and self._limits.checker is not None:
            await in_pool(self._grammar_pool, self._limits.checker.check, params.structured_outputs)

    async def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """A conversation as the chat template makes it, in token ids. options: those of Model.render_chat."""
        (conversation,) = parse_conversations(messages)
        if is_short(conversation, options, longest=self._supervisor.short):
            return self.model.render_chat(conversation, **options)
        return await self._run(self.model.render_chat, conversation, **options)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to token ids; long ones off the event loop."""
        if len(text) <= self._supervisor.short:
            return self.model.known_tokenizer().encode(text, add_special_tokens=add_special_tokens)
        return await self._run(self.model.known_tokenizer().encode, text, add_special_tokens=add_special_tokens)

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Token ids to text, off the event loop."""
        return await self._run(self.model.known_tokenizer().decode, token_ids, skip_special_tokens=skip_special_tokens)

    async def call(self, name: str, **arguments: Any) -> Any:
        """A rare thing by name (engine.Engine.call). RequestFailedError where the engine refuses."""
        return await self._supervisor.admit().call(name, arguments)

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """End the engine process: the device is free of weights and cache until `wake_up`. Requests under way fail."""
        check_sleep(level, mode)
        async with self._turning:
            await self._supervisor.sleep()

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Load the model again, all of it (no tags). Returns when ready; raises what prevents it: it sleeps on."""
        check_wake_up(tags)
        async with self._turning:
            if self.state == "sleeping":
                await self._supervisor.unless_closed(self._supervisor.spawn())
                self._supervisor.state = "ready"

    async def close(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - a grace period, not a deadline of the call
        """Take no more requests, give running ones `timeout` seconds, end the engine process. Idempotent."""
        if self.state != "dead" or self._supervisor.client is not None:  # else it was closed, or was given up
            await self._supervisor.close(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._grammar_pool.shutdown(wait=False, cancel_futures=True)
        if self._limits is not None:
            self._limits.close()
        self._supervisor.state = "dead"

    def _known_limits(self) -> Limits:
        if self._limits is None:
            raise self._supervisor.refusal()
        return self._limits

    async def _progress(
        self,
        prompt: PromptType,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int,
        cache_salt: str,
        parsing: Parsing | None,
    ) -> RequestProgress:
        """A request, checked, on its way."""
        row = parse_prompt(prompt)
        make = partial(self._make_request, row, params, priority=priority, cache_salt=cache_salt or row.cache_salt)
        if getattr(params, "structured_outputs", None) or reasoning_budget(params) is not None:
            request = await in_pool(self._grammar_pool, make)
        elif row.token_ids is None or getattr(params, "bad_words", None):
            request = await self._run(make)
        else:
            request = make()
        return RequestProgress(
            request,
            request_id=request_id,
            prompt=row.text,
            tokenizer=self.tokenizer,
            texts=self._texts,
            parsing=parsing,
        )

    def _make_request(self, row: Prompt, params: SamplingParams, *, priority: int, cache_salt: str) -> Request:
        limits = self._known_limits()
        return make_request(
            row.ids(limits.tokenizer),
            params,
            limits=limits,
            request_id=str(next(self._numbers)),
            priority=priority,
            cache_salt=cache_salt,
        )

    async def _run(self, function: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
        """In the text threads: tokenizers release the GIL, templates may take long."""
        return await in_pool(self._pool, function, *arguments, **options)

    def _note_loading(self, what: str, done: int, total: int) -> None:
        self._supervisor.loading = (what, done, total)

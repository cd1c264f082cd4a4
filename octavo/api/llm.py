"""LLM: a model in this process. Prompts in, RequestOutputs out, in order; names and defaults are vLLM's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.api.arguments import engine_config, offline_config
from octavo.api.beam_search import run_searches
from octavo.api.build import build_engine, make_limits, open_model
from octavo.api.model import Model
from octavo.api.outputs import OnOutput, RequestProgress
from octavo.api.pooling import (
    AnyPoolingOutput,
    Pair,
    as_classification,
    as_embedding,
    as_score,
    as_texts,
    cosine_score,
    default_task,
    match_pairs,
)
from octavo.api.progress import Bar, GenerationBar, LoadingBar, PromptBar
from octavo.api.prompts import Prompt, PromptType, parse_conversations, parse_prompts
from octavo.api.rows import Rows
from octavo.api.stepper import Row, Stepper
from octavo.api.unused import OF_CALLS, check_reset, check_sleep, check_unused, check_wake_up
from octavo.base import heap
from octavo.base.config.config import EngineConfig
from octavo.base.config.resolve import fixed_length, own_name
from octavo.base.errors import ConfigError, InputError
from octavo.base.metrics.reader import Metric, read_metrics
from octavo.base.metrics.requests import RequestCounts, RequestRecorder
from octavo.base.types.beam_search import BeamSearchOutput, BeamSearchParams
from octavo.base.types.messages import EngineStats
from octavo.base.types.output import RequestOutput
from octavo.base.types.pooled import ClassificationRequestOutput, EmbeddingRequestOutput, ScoringRequestOutput
from octavo.base.types.pooling import PoolingParams, PoolingTask
from octavo.base.types.ports import TextTokenizer
from octavo.base.types.sampling import SamplingParams
from octavo.engine.engine import Engine

if TYPE_CHECKING:
    from octavo.text.pretrained import PretrainedTokenizer

Result = TypeVar("Result")


class LLM:
    """Loads a model and generates with it.

    model: path, hub id, package:NAME, alias, or a whole EngineConfig.  Further arguments: every config field
    (dtype, seed, max_model_len, max_num_seqs, device, enable_prefix_caching ...) by vLLM's names.
    Raises ConfigError, UnsupportedError, ModelNotFoundError, ModelFormatError.
    """

    def __init__(self, model: str | os.PathLike[str] | EngineConfig, **engine_args: Any) -> None:
        self._engine: Engine | None = None
        self._closed = False
        self._enqueued: list[RequestProgress] = []
        self._stepper = Stepper(self._open_engine)
        config = offline_config(engine_config(model, engine_args))
        with LoadingBar() as bar:
            self._model: Model = open_model(config.model, progress=bar)
            self._engine = build_engine(config, self._model, progress=bar)
        info = self._info = self._engine.info()
        self._requests = RequestCounts()
        self._limits = make_limits(self._model, config.model, max_model_len=info["max_model_len"])
        self._rows = Rows(self._model, self._limits)
        self.config: EngineConfig = fixed_length(config, info)

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Bar = True,
        priority: int | list[int] | None = None,
        on_output: OnOutput = None,
        **unused: Any,
    ) -> list[RequestOutput]:
        """Completions of each prompt, in order.

        prompts: text, token ids, {"prompt": ...}, {"prompt_token_ids": ...}, or a list of those.
        use_tqdm: whether to show progress, or what makes the bar in place of tqdm.
        on_output: called with each output once it is whole. It calls nothing of the LLM; what it raises ends this call.
        unused: what vLLM takes beside these (lora_request, tokenization_kwargs), here and below, may be None.
        Raises InputError before anything runs. A request that fails later has `error` set and leaves the others be.
        """
        check_unused(unused, *OF_CALLS)
        rows = self._rows.generations(parse_prompts(prompts), sampling_params, priority)
        return self._run(rows, use_tqdm=use_tqdm, on_output=on_output)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Bar = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        **more: Any,
    ) -> list[RequestOutput]:
        """Answers to one conversation, or to each of a list of them; the model's chat template makes the prompts.

        more: tool_call_parser, the format that tools are told in where the template reads none; priority; on_output.
        """
        priority, on_output = more.pop("priority", None), more.pop("on_output", None)
        prompts = self._rows.chats(
            messages,
            tools=tools,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
            **more,
        )
        rows = self._rows.generations(prompts, sampling_params, priority)
        return self._run(rows, use_tqdm=use_tqdm, on_output=on_output)

    def beam_search(
        self,
        prompts: PromptType | Sequence[PromptType],
        params: BeamSearchParams,
        *,
        use_tqdm: Bar = False,
        concurrency_limit: int | None = None,
        **unused: Any,
    ) -> list[BeamSearchOutput]:
        """The most likely sequences of each prompt that beams find, in order of the prompts.

        concurrency_limit: prompts at once, None for all.  Raises InputError before anything runs.
        """
        check_unused(unused, *OF_CALLS)
        if not isinstance(params, BeamSearchParams):
            raise InputError(f"params must be BeamSearchParams, got {type(params).__name__}", param="params")
        searches = [self._rows.search(prompt, params) for prompt in parse_prompts(prompts)]
        limit = len(searches) if concurrency_limit is None else concurrency_limit
        if limit < 1 and searches:
            raise InputError(f"concurrency_limit must be at least 1, got {limit}", param="concurrency_limit")
        with GenerationBar(len(searches), shown=use_tqdm) as bar:
            for at in range(0, len(searches), max(limit, 1)):
                for search in run_searches(searches[at : at + limit], self._stepper.run, self._rows.numbers):
                    if (output := search.request_output()) is not None:
                        with self._stepper.lock:
                            self._record(search.progress).take(output)
                    bar.update(search.progress)  # which holds the tokens now
        return [search.output(self._model.tokenizer) for search in searches]

    def encode(
        self,
        prompts: PromptType | Sequence[PromptType],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: PoolingTask | None = None,
        use_tqdm: Bar = True,
        **unused: Any,
    ) -> list[AnyPoolingOutput]:
        """The vectors of each prompt, in order. pooling_task: for all of them, in place of params.task.

        Raises InputError before anything runs, UnsupportedError for a model that generates. A request that fails later
        has `error` set and leaves the others be.
        """
        return self._encode(parse_prompts(prompts), pooling_params, task=pooling_task, use_tqdm=use_tqdm, **unused)

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: Bar = True,
        **unused: Any,
    ) -> list[EmbeddingRequestOutput]:
        """An embedding of each prompt, in order; raises as `encode`."""
        found = self._encode(parse_prompts(prompts), pooling_params, task="embed", use_tqdm=use_tqdm, **unused)
        return [as_embedding(output) for output in found]

    def classify(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: Bar = True,
        **unused: Any,
    ) -> list[ClassificationRequestOutput]:
        """The probabilities of a classifier's classes for each prompt, in order; raises as `encode`."""
        found = self._encode(parse_prompts(prompts), pooling_params, task="classify", use_tqdm=use_tqdm, **unused)
        return [as_classification(output) for output in found]

    def score(
        self,
        data_1: str | list[str],
        data_2: str | list[str],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: Bar = True,
        **unused: Any,
    ) -> list[ScoringRequestOutput]:
        """How well texts fit: one with each of many, or pair by pair. Raises as `encode`.

        A cross-encoder reads each pair; of a model that makes embeddings it is the cosine of the two.
        """
        firsts, seconds = as_texts(data_1, "data_1"), as_texts(data_2, "data_2")
        pairs = match_pairs(firsts, seconds, ("data_1", "data_2"))
        if default_task(self._limits.pooling) == "classify":
            found = self._encode(pairs, pooling_params, task="score", use_tqdm=use_tqdm, **unused)
            return [as_score(output) for output in found]
        texts = [Prompt(text, None) for text in dict.fromkeys([*firsts, *seconds])]
        found = self._encode(texts, pooling_params, task="embed", use_tqdm=use_tqdm, **unused)
        known = {text.text: out for text, out in zip(texts, found, strict=True)}
        return [cosine_score(known[pair.first], known[pair.second]) for pair in pairs]

    def stream(
        self, prompt: PromptType, sampling_params: SamplingParams | None = None, *, use_tqdm: bool = False
    ) -> Iterator[RequestOutput]:
        """One prompt's RequestOutputs as they come (params.output_kind says whole or deltas). Closing it aborts.

        use_tqdm: whether to show on a terminal how much of the prompt has been read, until there is an output.
        """
        (row,) = parse_prompts(prompt)
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        progress = self._rows.generation(row, params)
        self._open_engine()
        recorder = self._record(progress, streaming=True)
        bar = PromptBar(len(progress.request.prompt_token_ids), shown=use_tqdm)
        try:
            with closing(bar), closing(self._stepper.stream(progress, on_step=bar.update)) as outputs:
                for output in outputs:
                    bar.close()
                    with self._stepper.lock:  # of other threads' requests, too, there is one registry
                        recorder.take(output)
                    yield output
        finally:
            with self._stepper.lock:
                recorder.cut_off("abort")

    def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """A conversation as the chat template makes it, in token ids; options as in `chat`."""
        (conversation,) = parse_conversations(messages)
        return self._model.render_chat(conversation, **options)

    def get_tokenizer(self) -> PretrainedTokenizer:
        """The tokenizer by Transformers' names (apply_chat_template ...); ConfigError with skip_tokenizer_init."""
        return self._model.pretrained

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that the engine's texts are made by; None with skip_tokenizer_init."""
        return self._model.tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest prompt and output together, in tokens."""
        return self._limits.max_model_len

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, SamplingParams' own defaults elsewhere."""
        return self._model.default_sampling_params()

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget every cached prefix that no sequence uses. Neither argument may be true."""
        check_reset(reset_running_requests, reset_connector)
        with self._stepper.lock:
            return bool(self._open_engine().call("reset_prefix_cache"))

    def get_metrics(self) -> list[Metric]:
        """What GET /metrics of a server tells, by vLLM's names: Counter, Gauge, Histogram, Vector."""
        with self._stepper.lock:
            return read_metrics(self._metrics.registry, "vllm:")

    @cached_property
    def _metrics(self) -> Any:
        from octavo.base.metrics.registry import Metrics  # only who asks waits for what it imports

        return Metrics(
            own_name(self.config.model.model),
            stats=lambda: EngineStats() if self._engine is None else self._engine.stats(),
            info=lambda: self._info,
            asleep=lambda: self._engine is None,
            requests=self._requests,
        )

    def enqueue(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Bar = True,
        priority: int | list[int] | None = None,
        **unused: Any,
    ) -> list[str]:
        """Prompts for the next `wait_for_completion`, checked now; their request ids. Arguments as for `generate`.

        use_tqdm: without effect, as nothing runs yet.
        """
        check_unused(unused, *OF_CALLS)
        return self._enqueue(self._rows.generations(parse_prompts(prompts), sampling_params, priority))

    def enqueue_chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Bar = True,
        *,
        priority: int | list[int] | None = None,
        **options: Any,
    ) -> list[str]:
        """Conversations, as `enqueue` has prompts. options: those of `chat`."""
        return self._enqueue(self._rows.generations(self._rows.chats(messages, **options), sampling_params, priority))

    def wait_for_completion(self, *, use_tqdm: Bar = True) -> list[RequestOutput]:
        """Run all that was enqueued; its outputs, in order."""
        self._open_engine()  # while there is none they go on waiting
        rows, self._enqueued = self._enqueued, []
        return self._run(rows, use_tqdm=use_tqdm)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Free weights and cache until `wake_up` loads them again: both of vLLM's levels do. Nothing may be running."""
        check_sleep(level, mode)
        with self._stepper.lock:
            if not self._stepper.idle:
                raise ConfigError("requests are running; sleep when they have ended")
            engine = self._open_engine()
            self._metrics.settle()
            self._engine = None
            _free(engine)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Load what `sleep` freed, all of it: tags must be None. Nothing where nothing was freed."""
        check_wake_up(tags)
        with self._stepper.lock:
            if self._engine is None and not self._closed:
                self._engine = build_engine(self.config, self._model)

    def close(self) -> None:
        """Free the model; the object cannot be used afterwards. Idempotent."""
        engine, self._engine, self._closed = self._engine, None, True
        if engine is not None:
            _free(engine)
        if hasattr(self, "_limits"):
            self._limits.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        # an interpreter that is going down, or a constructor that failed, may have taken anything away
        with suppress(Exception):
            self.close()

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise ConfigError("this LLM was closed; make a new one" if self._closed else "it sleeps; call wake_up()")
        return self._engine

    def _encode(
        self, prompts: Sequence[Prompt | Pair], params: Any, *, task: PoolingTask | None, use_tqdm: Bar, **unused: Any
    ) -> list[AnyPoolingOutput]:
        check_unused(unused, *OF_CALLS)
        outputs = self._finish(self._rows.poolings(prompts, params, task=task), use_tqdm=use_tqdm)
        with self._stepper.lock:
            for output in outputs:
                self._requests.pooled(output)
        return outputs

    def _enqueue(self, rows: list[RequestProgress]) -> list[str]:
        self._enqueued += rows
        return [row.request_id for row in rows]

    def _run(self, rows: list[RequestProgress], *, use_tqdm: Bar, on_output: OnOutput = None) -> list[RequestOutput]:
        self._open_engine()  # what never begins is no abort
        try:
            return self._finish(rows, use_tqdm=use_tqdm, on_output=on_output)
        finally:  # Ctrl-C: some have ended
            with self._stepper.lock:
                for row in rows:
                    self._record(row).end(row.take(), now=row.ended_at)

    def _record(self, row: RequestProgress, *, streaming: bool = False) -> RequestRecorder:
        return RequestRecorder(self._requests, row.request.params, streaming=streaming)

    def _finish(self, rows: Sequence[Row[Result]], *, use_tqdm: Bar, on_output: OnOutput = None) -> list[Result]:
        with GenerationBar(len(rows), shown=use_tqdm) as bar:
            return self._stepper.run(rows, on_end=bar.update, on_output=on_output)


def _free(engine: Engine) -> None:
    """Free the device, and give memory back to the system."""
    engine.close()
    heap.trim()

"""A typed request in; prompts as token ids and SamplingParams out. Every route that generates comes through here."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.errors import InputError
from octavo.base.types.sampling import RequestOutputKind, SamplingParams
from octavo.base.types.structured import StructuredOutputsParams
from octavo.server.exchange import Exchange
from octavo.server.openai.beams import length_penalty
from octavo.server.openai.conversation import echoed_message, render
from octavo.server.openai.logprobs import TokenBytes
from octavo.server.openai.parsing import answer_form, answer_parsing, demands_form
from octavo.server.openai.structured import field_name, structured_params
from octavo.server.openai.terms import in_terms, renamed
from octavo.server.openai.timing import RequestMetrics, Timing
from octavo.server.openai.types import (
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from octavo.server.services import Services
from octavo.text.tools.parser import Parsing

DEFAULT_MAX_TOKENS = 16  # of a completion; a chat may use the rest of the context

_NUMBERS = itertools.count()

_COPIED = tuple(
    name
    for name in SamplingParams.__struct_fields__
    if name in GenerationRequest.__struct_fields__ and name not in ("max_tokens", "structured_outputs")
)


@dataclass(frozen=True)
class Prompt:
    """token_ids as the engine gets them; echo: the text to repeat before the answer; first: the first token's text."""

    token_ids: list[int]
    echo: str = ""
    first: str = ""


@dataclass(frozen=True)
class Generation:
    """One HTTP request, made ready. id: shown to the client; internal: the engine's name for it, never the client's.

    parsing: how a chat's answers are read.  judged: a lenient form that params.structured_outputs holds with other
    things.  route: its path, as in the route table.  timing: where its time goes, where it is one completion.
    length_penalty: of a beam search, whose width is params.n; None where it is none.  token_bytes: what a token adds to
    a text; None without a tokenizer.
    """

    request: GenerationRequest
    prompts: list[Prompt]
    params: SamplingParams
    id: str
    model: str
    internal: str
    created: int
    parsing: Parsing | None = None
    judged: StructuredOutputsParams | None = None
    route: str = ""
    timing: Timing | None = None
    length_penalty: float | None = None
    token_bytes: TokenBytes | None = None

    @property
    def echo_alone(self) -> bool:
        """The prompt is told, and nothing behind it: a token is generated, since the engine's requests have one."""
        request = self.request
        return isinstance(request, CompletionRequest) and bool(request.echo) and request.max_tokens == 0

    def metrics(self) -> RequestMetrics | UnsetType:
        """Where its time went until now, where the request asks for it."""
        found = self.timing.metrics() if self.timing is not None and self.request.include_metrics else None
        return UNSET if found is None else found


async def completion(services: Services, exchange: Exchange, request: CompletionRequest) -> Generation:
    """POST /v1/completions made ready; InputError names the field at fault."""
    params = sampling_params(services, request)
    _check(services, request)
    sources = split_prompts(request.prompt, "prompt")
    prompts = [await _completion_prompt(services, request, params, source) for source in sources]
    return _generation(services, exchange, request, prompts, params, "cmpl-")


async def chat(services: Services, exchange: Exchange, request: ChatRequest) -> Generation:
    """POST /v1/chat/completions made ready; InputError names the field at fault."""
    if request.thinking_budget is None:
        return await _chat(services, exchange, request)
    if request.thinking_token_budget is not None:
        raise InputError("thinking_budget is thinking_token_budget; send one of them", param="thinking_budget")
    with in_terms({"thinking_token_budget": "thinking_budget"}):
        asked = msgspec.structs.replace(request, thinking_token_budget=request.thinking_budget, thinking_budget=None)
        return await _chat(services, exchange, asked)


async def _chat(services: Services, exchange: Exchange, request: ChatRequest) -> Generation:
    params = sampling_params(services, request)
    _check(services, request)
    ids = await render(services, request)
    echo = echoed_message(request) if request.echo else ""
    prompt = _prompt(services, request, params, ids, echo)
    parsing = answer_parsing(services, request, prompt.token_ids)
    form = judged = params.structured_outputs
    if judged is not None and judged.lenient:
        await services.llm.check(params)
    if form is not None or demands_form(request):
        parsing, form = await asyncio.to_thread(answer_form, services, request, parsing, form)
        params = msgspec.structs.replace(params, structured_outputs=form, thinking_token_budget=None)  # form holds it
    return _generation(services, exchange, request, [prompt], params, "chatcmpl-", parsing=parsing, judged=judged)


def _generation(
    services: Services,
    exchange: Exchange,
    request: CompletionRequest | ChatRequest,
    prompts: list[Prompt],
    params: SamplingParams,
    prefix: str,
    *,
    parsing: Parsing | None = None,
    judged: StructuredOutputsParams | None = None,
) -> Generation:
    tokenizer = services.llm.tokenizer
    if len(prompts) == params.n == 1:
        exchange.timing = Timing(exchange.started_at)
    elif request.include_metrics:
        raise InputError("include_metrics goes with one prompt and n=1: it tells of one", param="include_metrics")
    name = request.request_id or exchange.request_id
    exchange.names.update((name, prefix + name))
    return Generation(
        request=request,
        prompts=prompts,
        params=params,
        id=prefix + name,
        model=services.names.first,
        internal=f"{prefix}{next(_NUMBERS)}",
        created=int(time.time()),
        parsing=parsing,
        judged=judged,
        route=exchange.route,
        timing=exchange.timing,
        length_penalty=length_penalty(request, params),
        token_bytes=None if tokenizer is None else tokenizer.token_bytes,
    )


def sampling_params(services: Services, request: CompletionRequest | ChatRequest) -> SamplingParams:
    """SamplingParams of a request: what it gives, else the model's defaults, else OpenAI's.

    max_new_tokens of override_generation_config is the operator's limit for all requests, as with vLLM.
    """
    values = dict(services.llm.model.sampling)
    values.update((name, value) for name in _COPIED if (value := getattr(request, name)) is not None)
    if isinstance(request, ChatRequest):
        _chat_values(request, values)
    else:
        _completion_values(request, values)
    most, asked = services.llm.config.model.override_generation_config.get("max_new_tokens"), values["max_tokens"]
    if most is not None:
        values["max_tokens"] = most if asked is None else min(asked, most)
    if request.use_beam_search and request.temperature is None:  # whatever the model's own one is
        values["temperature"] = 0.0
    values["output_kind"] = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    try:
        values["structured_outputs"] = structured_params(request)
        return SamplingParams(**values)
    except InputError as error:
        raise in_terms_of(request, error) from None


def in_terms_of(request: GenerationRequest, error: InputError) -> InputError:
    """The error with the name that the client's request has for the field."""
    names = {}
    if isinstance(request, ChatRequest):
        names = {"prompt": "messages", "logprobs": "top_logprobs"}
        if request.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
    elif request.prompt_logprobs is None:
        names = {"prompt_logprobs": "logprobs"}
    name = names.get(error.param or "") or field_name(request, error.param or "")
    return error if name == (error.param or "") else renamed(error, name)


def _completion_values(request: CompletionRequest, values: dict[str, Any]) -> None:
    values.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    if request.max_tokens is not None:
        values["max_tokens"] = request.max_tokens or int(bool(request.echo))  # see Generation.echo_alone
    if request.logprobs is not None:
        values["logprobs"] = request.logprobs
        if request.echo:
            both = (request.logprobs, request.prompt_logprobs or 0)
            values["prompt_logprobs"] = -1 if -1 in both else max(both)


def _chat_values(request: ChatRequest, values: dict[str, Any]) -> None:
    values.setdefault("max_tokens", None)
    if request.max_tokens is not None:
        values["max_tokens"] = request.max_tokens
    if request.max_completion_tokens is not None:
        values["max_tokens"] = request.max_completion_tokens
    if request.logprobs:
        values["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise InputError("top_logprobs needs logprobs=true", param="top_logprobs")


def _check(services: Services, request: GenerationRequest) -> None:
    """What belongs to no sampling parameter."""
    services.llm.check_generates()
    if request.stream_options is not None and not request.stream:
        raise InputError("stream_options needs stream=true", param="stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise InputError("prompt_logprobs come with whole replies only: leave stream out", param="prompt_logprobs")
    if request.priority and services.llm.config.scheduler.scheduling_policy != "priority":
        raise InputError("priority needs a server started with --scheduling-policy priority", param="priority")
    if request.truncate_prompt_tokens == 0:
        raise InputError("truncate_prompt_tokens must be -1 (what fits) or from 1", param="truncate_prompt_tokens")


def split_prompts(source: str | list[int | str | list[int]], name: str) -> list[str | list[int]]:
    """A text, token ids, or a list of either. InputError names the field that they came in."""
    if isinstance(source, str):
        return [source]
    if not source:
        raise InputError(f"{name} is empty; send a text, token ids, or a list of either", param=name)
    kinds = set(map(type, source))
    if len(kinds) > 1:
        raise InputError(f"{name} mixes texts, token ids and lists; send one kind", param=name)
    if kinds == {int}:
        return [source]  # type: ignore[list-item]
    if len(source) > MAX_PROMPTS:
        raise InputError(f"{name} holds {len(source)} prompts; at most {MAX_PROMPTS} are taken", param=name)
    return source  # type: ignore[return-value]


async def _completion_prompt(
    services: Services, request: CompletionRequest, params: SamplingParams, source: str | list[int]
) -> Prompt:
    if isinstance(source, str):
        add = request.add_special_tokens is not False
        ids = await services.llm.encode(source, add_special_tokens=add)
        prompt = _prompt(services, request, params, ids, source)
        if not request.echo or request.truncate_prompt_tokens is None:
            return prompt
    else:
        prompt = _prompt(services, request, params, source, "")
        if not request.echo:
            return prompt
    return replace(prompt, echo=await services.llm.decode(prompt.token_ids))


def _prompt(
    services: Services, request: GenerationRequest, params: SamplingParams, ids: list[int], echo: str
) -> Prompt:
    keep = request.truncate_prompt_tokens
    if keep is not None:
        room = services.llm.info["max_model_len"] - (params.max_tokens or 1)
        keep = max(1, room) if keep == -1 else keep
        ids = ids[-keep:]
    tokenizer = services.llm.tokenizer
    first = ""
    if request.echo and tokenizer is not None and ids and 0 <= ids[0] < tokenizer.vocab_size:
        first = tokenizer.decode(ids[:1], skip_special_tokens=False)
    return Prompt(ids, echo if request.echo else "", first)

"""Token ids and SamplingParams in, a checked Request out: the one door through which every request enters the engine.

SamplingParams check themselves; here is what depends on the model: vocabulary, context length, tokenizer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from octavo.api.judging import Judge
from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.ports import TextTokenizer
from octavo.base.types.request import Request
from octavo.base.types.sampling import (
    INT64,
    MAX_LOGPROBS,
    NO_BUDGET,
    RANDOM_SEED,
    RequestOutputKind,
    SamplingParams,
    reasoning_budget,
)
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine import process
from octavo.engine.grammar.checker import Checker
from octavo.models.spec import Pooling

if TYPE_CHECKING:
    from octavo.text.template import ChatTemplate

MAX_CACHE_SALT = 128
MAX_REQUEST_ID = 256


@dataclass(frozen=True)
class Limits:
    """What a request is checked against. max_logprobs -1: no limit. seeds: draws the seeds that requests leave out.

    pooling: the model makes vectors of prompts, vector_size long, or hidden_size of tokens.  token_types: kinds of
    tokens that it tells apart.
    pair_template: makes a prompt of the two texts that a classifier reads together.  joins_pairs: without one they
    are one text, one behind the other, and no pair of the tokenizer's.
    checker: tries structured outputs out, which may take seconds; without one the engine alone tells what is wrong.
    template: the chat template's text, which tells how answers mark reasoning, unless reasoning_parser names the way.
    """

    vocab_size: int
    max_model_len: int
    tokenizer: TextTokenizer | None = None
    eos_token_ids: tuple[int, ...] = ()
    max_logprobs: int = MAX_LOGPROBS
    seeds: random.Random = field(default_factory=random.Random)
    pooling: Pooling | None = None
    hidden_size: int = 0
    vector_size: int = 0
    token_types: int = 0
    pair_template: ChatTemplate | None = None
    joins_pairs: bool = False
    checker: Checker | None = None
    template: str = ""
    reasoning_parser: str | None = None

    def check_generates(self) -> None:
        """UnsupportedError for a model that makes vectors."""
        if self.pooling is not None:
            what = "classifies texts" if self.pooling.labels else "makes embeddings"
            raise UnsupportedError(f"this model does not generate, it {what}", param="model")

    def judge(self, params: SamplingParams, form: StructuredOutputsParams | None = None) -> Judge | None:
        """Of a request whose form is lenient. form: where params have another one, that holds it."""
        if form is None and reasoning_budget(params) is not None:
            return None  # the text is no answer alone: reasoning stands before it
        form = getattr(params, "structured_outputs", None) if form is None else form
        if not isinstance(form, StructuredOutputsParams) or not form.lenient or self.checker is None:
            return None  # what is none is told later
        return Judge(self.checker, form, delta=params.output_kind is RequestOutputKind.DELTA)

    def close(self) -> None:
        """End the checker's process; idempotent."""
        if self.checker is not None:
            self.checker.close()


def make_request(
    prompt_ids: list[int],
    params: SamplingParams,
    *,
    limits: Limits,
    request_id: str,
    priority: int = 0,
    cache_salt: str = "",
) -> Request:
    """The Request, or InputError naming the field at fault. params.max_tokens is cut to what the context leaves."""
    if not isinstance(params, SamplingParams):
        name = type(params).__name__
        raise InputError(f"sampling_params must be SamplingParams, got {name}", param="sampling_params")
    params = msgspec.structs.replace(params)  # checks what was set since it was made, and is nobody else's
    limits.check_generates()
    check_labels(request_id, priority, cache_salt)
    _check_prompt(prompt_ids, limits)
    check_ids("stop_token_ids", params.stop_token_ids or (), limits.vocab_size)
    check_ids("allowed_token_ids", params.allowed_token_ids or (), limits.vocab_size)
    check_ids("logit_bias", params.logit_bias or (), limits.vocab_size)
    _check_logprobs("logprobs", params.logprobs, limits)
    _check_logprobs("prompt_logprobs", params.prompt_logprobs, limits, positions=len(prompt_ids))
    if limits.tokenizer is None:
        _check_textless(params)
    else:
        params = _bounded(params, prompt_ids, limits)
        if params.structured_outputs is not None and limits.checker is not None:
            limits.checker.check(params.structured_outputs)
    return Request(
        request_id=request_id,
        prompt_token_ids=list(prompt_ids),
        params=params,
        max_tokens=_max_tokens(params, len(prompt_ids), limits.max_model_len),
        seed=_seed(params.seed, limits.seeds),
        eos_token_ids=list(limits.eos_token_ids),
        bad_words_ids=_bad_words_ids(params.bad_words or [], limits),
        priority=priority,
        arrival=time.monotonic(),
        cache_salt=cache_salt,
    )


def final_only(params: SamplingParams) -> SamplingParams:
    """For a call that returns each request once, whatever kind its parameters ask for. InputError for others."""
    if isinstance(params, SamplingParams):
        return msgspec.structs.replace(params, output_kind=RequestOutputKind.FINAL_ONLY)
    name = type(params).__name__
    raise InputError(f"sampling_params must be SamplingParams or a list of them, got {name}", param="sampling_params")


def check_labels(request_id: str, priority: int, cache_salt: str) -> None:
    """InputError for what no request may be called or sorted by."""
    if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_REQUEST_ID:
        raise InputError(f"request_id must be a string of 1 to {MAX_REQUEST_ID} characters", param="request_id")
    if not _is_int(priority) or not -INT64 <= priority < INT64:
        raise InputError(f"priority must be a 64-bit integer, got {priority!r:.80}", param="priority")
    if not isinstance(cache_salt, str) or len(cache_salt) > MAX_CACHE_SALT:
        raise InputError(f"cache_salt must be a string of at most {MAX_CACHE_SALT} characters", param="cache_salt")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_prompt(prompt_ids: list[int], limits: Limits) -> None:
    if not isinstance(prompt_ids, list | tuple):
        raise InputError(f"the prompt must be a list of token ids, got {type(prompt_ids).__name__}", param="prompt")
    if not prompt_ids:
        raise InputError("the prompt is empty; at least one token is needed", param="prompt")
    if len(prompt_ids) >= limits.max_model_len:
        # in the words of Anthropic's and OpenAI's servers, by which agents tell that they are to compact a conversation
        raise InputError(
            f"the prompt is too long: {len(prompt_ids)} tokens > {limits.max_model_len - 1} maximum; this model's "
            f"maximum context length is {limits.max_model_len} tokens (max_model_len) for prompt and output together: "
            "shorten the prompt",
            param="prompt",
        )
    check_ids("prompt", prompt_ids, limits.vocab_size)


def check_ids(name: str, ids: Collection[int], vocab_size: int) -> None:
    """InputError for what is no token id of the vocabulary; name: the field they stand in."""
    if not ids:
        return
    # the set of types first: a bool is an int, and an id of another type could not be compared
    if not {int} >= set(map(type, ids)):
        wrong = next(i for i in ids if type(i) is not int)
        raise InputError(f"{name} holds {wrong!r:.80}; token ids are integers", param=name)
    if min(ids) < 0 or max(ids) >= vocab_size:
        outside = next(i for i in ids if not 0 <= i < vocab_size)
        raise InputError(f"{name} holds token id {outside}; the vocabulary has 0 to {vocab_size - 1}", param=name)


def _check_logprobs(name: str, asked: int | None, limits: Limits, *, positions: int = 1) -> None:
    """positions: tokens whose log probabilities come together."""
    if asked is None:
        return
    count = limits.vocab_size if asked == -1 else asked
    if count > limits.vocab_size:
        raise InputError(f"{name}={asked} is more than the vocabulary's {limits.vocab_size} tokens", param=name)
    shown = f"{asked} (all)" if asked == -1 else asked
    if limits.max_logprobs != -1 and count > limits.max_logprobs:
        raise InputError(
            f"{name}={shown} is above max_logprobs={limits.max_logprobs}; ask for fewer, or start with a higher "
            f"max_logprobs",
            param=name,
        )
    most = process.MAX_FRAME // process.LOGPROB_BYTES // positions - 2  # one is the token's own, one is for the rest
    if count > most:
        raise InputError(
            f"{name}={shown}: {count} alternatives at each of the prompt's {positions} tokens are more than an answer "
            f"can hold; ask for at most {most}, or shorten the prompt",
            param=name,
        )


def _check_textless(params: SamplingParams) -> None:
    for name in ("stop", "bad_words", "structured_outputs", "thinking_token_budget"):
        if getattr(params, name) not in (None, [], "", NO_BUDGET):
            raise InputError(f"{name} needs a tokenizer, and skip_tokenizer_init is set", param=name)


def _bounded(params: SamplingParams, prompt_ids: list[int], limits: Limits) -> SamplingParams:
    """With thinking_token_budget as a part of the form."""
    budget, tokenizer = reasoning_budget(params), limits.tokenizer
    if budget is None or tokenizer is None:
        return params
    from octavo.text.reasoning import PROMPT_END
    from octavo.text.tools.bound import make_bound
    from octavo.text.tools.choose import reasoning_format
    from octavo.text.tools.forced import bounded_form

    reasoning = reasoning_format(limits.reasoning_parser, limits.template)
    bound = make_bound(budget, reasoning, tokenizer, vocab_size=limits.vocab_size)
    form = params.structured_outputs
    if reasoning is not None:  # or there is no bound
        special = tokenizer.special_ids()
        end = tokenizer.decode(prompt_ids[-PROMPT_END:], skip_special_tokens=False)
        opened = bound.left_open(prompt_ids) or reasoning.opened(end)
        form = bounded_form(form, bound, special=special, reasoning=reasoning, opened=opened)
    return msgspec.structs.replace(params, structured_outputs=form, thinking_token_budget=None)


def _max_tokens(params: SamplingParams, num_prompt: int, max_model_len: int) -> int:
    rest = max_model_len - num_prompt
    if params.min_tokens > rest:
        raise InputError(
            f"min_tokens={params.min_tokens} does not fit: the prompt has {num_prompt} of the context's "
            f"{max_model_len} tokens",
            param="min_tokens",
        )
    return rest if params.max_tokens is None else min(params.max_tokens, rest)


def _seed(seed: int | None, seeds: random.Random) -> int:
    return seeds.getrandbits(63) if seed is None or seed == RANDOM_SEED else seed


def _bad_words_ids(words: list[str], limits: Limits) -> list[list[int]]:
    """Each word as tokenized at a text's start and after a space; what the model cannot sample is left out."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip(" ")
        for text in (bare, " " + bare) if bare else (word,):
            if limits.tokenizer is None:
                continue
            ids = limits.tokenizer.encode(text, add_special_tokens=False)
            if ids and max(ids) < limits.vocab_size:
                found[tuple(ids)] = None
    return [list(ids) for ids in found]

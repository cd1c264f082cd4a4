"""SamplingParams: how one request's tokens are chosen. Field names, defaults and meanings are vLLM's."""

from __future__ import annotations

import copy
import math
from enum import IntEnum

import msgspec

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams

MAX_N = 128
MAX_STOP_STRINGS = 64  # a chat of many characters has their names, and the marks of its prompt
MAX_LOGPROBS = 20
MAX_BAD_WORDS = 128
MAX_STOP_TOKEN_IDS = 1024
INT64 = 2**63
NO_BUDGET = -1  # of thinking_token_budget: as many as the model likes
RANDOM_SEED = -1  # vLLM's and llama.cpp's way to ask for none


class RequestOutputKind(IntEnum):
    """What each `RequestOutput` of a stream holds."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How tokens are chosen and when a sequence ends.

    n: completions per prompt, 1..128.  temperature: 0 is greedy.  top_k: 0 or -1 keeps all.
    seed: same seed, same tokens; None or -1 draws one.  stop: strings that end the text (not shown unless
    include_stop_str_in_output).  max_tokens: None means as many as the context allows.
    logprobs / prompt_logprobs: number of alternatives per position, at most `max_logprobs` of the engine.
    logit_bias: token id -> added to the logit.  allowed_token_ids: nothing else is sampled.
    bad_words: strings never completed.  structured_outputs: the form that the answer must have.
    thinking_token_budget: the most tokens of reasoning, whose end is then written for the model; -1: no bound. For
    models that mark reasoning by a token each (<think> and </think>); a form then begins behind the reasoning.
    Raises InputError naming the field; where a field was set later, the call that takes the parameters raises it.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None

    def __post_init__(self) -> None:
        for name, lowest, highest in _INTEGERS:
            check_integer(name, getattr(self, name), lowest, highest)
        for name, low, high in _NUMBERS:
            check_number(name, getattr(self, name), low, high)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {_show(getattr(self, name))}", param=name)
        if self.repetition_penalty == 0:
            raise InputError("repetition_penalty must be above 0", param="repetition_penalty")
        if self.top_p == 0:
            raise InputError("top_p must be above 0 and at most 1; for greedy use temperature=0", param="top_p")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise InputError(f"output_kind is no RequestOutputKind: {_show(self.output_kind)}", param="output_kind")
        if self.stop is not None:
            _check_stop(self.stop_strings, self.detokenize)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        _check_ids("allowed_token_ids", self.allowed_token_ids, None)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InputError("allowed_token_ids is empty: no token could be sampled", param="allowed_token_ids")
        _check_bias(self.logit_bias)
        _check_strings("bad_words", self.bad_words, MAX_BAD_WORDS)
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise InputError("structured_outputs must be StructuredOutputsParams", param="structured_outputs")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputError(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})", param="min_tokens"
            )

    def clone(self) -> SamplingParams:
        """A copy that shares nothing with it."""
        return copy.deepcopy(self)

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always taken."""
        return self.temperature < 1e-5

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


def reasoning_budget(asked: object) -> int | None:
    """The tokens that thinking_token_budget bounds reasoning to; None where it is no bound, or `asked` has no such."""
    budget: int | None = getattr(asked, "thinking_token_budget", None)
    return None if budget == NO_BUDGET else budget


_INTEGERS: tuple[tuple[str, int | None, int], ...] = (
    # name, lowest (None: the field may be None, then 0 or above), highest
    ("n", 1, MAX_N),
    ("top_k", -1, INT64 - 1),
    ("min_tokens", 0, INT64 - 1),
    ("seed", None, INT64 - 1),
    ("max_tokens", None, INT64 - 1),
    ("logprobs", None, INT64 - 1),
    ("prompt_logprobs", None, INT64 - 1),
    ("thinking_token_budget", None, 2**31 - 1),
)
_NUMBERS = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 1e6),
)
_FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)
# lowest values of the fields that may be None
_LOWEST = {"seed": -INT64, "max_tokens": 1, "logprobs": -1, "prompt_logprobs": -1, "thinking_token_budget": NO_BUDGET}


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_integer(name: str, value: object, low: int | None, high: int) -> None:
    """InputError unless it is one from low to high; low None: it may be None too."""
    if value is None and low is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be an integer, got {_show(value)}", param=name)
    lowest = _LOWEST[name] if low is None else low
    if not lowest <= value <= high:
        raise InputError(f"{name} must be between {lowest} and {high}, got {_show(value)}", param=name)


def check_number(name: str, value: object, low: float, high: float) -> None:
    """InputError unless it is finite and from low to high."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InputError(f"{name} must be a number, got {_show(value)}", param=name)
    if not low <= value <= high:
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be finite, got {value}", param=name)
        raise InputError(f"{name} must be between {low:g} and {high:g}, got {_show(value)}", param=name)


def _check_strings(name: str, values: object, most: int) -> None:
    if values is None:
        return
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise InputError(f"{name} must be non-empty strings", param=name)
    if len(values) > most:
        raise InputError(f"{name} may hold at most {most} strings, got {len(values)}", param=name)


def _check_stop(stops: list[str], detokenize: bool) -> None:
    _check_strings("stop", stops, MAX_STOP_STRINGS)
    if stops and not detokenize:
        raise InputError("stop strings need detokenize=true", param="stop")


def _check_ids(name: str, ids: object, most: int | None) -> None:
    if ids is None:
        return
    if not isinstance(ids, list | tuple) or not all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < INT64 for i in ids
    ):
        raise InputError(f"{name} must be a list of token ids (integers from 0)", param=name)
    if most is not None and len(ids) > most:
        raise InputError(f"{name} may hold at most {most} ids, got {len(ids)}", param=name)


def _check_bias(bias: object) -> None:
    if bias is None:
        return
    if not isinstance(bias, dict):
        raise InputError("logit_bias must map token ids to numbers", param="logit_bias")
    for token, value in bias.items():
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < INT64:
            raise InputError(f"logit_bias has the key {_show(token)}; keys are token ids", param="logit_bias")
        check_number("logit_bias", value, -100.0, 100.0)

"""Texts and PoolingParams in, checked Requests out; Outputs in, PoolingRequestOutputs out: for models that pool."""

from __future__ import annotations

import math
import sys
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.api.prompts import Prompt
from octavo.api.requests import Limits, check_ids, check_labels
from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.output import Output
from octavo.base.types.pooled import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo.base.types.pooling import PoolingParams, PoolingTask, RowPooling
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams
from octavo.models.spec import Pooling

if TYPE_CHECKING:
    from octavo.text.template import ChatTemplate

AnyPoolingOutput = PoolingRequestOutput[PoolingOutput]


@dataclass(frozen=True)
class Pair:
    """Two texts that a cross-encoder reads together."""

    first: str
    second: str


def default_task(pooling: Pooling | None) -> PoolingTask:
    """What a model is for. UnsupportedError for one that generates."""
    if pooling is None:
        raise UnsupportedError(
            "this model generates text; for vectors start it with runner=pooling (--runner pooling)", param="model"
        )
    return "classify" if pooling.labels else "embed"


def make_pooling_request(
    prompt: Prompt | Pair, params: PoolingParams, *, limits: Limits, request_id: str, priority: int = 0
) -> Request:
    """The Request: tokenized, cut where asked for, checked against the model. InputError names the field at fault."""
    if not isinstance(params, PoolingParams):
        name = type(params).__name__
        raise InputError(f"pooling_params must be PoolingParams, got {name}", param="pooling_params")
    asked = _resolve(params, limits)
    check_labels(request_id, priority, "")
    ids, second = _encode(prompt, params, limits)
    if not ids:
        raise InputError("the prompt is empty; at least one token is needed", param="prompt")
    if len(ids) > limits.max_model_len:
        raise InputError(
            f"the prompt has {len(ids)} tokens and the model takes {limits.max_model_len}: shorten it, or have it cut "
            "by truncate_prompt_tokens",
            param="prompt",
        )
    check_ids("prompt", ids, limits.vocab_size)
    return Request(
        request_id=request_id,
        prompt_token_ids=ids,
        params=SamplingParams(),
        max_tokens=0,
        seed=0,
        priority=priority,
        arrival=time.monotonic(),
        pooling=msgspec.structs.replace(asked, second=second if limits.token_types > 1 else 0),
    )


def _resolve(params: PoolingParams, limits: Limits) -> RowPooling:
    pooling = limits.pooling
    own = default_task(pooling)
    task = params.task or own
    labels = pooling.labels if pooling else 0
    if (own == "embed") != (task in ("embed", "token_embed")):
        what = "makes embeddings" if own == "embed" else "classifies (convert=embed makes embeddings of it)"
        raise UnsupportedError(f"task={task} is not what this model is for: it {what}", param="task")
    if task == "score" and labels != 1:
        raise UnsupportedError(f"task=score needs a model with one label, this one has {labels}", param="task")
    if params.dimensions is not None:
        size = limits.hidden_size if task == "token_embed" else limits.vector_size
        _check_dimensions(params.dimensions, pooling, size)
    activate = params.use_activation
    if activate is None:
        activate = own != "embed" or (pooling is not None and pooling.normalize)
    return RowPooling(tokens=task == "token_embed", dimensions=params.dimensions or 0, activate=activate)


def _check_dimensions(dimensions: int, pooling: Pooling | None, size: int) -> None:
    """size: of the vectors."""
    allowed = pooling.dimensions if pooling is not None and not pooling.labels else None
    if dimensions == size and pooling is not None and not pooling.labels:
        return
    if allowed is None:
        raise UnsupportedError(
            f"dimensions={dimensions}: this model was not made for shorter vectors (is_matryoshka in its config.json)",
            param="dimensions",
        )
    if dimensions > size or (allowed and dimensions not in allowed):
        need = f"one of {', '.join(map(str, allowed))}" if allowed else f"at most {size}"
        raise InputError(f"dimensions must be {need}, got {dimensions}", param="dimensions")


def _encode(prompt: Prompt | Pair, params: PoolingParams, limits: Limits) -> tuple[list[int], int]:
    """Token ids, cut to what params ask for, and where a pair's second text begins (0: nowhere)."""
    longest = params.truncate_prompt_tokens
    if longest == -1:
        longest = limits.max_model_len
    if longest is not None and longest > limits.max_model_len:
        raise InputError(
            f"truncate_prompt_tokens={longest} is more than the {limits.max_model_len} tokens that the model takes",
            param="truncate_prompt_tokens",
        )
    if isinstance(prompt, Prompt) and prompt.token_ids is not None:
        return list(prompt.token_ids)[:longest], 0
    if limits.tokenizer is None:
        raise InputError("the prompt is text and skip_tokenizer_init is set; give token ids", param="prompt")
    if isinstance(prompt, Pair) and limits.pair_template is not None:
        return _templated(prompt, limits.pair_template, longest), 0
    if isinstance(prompt, Pair) and limits.joins_pairs:
        return limits.tokenizer.encode_whole(prompt.first + prompt.second, longest=longest)
    if isinstance(prompt, Pair):
        return limits.tokenizer.encode_whole(prompt.first, prompt.second, longest=longest)
    return limits.tokenizer.encode_whole(prompt.text or "", longest=longest)


def _templated(pair: Pair, template: ChatTemplate, longest: int | None) -> list[int]:
    """By vLLM's form of such templates: two messages, of the roles query and document."""
    messages = [{"role": "query", "content": pair.first}, {"role": "document", "content": pair.second}]
    ids = template.render_ids(messages, add_generation_prompt=False)
    if longest is not None and len(ids) > longest:
        raise InputError(
            f"the prompt has {len(ids)} tokens, and what the chat template makes is not cut: its end asks the model; "
            "shorten the document",
            param="prompt",
        )
    return ids


class PoolingProgress:
    """One request under way; as outputs.RequestProgress is one that generates."""

    num_output_tokens = 0

    def __init__(self, request: Request, *, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self._last: Output | None = None
        self._taken = False

    @property
    def finished(self) -> bool:
        """True once the vector has come, or an error."""
        return self._last is not None

    def resume(self) -> list[list[int] | None]:
        """Another engine is to make it: nothing has come before (messages.Add)."""
        return [[]]

    def push(self, output: Output) -> list[str]:
        """Take the one Output in; nothing is ever to be aborted because of it."""
        self._last = self._last or output
        return []

    def take(self) -> AnyPoolingOutput | None:
        """The result, once; None before it has come."""
        last = self._last
        if last is None or self._taken:
            return None
        self._taken = True
        return PoolingRequestOutput(
            request_id=self.request_id,
            outputs=PoolingOutput(self._vectors(last.pooled or b"")),
            prompt_token_ids=self.request.prompt_token_ids,
            num_cached_tokens=last.num_cached_tokens,
            metrics=last.times,
            error=last.error,
        )

    def _vectors(self, pooled: bytes) -> list[float] | list[list[float]]:
        numbers = array("f")
        numbers.frombytes(pooled)
        if sys.byteorder == "big":
            numbers.byteswap()
        values = numbers.tolist()
        if self.request.pooling is None or not self.request.pooling.tokens or not values:
            return values
        width = len(values) // len(self.request.prompt_token_ids)
        return [values[at : at + width] for at in range(0, len(values), width)]


def as_embedding(output: AnyPoolingOutput) -> EmbeddingRequestOutput:
    """Of task embed."""
    return EmbeddingRequestOutput(outputs=EmbeddingOutput(vector(output)), **_rest(output))


def as_classification(output: AnyPoolingOutput) -> ClassificationRequestOutput:
    """Of task classify."""
    return ClassificationRequestOutput(outputs=ClassificationOutput(vector(output)), **_rest(output))


def as_score(output: AnyPoolingOutput) -> ScoringRequestOutput:
    """Of task score, whose vector is one number."""
    return ScoringRequestOutput(outputs=ScoringOutput(math.fsum(vector(output))), **_rest(output))


def cosine_score(first: AnyPoolingOutput, second: AnyPoolingOutput) -> ScoringRequestOutput:
    """Of two embeddings. One that failed fails it."""
    rest = {**_rest(second), "prompt_token_ids": first.prompt_token_ids + second.prompt_token_ids}
    rest["error"] = first.error or second.error
    score = 0.0 if rest["error"] else cosine(vector(first), vector(second))
    return ScoringRequestOutput(outputs=ScoringOutput(score), **rest)


def _rest(output: AnyPoolingOutput) -> dict[str, Any]:
    """All but the outputs."""
    return {name: value for name, value in vars(output).items() if name != "outputs"}


def vector(output: AnyPoolingOutput) -> list[float]:
    """The one vector of an output that is not a token's each."""
    return [number for number in output.outputs.data if isinstance(number, float)]


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 where one of them is zero."""
    lengths = math.sqrt(sum(map(mul, first, first))) * math.sqrt(sum(map(mul, second, second)))
    return sum(map(mul, first, second)) / lengths if lengths else 0.0


def as_texts(value: object, name: str) -> list[str]:
    """A text, or texts, as a list. InputError names what is neither."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Iterable) or isinstance(found, Mapping):
        raise InputError(f"{name} must be a text or a list of texts, got {type(value).__name__}", param=name)
    texts = list(found)
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{name} must hold texts, got {type(text).__name__}", param=name)
    return texts


def match_pairs(firsts: list[str], seconds: list[str], names: tuple[str, str]) -> list[Pair]:
    """One first text for all seconds, or as many firsts as seconds. InputError names the field."""
    if not firsts or not seconds:
        raise InputError(f"{names[not seconds]} is empty; at least one text is needed", param=names[not seconds])
    if len(firsts) not in (1, len(seconds)):
        raise InputError(
            f"{names[0]} holds {len(firsts)} texts for {len(seconds)} of {names[1]}; give one, or as many",
            param=names[0],
        )
    return [Pair(first, second) for first, second in zip(firsts * (len(seconds) // len(firsts)), seconds, strict=True)]

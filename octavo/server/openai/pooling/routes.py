"""POST /v1/embeddings, /pooling, /classify, /score, /rerank (Jina's and Cohere's) and /v2/embed (Cohere's)."""

from __future__ import annotations

import asyncio
from typing import Any

from octavo.api.pooling import AnyPoolingOutput, Pair, as_score, cosine_score, default_task, match_pairs, vector
from octavo.api.prompts import Prompt
from octavo.base.errors import InputError
from octavo.base.types.pooling import PoolingParams
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai.pooling import replies
from octavo.server.openai.pooling.run import beginning, check_count, head, inputs, read, run, shown, typed, usage
from octavo.server.openai.pooling.types import (
    ClassifyRequest,
    Document,
    EmbeddingRequest,
    EmbedRequest,
    InputRequest,
    PoolingRequest,
    PoolRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo.server.openai.terms import in_terms
from octavo.server.services import Services

COHERES_NAMES = {"dimensions": "output_dimension", "truncate_prompt_tokens": "max_tokens"}


async def create_embeddings(services: Services, exchange: Exchange) -> Reply:
    """A vector an input."""
    request = await read(services, exchange, EmbeddingRequest)
    outputs = await _outputs(services, request, task="embed")
    vectors = (shown(output.outputs.data, request.encoding_format) for output in outputs)
    data = [replies.Embedding(index, one) for index, one in enumerate(vectors)]
    begin = head(services, exchange, request, "embd-")
    return json_reply(replies.EmbeddingsReply(data=data, usage=usage(outputs), **begin))


async def create_pooling(services: Services, exchange: Exchange) -> Reply:
    """What the model makes of each input, or the task that is asked for."""
    request = await read(services, exchange, PoolRequest)
    outputs = await _outputs(services, request, task=request.task)
    vectors = (shown(output.outputs.data, request.encoding_format) for output in outputs)
    data = [replies.Pooled(index, one) for index, one in enumerate(vectors)]
    begin = head(services, exchange, request, "pool-")
    return json_reply(replies.PoolingReply(data=data, usage=usage(outputs), **begin))


async def create_classes(services: Services, exchange: Exchange) -> Reply:
    """Probabilities of the classes, and the likeliest class, an input."""
    request = await read(services, exchange, ClassifyRequest)
    outputs = await _outputs(services, request, task="classify")
    labels, data = services.llm.model.labels, []
    for index, output in enumerate(outputs):
        probs = vector(output)
        data.append(replies.Classes(index, labels[probs.index(max(probs))], probs, len(probs)))
    begin = head(services, exchange, request, "classify-")
    return json_reply(replies.ClassesReply(data=data, usage=usage(outputs), **begin))


async def create_scores(services: Services, exchange: Exchange) -> Reply:
    """How well texts fit."""
    request = await read(services, exchange, ScoreRequest)
    firsts, first = _one_of(request, "text_1", "queries", "data_1")
    seconds, second = _one_of(request, "text_2", "documents", "items", "data_2")
    scores, counted = await _score(services, match_pairs(firsts, seconds, (first, second)), request, name=second)
    data = [replies.Score(index, score) for index, score in enumerate(scores)]
    begin = head(services, exchange, request, "score-")
    return json_reply(replies.ScoresReply(data=data, usage=counted, **begin))


async def create_rerank(services: Services, exchange: Exchange) -> Reply:
    """Documents by how well they fit the query, the best first."""
    request = await read(services, exchange, RerankRequest)
    check_count(len(request.documents), "documents")
    texts = [document.text if isinstance(document, Document) else document for document in request.documents]
    read_of = await _beginnings(services, texts, request.max_tokens_per_doc)
    scores, counted = await _score(services, [Pair(request.query, text) for text in read_of], request, name="documents")
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: request.top_n or None]
    results = [
        replies.RerankResult(index, scores[index])
        if request.return_documents is False
        else replies.RerankResult(index, scores[index], replies.DocumentText(texts[index]))
        for index in order
    ]
    begin = head(services, exchange, request, "rerank-")
    reply = replies.RerankReply(
        id=begin["id"], model=begin["model"], usage=counted, results=results, meta=_meta(counted.prompt_tokens)
    )
    return json_reply(reply)


async def create_cohere_embeddings(services: Services, exchange: Exchange) -> Reply:
    """Vectors of texts, in each of the types that are asked for."""
    request = await read(services, exchange, EmbedRequest)
    check_count(len(request.texts), "texts")
    longest = request.max_tokens
    if request.truncate == "NONE":
        if longest is not None:
            raise InputError("max_tokens cuts texts: it needs truncate END", param="max_tokens")
    elif longest is None:
        longest = -1
    kinds = list(dict.fromkeys(request.embedding_types or ["float"]))
    _check_bytes(kinds, request.output_dimension or services.llm.model.spec.vector_size())
    prefix = beginning(services, request.input_type)
    prompts = [Prompt(prefix + text, None) for text in request.texts]
    try:
        with in_terms(COHERES_NAMES):
            params = PoolingParams(task="embed", dimensions=request.output_dimension, truncate_prompt_tokens=longest)
            outputs = await run(services, prompts, params, name="texts", request=request)
    except InputError as error:  # of texts that are too long: the remedy is another field's here
        told = error.message.replace("truncate_prompt_tokens", "truncate END")
        raise type(error)(told, param=error.param) from None
    reply = replies.EmbedReply(
        id=exchange.request_id,
        embeddings=await asyncio.to_thread(_by_type, outputs, kinds),
        texts=request.texts,
        meta=_meta(usage(outputs).prompt_tokens),
    )
    return json_reply(reply)


async def _outputs(services: Services, request: InputRequest, *, task: Any) -> list[AnyPoolingOutput]:
    params = _params(request, task=task)
    input_type = request.input_type if isinstance(request, EmbeddingRequest) else None
    prompts = await inputs(services, request, input_type=input_type)
    return await run(services, prompts, params, name=request.source(), request=request)


def _meta(tokens: int) -> replies.CohereMeta:
    return replies.CohereMeta(replies.ApiVersion(), replies.BilledUnits(tokens))


async def _beginnings(services: Services, texts: list[str], longest: int | None) -> list[str]:
    """The texts, each cut to so many tokens. Without a tokenizer they are refused later."""
    tokenizer = services.llm.tokenizer
    if not longest or tokenizer is None:
        return texts
    return await asyncio.to_thread(lambda: [tokenizer.cut(text, longest) for text in texts])


def _check_bytes(kinds: list[str], size: int) -> None:
    """InputError where vectors of `size` numbers make no whole bytes."""
    kind = next((kind for kind in kinds if kind.endswith("binary")), None)
    if kind is not None and size % 8:
        raise InputError(
            f"embedding_types has {kind}, which needs vectors of a multiple of 8 numbers, and these have {size}",
            param="embedding_types",
        )


def _by_type(outputs: list[AnyPoolingOutput], kinds: list[str]) -> dict[str, list[replies.Typed]]:
    """Aside, as _cosines."""
    vectors = [vector(output) for output in outputs]
    return {kind: [typed(one, kind) for one in vectors] for kind in kinds}


async def _score(
    services: Services, pairs: list[Pair], request: PoolingRequest, *, name: str
) -> tuple[list[float], Any]:
    """A cross-encoder reads each pair; of a model that makes embeddings it is the cosine of the two texts'."""
    if default_task(services.llm.model.spec.pooling) == "classify":
        found = await run(services, pairs, _params(request, task="score"), name=name, request=request)
        return [as_score(output).outputs.score for output in found], usage(found)
    check_count(len(pairs), name)  # however few texts they are
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    prompts = [Prompt(text, None) for text in texts]
    found = await run(services, prompts, _params(request, task="embed"), name=name, request=request)
    known = dict(zip(texts, found, strict=True))
    return await asyncio.to_thread(_cosines, pairs, known), usage(found)


def _cosines(pairs: list[Pair], known: dict[str, AnyPoolingOutput]) -> list[float]:
    """Aside: of long vectors they take as long as a second."""
    return [cosine_score(known[pair.first], known[pair.second]).outputs.score for pair in pairs]


def _params(request: PoolingRequest, *, task: Any) -> PoolingParams:
    activate = request.use_activation
    if isinstance(request, EmbeddingRequest) and request.normalize is not None:
        if activate is not None and activate != request.normalize:
            raise InputError("normalize and use_activation are one thing, and contradict each other", param="normalize")
        activate = request.normalize
    return PoolingParams(
        task=task,
        dimensions=request.dimensions if isinstance(request, EmbeddingRequest) else None,
        use_activation=activate,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )


def _one_of(request: ScoreRequest, name: str, *others: str) -> tuple[list[str], str]:
    """The texts in the one of these fields that is given, and its name."""
    given = [(key, value) for key in (name, *others) if (value := getattr(request, key)) is not None]
    if len(given) != 1:
        what = "is required" if not given else f"and {', '.join(others)} are one thing; send one of them"
        raise InputError(f"{name} {what}", param=name)
    key, value = given[0]
    texts = [value] if isinstance(value, str) else value
    check_count(len(texts), key)
    return texts, key

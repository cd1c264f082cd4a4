"""The JSON bodies that the routes that pool answer with, as types. UNSET fields do not appear."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.replies import Usage

Vector = list[float | list[float]] | str
"""Numbers, or a list of them a token; or base64 of float32, little-endian."""
Typed = list[float | int] | str
"""Numbers, base64 as above, or bytes of eight numbers' signs each."""


class Embedding(msgspec.Struct, frozen=True):
    """One input's."""

    index: int
    embedding: Vector
    object: str = "embedding"


class Pooled(msgspec.Struct, frozen=True):
    """One input's of /pooling."""

    index: int
    data: Vector
    object: str = "pooling"


class Classes(msgspec.Struct, frozen=True):
    """One input's of /classify; label: the likeliest class's."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Score(msgspec.Struct, frozen=True):
    """One pair's."""

    index: int
    score: float
    object: str = "score"


class ListReply(msgspec.Struct, frozen=True, kw_only=True):
    """What replies with an entry an input share."""

    id: str
    object: str = "list"
    created: int
    model: str
    usage: Usage


class EmbeddingsReply(ListReply, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    data: list[Embedding]


class PoolingReply(ListReply, frozen=True, kw_only=True):
    """POST /pooling."""

    data: list[Pooled]


class ClassesReply(ListReply, frozen=True, kw_only=True):
    """POST /classify."""

    data: list[Classes]


class ScoresReply(ListReply, frozen=True, kw_only=True):
    """POST /score."""

    data: list[Score]


class DocumentText(msgspec.Struct, frozen=True):
    """A document, as it was sent."""

    text: str


class RerankResult(msgspec.Struct, frozen=True):
    """One document, by its place among those that were sent."""

    index: int
    relevance_score: float
    document: DocumentText | UnsetType = UNSET


class ApiVersion(msgspec.Struct, frozen=True):
    """Cohere's."""

    version: str = "2"


class BilledUnits(msgspec.Struct, frozen=True):
    """Tokens of the texts."""

    input_tokens: int


class CohereMeta(msgspec.Struct, frozen=True):
    """Cohere's accounts of a request."""

    api_version: ApiVersion
    billed_units: BilledUnits


class RerankReply(msgspec.Struct, frozen=True, kw_only=True):
    """/rerank: the best first. usage counts as Jina does, meta as Cohere does."""

    id: str
    model: str
    usage: Usage
    results: list[RerankResult]
    meta: CohereMeta


class EmbedReply(msgspec.Struct, frozen=True, kw_only=True):
    """/v2/embed: embeddings by type, each in the order of the texts."""

    id: str
    embeddings: dict[str, list[Typed]]
    texts: list[str]
    meta: CohereMeta
    response_type: str = "embeddings_by_type"

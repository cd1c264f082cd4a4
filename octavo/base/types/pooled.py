"""What callers get of a model that pools: one PoolingRequestOutput a prompt, in vLLM's forms. Vectors are lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from octavo.base.types.output import RequestTimes


@dataclass
class PoolingOutput:
    """data: the vector, or a vector a token."""

    data: list[float] | list[list[float]]


@dataclass
class EmbeddingOutput:
    """embedding: the vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Its length."""
        return len(self.embedding)


@dataclass
class ClassificationOutput:
    """probs: one number a class."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """How many."""
        return len(self.probs)


@dataclass
class ScoringOutput:
    """score: how well the two texts fit."""

    score: float


Outputs = TypeVar("Outputs")


@dataclass
class PoolingRequestOutput(Generic[Outputs]):
    """What came of one prompt, or of one pair. error: why it failed; outputs is empty then."""

    request_id: str
    outputs: Outputs
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0
    metrics: RequestTimes | None = None
    error: str | None = None


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """Of `LLM.embed`."""


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """Of `LLM.classify`."""


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """Of `LLM.score`."""

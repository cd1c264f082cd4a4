"""Octavo runs and serves large language models. Names below are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.api.async_llm import AsyncLLM
    from octavo.api.llm import LLM
    from octavo.api.prompts import PromptType, TextPrompt, TokensPrompt
    from octavo.base.errors import (
        ConfigError,
        EngineDeadError,
        InputError,
        ModelFormatError,
        ModelNotFoundError,
        OctavoError,
        OverloadedError,
        RequestFailedError,
        UnsupportedError,
    )
    from octavo.base.metrics.reader import Counter, Gauge, Histogram, Metric, Vector
    from octavo.base.types.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
    from octavo.base.types.output import CompletionOutput, RequestOutput
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
    from octavo.base.types.pooling import PoolingParams
    from octavo.base.types.sampling import RequestOutputKind, SamplingParams
    from octavo.base.types.structured import StructuredOutputsParams
    from octavo.models.registry import register_model

__version__ = "0.1.0"

_POOLED = ("Output", "RequestOutput")
_ERRORS = (
    *("Octavo", "Input", "Unsupported", "Config", "ModelFormat", "ModelNotFound"),
    *("Overloaded", "EngineDead", "RequestFailed"),
)
_HOMES = {
    "LLM": "octavo.api.llm",
    "AsyncLLM": "octavo.api.async_llm",
    **dict.fromkeys(("PromptType", "TextPrompt", "TokensPrompt"), "octavo.api.prompts"),
    "SamplingParams": "octavo.base.types.sampling",
    "StructuredOutputsParams": "octavo.base.types.structured",
    "RequestOutputKind": "octavo.base.types.sampling",
    "RequestOutput": "octavo.base.types.output",
    "CompletionOutput": "octavo.base.types.output",
    "register_model": "octavo.models.registry",
    "PoolingParams": "octavo.base.types.pooling",
    **dict.fromkeys((f"{kind}Error" for kind in _ERRORS), "octavo.base.errors"),
    **dict.fromkeys(("Counter", "Gauge", "Histogram", "Metric", "Vector"), "octavo.base.metrics.reader"),
    **dict.fromkeys(
        (f"BeamSearch{what}" for what in ("Output", "Params", "Sequence")), "octavo.base.types.beam_search"
    ),
    **dict.fromkeys(
        (f"{kind}{what}" for kind in ("Pooling", "Embedding", "Classification", "Scoring") for what in _POOLED),
        "octavo.base.types.pooled",
    ),
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "Counter",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineDeadError",
    "Gauge",
    "Histogram",
    "InputError",
    "Metric",
    "ModelFormatError",
    "ModelNotFoundError",
    "OctavoError",
    "OverloadedError",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptType",
    "RequestFailedError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "UnsupportedError",
    "Vector",
    "__version__",
    "register_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

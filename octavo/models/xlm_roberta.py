"""XLM-RoBERTa (bge-m3, multilingual-e5, bge-reranker): RoBERTa with another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models import roberta
from octavo.models.roberta import names
from octavo.models.spec import ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """As roberta.spec."""
    return replace(roberta.spec(config), family="xlm-roberta")

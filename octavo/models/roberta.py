"""RoBERTa: BERT's layers, with positions that begin after the padding token's row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.models.bert import build_encoder
from octavo.models.config import Config
from octavo.models.names import encoder_names
from octavo.models.spec import ModelSpec

__all__ = ["names", "spec"]

CLASSIFIER = {
    "dense.0": "classifier.dense.weight",
    "dense.0_bias": "classifier.dense.bias",
    "classifier": "classifier.out_proj.weight",
    "classifier_bias": "classifier.out_proj.bias",
}


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The first token's position is pad_token_id + 1."""
    c = Config(config)
    return build_encoder(c, family="roberta", offset=c.integer("pad_token_id", default=1, lowest=0) + 1)


def names(spec: ModelSpec) -> dict[str, str]:
    """Names of RobertaModel's tensors under "roberta.", and of RobertaForSequenceClassification's head."""
    return encoder_names(spec, prefix="roberta.", outer=CLASSIFIER)

"""Encoder families against Transformers by the reference forward; which spec runs, by options and files; errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest
import reference_forward
import torch
from safetensors.numpy import load_file

from octavo.base.errors import ConfigError, ModelFormatError, OctavoError, UnsupportedError
from octavo.models.config import Config
from octavo.models.plan import plan_report, render
from octavo.models.pooling import SentencePooling, choose_pooling, read_labels
from octavo.models.registry import build_spec, find_family

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
BERT = {**LLAMA, "model_type": "bert", "max_position_embeddings": 64}
BY_TOKEN = {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}
DECODER = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}
CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}


@pytest.mark.parametrize("name", encoders.CASES)
def test_tensors_and_states_are_transformers_own(name: str, tmp_path: Path) -> None:
    folder = encoders.make_encoder(name, tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    spec, stored = build_spec(config), load_file(folder / "model.safetensors")
    names = find_family(config).names(spec)
    found = {ours: theirs if theirs in stored else theirs.partition(".")[2] for ours, theirs in names.items()}
    assert {found[ours]: p.shape for ours, p in spec.parameters().items()} == {
        theirs: tensor.shape
        for theirs, tensor in stored.items()
        if name.endswith(("cross", "classifier")) or "pooler" not in theirs
    }
    ids = list(range(5, 25))
    ours = reference_forward.states(spec, {name: stored[theirs] for name, theirs in found.items()}, ids)
    model = encoders.hf_encoder(name, folder)
    with torch.no_grad():
        theirs = getattr(model, model.base_model_prefix, model)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)


def choose(config: dict[str, Any], **options: Any) -> Any:
    return choose_pooling(build_spec(config), config, **options).pooling


def test_what_runs() -> None:
    mean = SentencePooling("mean", normalize=False, max_length=16)
    assert choose(LLAMA) is None
    assert choose(LLAMA, runner="generate", sentence=mean) is None
    assert choose(LLAMA, runner="pooling").kind == "last"
    assert (choose(LLAMA, sentence=mean).kind, choose(LLAMA, sentence=mean).normalize) == ("mean", False)
    assert choose(LLAMA, convert="embed", pooler={"pooling_type": "MEAN"}).kind == "mean"
    assert choose({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}).labels == 2
    whole = {**LLAMA, "is_causal": False}
    assert (choose(whole).kind, choose(whole, runner="pooling").normalize) == ("last", True)
    assert (choose({**DECODER, **BY_TOKEN}).labels, choose({**DECODER, **BY_TOKEN}).activation) == (1, "sigmoid")
    assert choose({**DECODER, **BY_TOKEN, "method": "no_post_processing"}).labels == 2
    assert choose({**LLAMA, **BY_TOKEN}) is None
    assert choose(BERT).kind == "cls"
    assert choose(BERT, pooler={"pooling_type": "last", "use_activation": False}).normalize is False
    assert choose({**BERT, "is_matryoshka": True}).dimensions == ()
    assert choose({**BERT, **CLASSIFIER}, convert="embed").labels == 0
    assert choose({**BERT, "architectures": ["BertForTokenClassification"]}, convert="embed").kind == "cls"
    assert choose({**BERT, "architectures": ["BertForMaskedLM"]}).kind == "cls"
    spec = choose_pooling(build_spec(BERT), BERT, sentence=mean)
    assert (spec.max_position, spec.learned.positions, spec.head) == (16, 64, None)


@pytest.mark.parametrize(
    ("more", "activation"),
    [
        ({}, "softmax"),
        ({"id2label": {"0": "a"}}, "sigmoid"),
        ({"problem_type": "regression"}, "identity"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid"),
    ],
)
def test_a_classifiers_activation(more: dict[str, Any], activation: str) -> None:
    assert choose({**BERT, **CLASSIFIER, **more}).activation == activation


@pytest.mark.parametrize(
    ("config", "options", "kind", "param"),
    [
        (BERT, {"runner": "generate"}, ConfigError, "runner"),
        ({**LLAMA, "is_causal": False}, {"runner": "generate"}, ConfigError, "runner"),
        (BERT, {"convert": "classify"}, ConfigError, "convert"),
        (LLAMA, {"runner": "generate", "convert": "embed"}, ConfigError, "convert"),
        (LLAMA, {"runner": "pooling", "convert": "none"}, ConfigError, "convert"),
        (LLAMA, {"runner": "pooling", "pooler": {"pooling_type": "MAX"}}, ConfigError, "pooler_config"),
        (LLAMA, {"runner": "pooling", "pooler": {"dim": 3}}, ConfigError, "pooler_config"),
        (LLAMA, {"runner": "pooling", "pooler": {"normalize": 1}}, ConfigError, "pooler_config"),
        ({**BERT, **CLASSIFIER, **BY_TOKEN}, {}, ConfigError, "hf_overrides"),
        ({**DECODER, **BY_TOKEN, "classifier_from_token": ["a"]}, {}, ModelFormatError, "classifier_from_token"),
        ({**DECODER, **BY_TOKEN, "method": "x"}, {}, ModelFormatError, "method"),
        ({**DECODER, **BY_TOKEN, "method": None}, {}, ModelFormatError, "method"),
        ({**BERT, **CLASSIFIER, "problem_type": "x"}, {}, ModelFormatError, "problem_type"),
        ({**BERT, **CLASSIFIER, "id2label": {"0": "a", "2": "b"}}, {}, ModelFormatError, "id2label"),
        (
            {**BERT, **CLASSIFIER, "sentence_transformers": {"activation_fn": "x.Tanh"}},
            {},
            UnsupportedError,
            "activation_fn",
        ),
        ({**BERT, "position_embedding_type": "relative_key"}, {}, UnsupportedError, "position_embedding_type"),
        ({**BERT, "is_decoder": True}, {}, UnsupportedError, "is_decoder"),
        (
            {**BERT, "model_type": "roberta", "max_position_embeddings": 2},
            {},
            ModelFormatError,
            "max_position_embeddings",
        ),
        ({**BERT, "architectures": ["BertForTokenClassification"]}, {}, UnsupportedError, "architectures"),
        ({**BERT, "architectures": ["BertForQuestionAnswering"]}, {}, UnsupportedError, "architectures"),
        ({**LLAMA, "architectures": ["LlamaForProcessRewardModel"]}, {}, UnsupportedError, "architectures"),
        ({**BERT, "matryoshka_dimensions": [1.5]}, {}, ModelFormatError, "matryoshka_dimensions"),
    ],
)
def test_contradictions_are_named(config: dict[str, Any], options: Any, kind: type[OctavoError], param: str) -> None:
    with pytest.raises(kind) as caught:
        choose(config, **options)
    assert caught.value.param == param


def test_labels() -> None:
    assert read_labels(Config({"id2label": {"1": "b", "0": "a"}})) == ["a", "b"]
    assert read_labels(Config({"num_labels": 3})) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_the_plan_of_an_encoder() -> None:
    spec = build_spec(BERT)
    whole: dict[str, Any] = {"max_model_len": 64, "free_bytes": 5000}
    report = plan_report(spec, weight_bytes=1000, kv_bytes_per_token=0, **whole)
    assert report.sequences == 1
    assert "nothing is cached" in render(report)
    assert sum(part.parameters for part in report.parts) == spec.num_parameters()
    labelled = plan_report(build_spec({**BERT, **CLASSIFIER}), weight_bytes=0, kv_bytes_per_token=0, **whole)
    sizes = {part.name: part.parameters for part in labelled.parts}
    assert sizes == {part.name: part.parameters for part in report.parts} | {"head": 8 * 8 + 8 + 2 * 8 + 2}
    none = plan_report(spec, weight_bytes=9000, kv_bytes_per_token=0, max_model_len=64, free_bytes=5000)
    assert (none.sequences, "Does not fit" in render(none)) == (0, True)

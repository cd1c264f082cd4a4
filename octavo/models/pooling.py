"""A ModelSpec and what its files and the options say about pooling in; the spec of what is to run, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from octavo.base.errors import ConfigError, UnsupportedError
from octavo.models.config import Config, show
from octavo.models.spec import ClassActivation, Dense, ModelSpec, Pooling, PoolingKind

CLASSIFIER = "ForSequenceClassification"
OTHER_HEADS = ("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel")
"""Architectures whose head does not run here."""
MOST_LABELS = 1 << 16
MOST_TOKENS = 1024
KINDS: dict[str, PoolingKind] = {kind.upper(): kind for kind in get_args(PoolingKind)}
POOLER_KEYS = ("pooling_type", "seq_pooling_type", "normalize", "use_activation")
_ACTIVATIONS: dict[str, ClassActivation] = {"Identity": "identity", "Sigmoid": "sigmoid"}


@dataclass(frozen=True)
class TokenClassifier:
    """A classifier out of an output layer's rows of these tokens; difference: one label, the second less the first."""

    tokens: tuple[str, ...]
    difference: bool


@dataclass(frozen=True)
class SentencePooling:
    """What a checkpoint's sentence-transformers files say. max_length: tokens of a text, None if they do not tell.

    dense: layers behind the pooling.
    """

    kind: PoolingKind
    normalize: bool
    max_length: int | None = None
    dense: tuple[Dense, ...] = ()


def encoder_pooling(config: Config) -> Pooling:
    """Of an encoder as its config alone tells: a classifier over the first token, or that token's state."""
    if not is_classifier(config.values):
        return Pooling("cls", dimensions=_dimensions(config))
    labels = len(read_labels(config))
    dense = (Dense(config.integer("hidden_size"), "tanh"),)
    return Pooling("cls", dense=dense, labels=labels, label_bias=True, activation=_activation(config, labels))


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's architecture classifies texts."""
    return any(str(name).endswith(CLASSIFIER) for name in _architectures(config))


def _architectures(config: Mapping[str, Any]) -> list[Any]:
    listed = config.get("architectures")
    return listed if isinstance(listed, list) else []


def token_classifier(config: Config) -> TokenClassifier | None:
    """Of a model that answers by a token, as vLLM's keys say it: classifier_from_token, and method or
    is_original_qwen3_reranker. None without the first, or where the model is not to classify.
    """
    if not config.has("classifier_from_token") or not is_classifier(config.values):
        return None
    method = _DIFFERENCE if config.flag("is_original_qwen3_reranker") else config.values.get("method")
    if method not in (_DIFFERENCE, _ROWS):
        raise config.wrong("method", f"{_DIFFERENCE} or {_ROWS} beside classifier_from_token")
    tokens = config.values["classifier_from_token"]
    difference = method == _DIFFERENCE
    fits = isinstance(tokens, list) and (len(tokens) == 2 if difference else 0 < len(tokens) <= MOST_TOKENS)
    if not fits or not all(isinstance(token, str) for token in tokens):
        need = "two tokens" if difference else f"a list of 1 to {MOST_TOKENS} tokens"
        raise config.wrong("classifier_from_token", need)
    return TokenClassifier(tuple(tokens), difference)


_DIFFERENCE, _ROWS = "from_2_way_softmax", "no_post_processing"


def read_labels(config: Config) -> list[str]:
    """Names of the classes: id2label; LABEL_0, LABEL_1 ... where only num_labels (2 by default) is given."""
    by_token = token_classifier(config)
    if by_token is not None:
        return [f"LABEL_{i}" for i in range(1 if by_token.difference else len(by_token.tokens))]
    table = config.section("id2label").values
    count = len(table) or config.integer("num_labels", default=2)
    if count > MOST_LABELS:
        raise config.wrong("id2label" if table else "num_labels", f"at most {MOST_LABELS} classes")
    names = {str(key): value for key, value in table.items()} or {str(i): f"LABEL_{i}" for i in range(count)}
    if set(names) != set(map(str, range(count))) or not all(isinstance(name, str) for name in names.values()):
        raise config.wrong("id2label", "an object from every number below the count of labels to a name")
    return [names[str(i)] for i in range(count)]


def choose_pooling(
    spec: ModelSpec,
    values: Mapping[str, Any],
    *,
    runner: str = "auto",
    convert: str = "auto",
    sentence: SentencePooling | None = None,
    pooler: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """The spec to run: as it is where it is to generate, else with a Pooling and without a head.

    values: config.json.  runner, convert, pooler: the options of these names (pooler: pooler_config).  auto pools with
    an encoder, a classifier, and what has sentence-transformers' files. Raises ConfigError where they contradict.
    """
    pooler = _check_pooler(pooler or {})
    if convert != "embed":
        _refuse_head(values)
    encoder = spec.pooling is not None or not all(layer.mixer.causal for layer in spec.layers)
    pools = encoder or runner == "pooling" or convert in ("embed", "classify") or bool(pooler)
    if runner == "generate" or not (pools or is_classifier(values) or sentence is not None):
        if encoder:
            raise ConfigError(f"runner=generate: {spec.family} models do not generate; leave it out", param="runner")
        if convert not in ("auto", "none") or pooler:
            name = "pooler_config" if pooler else "convert"
            raise ConfigError(f"{name} is for pooling; leave it out, or set runner=pooling", param=name)
        return spec
    if convert == "none" and not encoder:
        raise ConfigError(f"convert=none: {spec.family} models pool only when converted; use embed", param="convert")
    classifies = is_classifier(values) and convert != "embed"
    if convert == "classify" and not classifies:
        raise ConfigError(
            f"convert=classify: the checkpoint has no classifier (its architecture ends in {CLASSIFIER}); use embed",
            param="convert",
        )
    pooling = _classifier(spec, Config(values)) if classifies else _embedding(spec, Config(values), sentence)
    pooling = replace(pooling, **_changes(pooling, pooler))
    longest = sentence.max_length if sentence is not None and not classifies else None
    return replace(spec, head=None, pooling=pooling, max_position=min(longest or spec.max_position, spec.max_position))


def _refuse_head(values: Mapping[str, Any]) -> None:
    for name in map(str, _architectures(values)):
        if name.endswith(OTHER_HEADS):
            raise UnsupportedError(
                f"config.json: architectures {show(name)} is not supported: its head does not run here; convert=embed "
                "makes embeddings of what is below it",
                param="architectures",
            )


def _classifier(spec: ModelSpec, config: Config) -> Pooling:
    if spec.pooling is not None and token_classifier(config) is None:
        return spec.pooling
    if spec.pooling is not None:
        raise ConfigError(
            f"classifier_from_token is for models that generate, and {spec.family} models do not; leave it out",
            param="hf_overrides",
        )
    labels = len(read_labels(config))
    return Pooling("last", labels=labels, activation=_activation(config, labels))


def _embedding(spec: ModelSpec, config: Config, sentence: SentencePooling | None) -> Pooling:
    dimensions = _dimensions(config)
    if sentence is not None:
        return Pooling(sentence.kind, normalize=sentence.normalize, dimensions=dimensions, dense=sentence.dense)
    return Pooling("cls" if spec.pooling is not None else "last", dimensions=dimensions)


def _dimensions(config: Config) -> tuple[int, ...] | None:
    """is_matryoshka and matryoshka_dimensions, as vLLM reads them."""
    listed = tuple(config.integers("matryoshka_dimensions"))
    return listed if listed or config.flag("is_matryoshka") else None


def _activation(config: Config, labels: int) -> ClassActivation:
    """problem_type, then what sentence-transformers wrote for a cross-encoder, then sigmoid of one label or softmax."""
    if config.has("problem_type"):
        kind = config.text("problem_type")
        known: dict[str, ClassActivation] = {
            "regression": "identity",
            "single_label_classification": "softmax",
            "multi_label_classification": "sigmoid",
        }
        if kind not in known:
            raise config.wrong("problem_type", f"one of {', '.join(known)}")
        return known[kind]
    written = config.section("sentence_transformers")
    source, key = (written, "activation_fn") if written.has("activation_fn") else (config, _OLD_ACTIVATION)
    if source.has(key):
        name = source.text(key).rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise UnsupportedError(
                f"config.json: {source.where}{key} {show(source.values[key])} is not supported; supported are torch's "
                f"{' and '.join(_ACTIVATIONS)}",
                param=key,
            )
        return _ACTIVATIONS[name]
    return "sigmoid" if labels == 1 else "softmax"


_OLD_ACTIVATION = "sbert_ce_default_activation_function"


def _check_pooler(pooler: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in pooler.items():
        if name not in POOLER_KEYS:
            known = ", ".join(POOLER_KEYS)
            raise ConfigError(f"pooler_config has {show(name)}; supported are {known}", param="pooler_config")
        if name.endswith("pooling_type"):
            if not isinstance(value, str) or value.upper() not in KINDS:
                raise ConfigError(
                    f"pooler_config: {name} must be one of {', '.join(KINDS)}, got {show(value)}", param="pooler_config"
                )
        elif not isinstance(value, bool):
            raise ConfigError(f"pooler_config: {name} must be true or false, got {show(value)}", param="pooler_config")
    return pooler


def _changes(pooling: Pooling, pooler: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in pooler.items():
        if name.endswith("pooling_type"):
            changes["kind"] = KINDS[cast(str, value).upper()]
        elif not pooling.labels:
            changes["normalize"] = value
        elif not value:
            changes["activation"] = "identity"
    return changes

"""LLM.score: its two sides, and what is refused of them by name; texts in small letters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import encoders
import pytest
import weight_files
from gguf import PoolingType

from octavo import LLM
from octavo.api.build import open_model
from octavo.base.config.config import ModelConfig
from octavo.base.errors import InputError


@pytest.fixture(scope="module", params=["bert", "bert_cross"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path: Path = encoders.make_encoder(request.param, tmp_path_factory.mktemp(request.param))
    with LLM(str(path), device="cpu", threads=1) as llm:
        yield llm


def test_one_with_many_and_pair_by_pair(scorer: LLM) -> None:
    def scores(first: Any, second: Any) -> list[float]:
        return [output.outputs.score for output in scorer.score(first, second, use_tqdm=False)]

    many = scores("a fox", ["the dog", "a fox"])
    assert many == scores(("a fox",), iter(["the dog", "a fox"])) == scores(["a fox", "a fox"], ["the dog", "a fox"])
    assert scores("a fox", "the dog") == pytest.approx(many[:1], abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        ("a", [1], "data_2"),
        ([None], "a", "data_1"),
        (None, "a", "data_1"),
        ("a", {"text": "b"}, "data_2"),
        ("a", [{"text": "b"}], "data_2"),
        ("a", [], "data_2"),
        (["a", "b"], ["c"], "data_1"),
    ],
)
def test_what_is_no_text_is_refused_by_name(scorer: LLM, first: Any, second: Any, field: str) -> None:
    with pytest.raises(InputError) as raised:
        scorer.score(first, second, use_tqdm=False)
    assert raised.value.param == field


@pytest.mark.parametrize(
    ("told", "kind"), [(PoolingType.MEAN, "mean"), (PoolingType.CLS, "cls"), (PoolingType.LAST, "last")]
)
def test_a_gguf_file_that_was_made_to_embed(tmp_path: Path, told: PoolingType, kind: str) -> None:
    def opened(**options: Any) -> Any:
        return open_model(ModelConfig(model=str(tmp_path / "m.gguf"), **options), with_text=False).spec

    writer = weight_files.gguf_writer(tmp_path / "m.gguf", "qwen2")
    writer.add_pooling_type(told)
    writer.add_causal_attention(told is PoolingType.LAST)
    weight_files.finish(writer, weight_files.random_tensors(weight_files.matrices("qwen2", tied=True)))
    pooling = opened().pooling
    assert (pooling.kind, pooling.normalize, opened().head) == (kind, True, None)
    assert opened(pooler_config={"pooling_type": "MEAN"}).pooling.kind == "mean"
    assert {layer.mixer.causal for layer in opened().layers} == {kind == "last"}
    if kind == "last":
        assert opened(runner="generate").pooling is None


def test_texts_in_small_letters(tmp_path: Path) -> None:
    """sentence-transformers' do_lower_case; the tokenizer itself tells letters apart."""
    path = encoders.make_encoder("bert", tmp_path / "bert")
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    encoders.write_sentence_files(path, mode="mean_tokens", normalize=True)
    texts = ["The Quick Brown Fox [SEP] ÜBER", "the quick brown fox [SEP] über"]

    def vectors() -> list[list[float]]:
        with LLM(str(path), device="cpu", threads=1) as llm:
            found = llm.embed(texts, use_tqdm=False)
            scored = llm.score(*texts, use_tqdm=False)[0].outputs.score
        vectors = [output.outputs.embedding for output in found]
        assert scored == pytest.approx(sum(a * b for a, b in zip(*vectors, strict=True)), abs=1e-5)
        return vectors

    upper, lower = vectors()
    assert upper != pytest.approx(lower, abs=1e-3)
    (path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    one, other = vectors()
    assert one == pytest.approx(other, abs=1e-6)
    assert other == pytest.approx(lower, abs=1e-6)

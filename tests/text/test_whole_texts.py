"""Texts and pairs for models that pool: special tokens, truncation as Transformers has it, WordPiece's text."""

from __future__ import annotations

import json
from pathlib import Path

import encoders
import pytest
import tokenizers
import transformers

from octavo.base.errors import InputError
from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import open_tokenizer

TEXTS = ("An octavo is a sheet folded into eight pages; isn't it?", "The quick, brown fox!", "a", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wordpiece")
    encoders._tokenizer().save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("longest", [None, 4, 5, 9, 17, 200])
def test_truncation_is_transformers_own(folder: Path, longest: int | None) -> None:
    ours = Tokenizer.from_checkpoint(open_tokenizer(folder))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    options = {"truncation": "longest_first", "max_length": longest} if longest else {}
    for first in TEXTS:
        assert ours.encode_whole(first, longest=longest)[0] == theirs(first, **options)["input_ids"]
        for second in TEXTS[:-1]:  # Transformers takes an empty second text for none
            pair = theirs(first, second, return_token_type_ids=True, **options)
            ids, begin = ours.encode_whole(first, second, longest=longest)
            assert ids == pair["input_ids"]
            assert [int(bool(begin) and i >= begin) for i in range(len(ids))] == pair["token_type_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_beginnings(folder: Path, text: str) -> None:
    ours = Tokenizer.from_checkpoint(open_tokenizer(folder))
    ids = ours.encode(text, add_special_tokens=False)
    for longest in range(1, len(ids) + 2):
        begun = ours.cut(text, longest)
        assert text.startswith(begun)
        assert ours.encode(begun, add_special_tokens=False) == ids[:longest]


def test_no_room_beside_special_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_checkpoint(open_tokenizer(folder))
    with pytest.raises(InputError, match="leaves no room beside 2 special tokens"):
        tokenizer.encode_whole("The quick brown fox", longest=2)


def test_wordpiece_decodes_as_its_library(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_checkpoint(open_tokenizer(folder))
    for text in TEXTS:
        ids = backend.encode(text).ids
        assert tokenizer.decode(ids) == backend.decode(ids)
        stream = tokenizer.stream([])
        assert "".join([*map(stream.feed, ids), stream.finish()]) == backend.decode(ids)


@pytest.mark.parametrize("kind", ["BertTokenizer", "DistilBertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"strip_accents": None},
    ],
)
def test_cases_and_accents_are_as_configured(kind: str, config: dict[str, bool | None], tmp_path: Path) -> None:
    encoders._tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **config}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    ours = Tokenizer.from_checkpoint(open_tokenizer(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The Quick brown fox", "the qui\u0301ck brown f\u00f3x", "fox\u72d0fox"):
        assert ours.encode(text) == theirs(text)["input_ids"]

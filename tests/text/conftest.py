"""Fixtures of the text tests: small tokenizers of both kinds, and a cache folder of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_tokenizers import byte_level_files, sentence_piece_gguf, wrap

from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import TokenizerFiles


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """GPT-2's kind, from tokenizer.json, with ChatML's control tokens."""
    return Tokenizer.from_checkpoint(wrap(byte_level_files(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="session")
def sentence_piece() -> Tokenizer:
    """Llama 2's kind, from GGUF metadata, with a space before a text and byte fallback."""
    return Tokenizer.from_checkpoint(wrap(sentence_piece_gguf(prefix=True)[0]))


@pytest.fixture(scope="session")
def normalized(sentence_piece: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SentencePiece's kind; control tokens, not <think>, are looked for in normalized text (Llama's first files)."""
    state = json.loads(sentence_piece.backend.to_str())
    for token in state["added_tokens"]:
        token["normalized"] = True
    state["added_tokens"].append({**state["added_tokens"][0], "id": 480, "content": "<think>"})
    state["added_tokens"][-1].update(normalized=False, special=False)
    path = tmp_path_factory.mktemp("normalized") / "tokenizer.json"
    path.write_text(json.dumps(state))
    return Tokenizer.from_checkpoint(wrap(TokenizerFiles(path, {})))


@pytest.fixture(params=["byte_level", "sentence_piece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Both kinds, one after the other."""
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def real_checkpoint(real_model: object) -> object:
    """real_checkpoint("smollm2" | "gemma3"): opened once."""
    from octavo.weights.checkpoint import Checkpoint, open_checkpoint

    opened: dict[str, tuple[Checkpoint, Tokenizer]] = {}

    def get(name: str) -> tuple[Checkpoint, Tokenizer]:
        if name not in opened:
            path: Path = real_model(name)  # type: ignore[operator]
            checkpoint = open_checkpoint(path)
            opened[name] = checkpoint, Tokenizer.from_checkpoint(checkpoint)
        return opened[name]

    return get

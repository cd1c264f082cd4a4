"""Fixtures of the text tests: small tokenizers of both kinds, and a cache folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import byte_level_files, sentence_piece_gguf, wrap

from octavo.text.tokenizer import Tokenizer


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

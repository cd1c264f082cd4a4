"""docs/python.md: every public name and every field of what comes back is there, and its examples run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import LLM, AsyncLLM, BeamSearchParams

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
WORDS = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALL = {"device": "cpu", "threads": 1, "kv_cache_memory_bytes": 2 << 20, "max_num_seqs": 8}


def test_every_public_name_is_there() -> None:
    assert set(octavo.__all__) <= WORDS
    public = [name for name in vars(LLM) if not name.startswith("_")]
    assert set(public) <= WORDS


@pytest.mark.parametrize("name", [name for name in octavo.__all__ if is_dataclass(getattr(octavo, name))])
def test_every_field_is_there(name: str) -> None:
    assert {field.name for field in fields(getattr(octavo, name))} <= WORDS


def test_beam_search_params_are_there() -> None:
    assert set(BeamSearchParams.__struct_fields__) <= WORDS


def test_examples_run(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def small(kind: type) -> Callable[..., Any]:
        return lambda model, **options: kind(str(checkpoint("llama")), **{**SMALL, **options, "max_model_len": 128})

    monkeypatch.setitem(vars(octavo), "LLM", small(LLM))
    monkeypatch.setitem(vars(octavo), "AsyncLLM", small(AsyncLLM))
    scope: dict[str, Any] = {}
    assert len(EXAMPLES) == 4
    for example in EXAMPLES:
        exec(example, scope)
    assert len(scope["outputs"]) == len(scope["names"]) == 2
    scope["llm"].close()

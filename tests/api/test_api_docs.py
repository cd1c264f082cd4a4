"""docs/python.md: every public name and every field of what comes back is there. Examples of all pages run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import LLM, AsyncLLM, BeamSearchParams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()
WORDS = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = BLOCK.findall(PAGE)
OTHERS = {"README.md": 1, "docs/structured-outputs.md": 1, "docs/pooling.md": 1, "docs/tool-calling.md": 1}
"""Pages -> how many examples they have that ask no server."""
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


@pytest.mark.parametrize("page", OTHERS)
def test_examples_of_other_pages_run(
    page: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SMALL, "runner": "pooling" if "pooling" in page else "generate"}
    made: list[LLM] = []

    def small(model: str) -> LLM:
        made.append(LLM(str(checkpoint("llama")), **options))
        return made[-1]

    monkeypatch.setitem(vars(octavo), "LLM", small)
    found = [block for block in BLOCK.findall((ROOT / page).read_text()) if "base_url" not in block]
    assert len(found) == OTHERS[page]
    for example in found:
        exec(example, {})
    for llm in made:
        llm.close()

"""README and docs say what the registries say, and name files that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "tools" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_fresh(generator: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    assert generator.with_blocks(readme) == readme, "run `make docs`"
    assert generator.configuration() == (ROOT / "docs" / "configuration.md").read_text(), "run `make docs`"


def test_every_family_is_compared(generator: ModuleType) -> None:
    assert "untested" not in generator.models_table()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    names = re.findall(r"`((?:octavo|tests|docs|examples|benchmarks)/[\w/.-]+)`", page.read_text())
    names += re.findall(r"\]\(((?!http|#)[^)#]+)\)", page.read_text())
    assert not [name for name in names if not (ROOT / name).exists() and not (page.parent / name).exists()]

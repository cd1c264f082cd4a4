"""What `import octavo` and `octavo --help` bring in, and that every public name can be had."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import octavo

HEAVY = ("torch", "numpy", "transformers", "granian", "starlette", "tokenizers", "msgspec", "argparse", "asyncio")
ROOT = Path(octavo.__file__).parents[1]


def modules_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("program", ["import octavo", "from octavo.cli import main\nmain(['--help'])"])
def test_nothing_heavy_is_imported(program: str) -> None:
    assert modules_after("") >= {"sys"}
    assert not modules_after(program) & set(HEAVY)


def test_llm_needs_no_torch_and_no_server() -> None:
    found = modules_after("from octavo import LLM, AsyncLLM, SamplingParams, register_model")
    assert not found & {"torch", "numpy", "transformers", "granian", "starlette"}


def test_public_names() -> None:
    for name in octavo.__all__:
        assert getattr(octavo, name) is not None
    assert set(octavo.__all__) <= set(dir(octavo))
    with pytest.raises(AttributeError, match="no_such_name"):
        octavo.no_such_name  # noqa: B018


def test_every_error_that_the_docs_name_can_be_caught() -> None:
    text = (ROOT / "docs" / "python.md").read_text() if (ROOT / "docs").is_dir() else ""
    for name in {"OctavoError", *re.findall(r"`(\w+Error)`", text)} - {"ValueError", "LookupError"}:
        assert issubclass(getattr(octavo, name), octavo.OctavoError)


def test_version_is_the_packages() -> None:
    project = ROOT / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not run from the repository")
    assert tomllib.loads(project.read_text())["project"]["version"] == octavo.__version__

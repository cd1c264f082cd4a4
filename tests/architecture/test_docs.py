"""README and docs say what the registries say, and name files, headings and flags that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from octavo.api import arguments
from octavo.cli import COMMANDS, main, serve
from octavo.text import reasoning
from octavo.text.tools import formats

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


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


def test_every_parser_is_in_its_table() -> None:
    page = (ROOT / "docs" / "tool-calling.md").read_text()
    for flag, names in (
        ("tool-call-parser", {row.name for row in formats.FORMATS} | set(formats.ALIASES)),
        ("reasoning-parser", {row.name for row in reasoning.REASONINGS} | set(reasoning.ALIASES)),
    ):
        table = re.search(rf"^\| `--{flag}` \|.*\n\|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
        assert table
        cells = " ".join(re.findall(r"^\| (.*?) \| ", table[1], re.MULTILINE))
        assert set(re.findall(r"`([\w.-]+)`", cells)) == names


def test_formats_with_a_trait_are_told() -> None:
    page = " ".join((ROOT / "docs" / "tool-calling.md").read_text().split())
    rows = formats.FORMATS
    for said, names in (
        (r"Where arguments are not JSON \((.*?)\)", {row.name for row in rows if row.spelling and row.spelling.value}),
        (r"the formats without a marker \((.*?)\)", {row.name for row in rows if row.bare}),
        (
            r"not to be carried out, .*? - (.*?) leaves out the marker around",
            {row.name for row in rows if row.body.known or row.unmarked},
        ),
        (r"whose end the model leaves out \((.*?)\)", {row.name for row in reasoning.REASONINGS if row.implied}),
    ):
        found = re.search(said, page)
        assert found, said
        assert set(re.findall(r"`(\w+)`", found[1])) - {"tools"} == names


def test_flags_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag that a page names is one of a command, or one of vLLM's that is told of; programs' own lines aside."""
    own = {"--" + name.replace("_", "-") for name in (*arguments.FOREIGN, *serve.FOREIGN)}
    benches = [["bench", kind] for kind in ("latency", "throughput", "startup", "serve")]
    for command in [*([name] for name in COMMANDS if name != "bench"), *benches]:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        own |= set(FLAG.findall(capsys.readouterr().out))
    for page in PAGES:
        lines = [line for line in page.read_text().split("\n") if not re.search(r"pip install|\.py\b", line)]
        assert set(FLAG.findall("\n".join(lines))) <= own, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    names = re.findall(r"`((?:octavo|tests|docs|examples|benchmarks)/[\w/.-]+)`", page.read_text())
    names += re.findall(r"\]\(((?!http|#)[^)#]+)\)", page.read_text())
    assert not [name for name in names if not (ROOT / name).exists() and not (page.parent / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_headings_exist(page: Path) -> None:
    for name, heading in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", page.read_text()):
        titles = re.findall(r"^#+ (.*)", (page.parent / name if name else page).read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

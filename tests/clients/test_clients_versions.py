"""docs/protocols.md names the clients that ran."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_docs_name_these_versions() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pinned = [one.split("==") for one in groups["clients"] + groups["clients-instructor"] if "==" in one]
    clients = [(name.partition("[")[0], version) for name, version in pinned]
    clients += json.loads((ROOT / "tests/clients/js/package.json").read_text())["dependencies"].items()
    page = (ROOT / "docs" / "protocols.md").read_text()
    assert not [name for name, version in clients if f"`{name}` {version}" not in page and name != "zod"]

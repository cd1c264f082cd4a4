"""A small hub on localhost, and downloads from it, each in a process of its own, as a user's would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub

DRIVER = """
import json, sys
from octavo.weights import source
calls, listed, arguments = [], [], json.load(sys.stdin)
if arguments.get("with_weights") is not None:
    arguments["on_listing"] = listed.append
try:
    resolve = getattr(source, arguments.pop("function"))
    path = resolve(arguments.pop("model"), progress=lambda *call: calls.append(call), **arguments)
    print(json.dumps({"path": str(path), "calls": calls, "listed": listed}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error), "param": getattr(error, "param", None)}))
"""


@pytest.fixture
def resolve(hub: FakeHub, tmp_path: Path) -> Any:
    """resolve(model, env={...}, **arguments): resolve_source (or `function` of its module) in a fresh process.

    What it gives, or its error, as a dict.
    """

    def run(
        model: str, *, env: dict[str, str] | None = None, function: str = "resolve_source", **arguments: Any
    ) -> dict[str, Any]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        kept |= {"NO_PROXY": "*", "OCTAVO_CACHE": str(tmp_path / "octavo")} | (env or {})
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps({"model": model, "function": function, **arguments}),
            env=kept,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run

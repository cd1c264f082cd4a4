"""A worker runs the tree that it is given, wherever the comparison was started."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers.compare import Worker

FAKE = {
    "__init__.py": "__version__ = 'the other'\nSamplingParams = None\nclass LLM:\n    def __init__(*_, **__): pass\n",
    "backends/__init__.py": "",
    "backends/cpu/__init__.py": "",
    "backends/cpu/native.py": "set_variant = bool\n",
}


def test_a_worker_runs_its_own_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FAKE.items():
        path = tmp_path / "octavo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(Path(__file__).parents[2])  # where an octavo lies that is not meant
    with Worker("octavo", Path("model.gguf"), threads=1, options={}, tree=tmp_path) as worker:
        assert worker.call("about")["octavo"] == "the other"

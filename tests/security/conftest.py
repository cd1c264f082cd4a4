"""The helpers of tests/server, and a generating and an embedding model whose server is called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))


@pytest.fixture(scope="session")
def folders(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a scripted model and of an encoder."""
    from targets import make_folders

    return make_folders(tmp_path_factory.mktemp("security"), checkpoint("llama"))

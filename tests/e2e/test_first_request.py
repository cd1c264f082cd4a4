"""The lines that `octavo serve` prints when it is ready work as they are, whatever the model is for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from encoders import make_encoder

ROOT = Path(__file__).parent.parent.parent


def first_lines(folder: Path, *flags: str) -> list[str]:
    """What each of the two lines printed, asked of a server of its own."""
    command = [sys.executable, "-m", "octavo.cli", "serve", str(folder), "--port", "0", "--device", "cpu", *flags]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("Ready"):
            assert process.poll() is None
        lines = [process.stdout.readline().replace("python3", sys.executable) for _ in range(2)]
        ran = [subprocess.run(["bash", "-c", line], capture_output=True, text=True) for line in lines]
        return [each.stdout for each in ran]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("case", "told"), [("bert", "["), ("bert_classifier", "'probs'"), ("bert_cross", "0.")])
def test_of_a_model_that_makes_vectors(case: str, told: str, tmp_path: Path) -> None:
    curl, python = first_lines(make_encoder(case, tmp_path))
    assert '"data"' in curl
    assert told in python


@pytest.mark.parametrize(
    ("flags", "told"), [(["--runner", "pooling"], "["), (["--skip-tokenizer-init"], "'prompt_tokens': 2"), ([], "")]
)
def test_of_a_decoder(flags: list[str], told: str, checkpoint: Callable[[str], Path]) -> None:
    curl, python = first_lines(checkpoint("llama"), *flags)
    assert '"usage"' in curl
    assert told in python

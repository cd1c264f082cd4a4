"""What the clients talk to: `octavo serve` with real models, and scripted answers through the whole path."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from replay import replay_model, replay_server
from scripts import SCRIPTS
from serving import LiveServer

READY = re.compile(r"Ready: (http://\S+) ")
ADMIN_KEY = "for the tests"


@contextmanager
def octavo_serve(model: str, *flags: str) -> Iterator[str]:
    """The URL of `octavo serve MODEL`, once it is ready."""
    command = [sys.executable, "-m", "octavo.cli", "serve", model, "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = ""
        try:
            while not (ready := READY.search(told)):
                line = process.stdout.readline()
                assert line, told
                told += line
            yield ready[1]
        finally:
            process.terminate()
            process.communicate(timeout=30)


@pytest.fixture(scope="session")
def smollm2() -> Iterator[str]:
    """The demo model, which can be paused (see `admin`)."""
    with octavo_serve("smollm2", "--admin-api-key", ADMIN_KEY) as url:
        yield url


@pytest.fixture(scope="session")
def minilm() -> Iterator[str]:
    with octavo_serve("minilm") as url:
        yield url


@pytest.fixture(scope="session")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose model answers a message of scripts.py with its text; it writes calls and reasoning as Qwen3."""
    folder = tmp_path_factory.mktemp("replay")
    model = replay_model(small_model(folder / "small"), folder / "model", SCRIPTS)
    with replay_server(
        model, tool_call_parser="hermes", reasoning_parser="qwen3", served_model_name=["scripted"]
    ) as it:
        yield it


def small_model(folder: Path) -> Path:
    """A model folder without weights whose tokens are bytes."""
    folder.mkdir()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: number for number, token in enumerate(special + pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "rms_norm_eps": 1e-5}))
    return folder


@pytest.fixture
def run_client() -> Callable[..., str]:
    """run_client(command, *arguments, **environment) -> what the program printed; AssertionError if it failed."""

    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def admin(url: str, path: str) -> None:
    """POST to one of the admin's routes."""
    httpx.post(url + path, headers={"Authorization": f"Bearer {ADMIN_KEY}"}).raise_for_status()

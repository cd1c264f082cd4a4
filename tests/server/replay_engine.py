"""Run as an engine process (octavo.api.engine_main) without a model. argv: the socket's number, a file of scripts."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from octavo.api.engine_main import read_config
from octavo.base.config.resolve import resolve
from octavo.engine.engine import Engine
from octavo.engine.fake import Replay, ScriptedExecutor
from octavo.engine.grammar.compiler import Compiler
from octavo.engine.grammar.grammar import Vocabulary
from octavo.engine.process import run
from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import open_tokenizer

NUM_BLOCKS, MAX_MODEL_LEN = 4096, 4096


def build(given: Any, scripts: dict[str, Any]) -> Engine:
    config = resolve(given, max_position=MAX_MODEL_LEN)
    replay = Replay(
        {tuple(key): answer for key, answer in scripts["scripts"]},
        question=scripts["question"],
        answer=scripts["answer"],
        end=scripts["end"],
    )
    block_size = config.cache.block_size or 16
    executor = ScriptedExecutor(
        num_blocks=NUM_BLOCKS, block_size=block_size, vocab_size=scripts["vocab_size"], next_token=replay
    )
    cache = msgspec.structs.replace(config.cache, block_size=block_size)
    return Engine(
        executor,
        scheduler=config.scheduler,
        cache=cache,
        num_blocks=NUM_BLOCKS,
        max_model_len=config.model.max_model_len or MAX_MODEL_LEN,
        grammars=Compiler(lambda: vocabulary(config.model.model, scripts["vocab_size"])),
    )


def vocabulary(model: str, size: int) -> Vocabulary:
    tokenizer = Tokenizer.from_checkpoint(open_tokenizer(Path(model)))
    return Vocabulary(
        tokens=[tokenizer.token_bytes(token) for token in range(min(size, tokenizer.vocab_size))],
        special=dict(tokenizer.special_ids()),
        eos_token_ids=tuple(tokenizer.eos_token_ids),
        size=size,
    )


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        config = read_config(sock)
        run(lambda progress: build(config, json.loads(Path(sys.argv[2]).read_text("utf-8"))), sock)

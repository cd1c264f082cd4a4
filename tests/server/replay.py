"""A server whose model says what it is told: real tokenizer, template, engine and sockets over a ScriptedExecutor.

The last message of a chat names a script; the answer is that script's text, special tokens where it spells them.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replay_engine import MAX_MODEL_LEN
from serving import LiveServer
from tokenizers import AddedToken, Tokenizer

from octavo.api.async_llm import AsyncLLM
from octavo.api.engine_process import EngineProcess
from octavo.text.reasoning import REASONINGS
from octavo.text.tools.formats import FORMATS

TEMPLATE = (
    "{{ '<s>' }}{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages[:-1] %}{{ message | tojson }}"
    "{% endfor %}{{ '<|user|>' + messages[-1].content + '<|assistant|>' }}{{ opening }}"
)
VOCAB_SIZE = 640


def replay_model(checkpoint: Path, folder: Path, scripts: Mapping[str, str]) -> Path:
    """A model folder and, in it, scripts.json for replay_engine.py. Markers of all formats are special tokens."""
    shutil.copytree(checkpoint, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    spelled = {token for row in (*FORMATS, *REASONINGS) for token in row.tokens}
    parts = {token for token in spelled if token.startswith(("<", "[", "]"))}
    markers = {token for token in parts if not any(other != token and other in token for other in parts)}
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sorted(markers)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": VOCAB_SIZE, "max_position_embeddings": MAX_MODEL_LEN}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    told = {
        "scripts": [(encode(name), encode(text)) for name, text in scripts.items()],
        **{key: tokenizer.token_to_id(token) for key, token in MARKS.items()},
        "vocab_size": VOCAB_SIZE,
    }
    (folder / "scripts.json").write_text(json.dumps(told), "utf-8")
    return folder


MARKS = {"question": "<|user|>", "answer": "<|assistant|>", "end": "</s>"}


def replay_server(folder: Path, *, reasoning_parser: str | None = None, **options: Any) -> LiveServer:
    """`with replay_server(folder) as server`. reasoning_parser: the engine's.  options: ServerConfig's."""
    return LiveServer(replay_llm(folder, reasoning_parser=reasoning_parser), **options)


def replay_llm(folder: Path, **options: Any) -> AsyncLLM:
    """The model alone. options: the engine's."""
    ours, theirs = socket.socketpair()
    with theirs:
        program = Path(__file__).with_name("replay_engine.py")
        process = subprocess.Popen(
            [sys.executable, str(program), str(theirs.fileno()), str(folder / "scripts.json")],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return AsyncLLM(
        str(folder),
        process=EngineProcess(ours, process),
        **{"device": "cpu", "max_num_seqs": 16, "load_format": "dummy", **options},
    )

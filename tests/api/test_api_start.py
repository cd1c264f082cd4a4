"""A start brings in only what it needs, and the second one maps what the first has packed and says the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from transformers import AutoTokenizer

from octavo import LLM, SamplingParams
from octavo.api import build
from octavo.api.arguments import engine_config
from octavo.api.build import open_model
from octavo.api.engine_process import spawn
from octavo.backends.cpu import native, packed, packed_file
from octavo.base import heap
from octavo.base.config.config import ModelConfig
from octavo.base.errors import ConfigError
from octavo.base.types.ports import DeviceMemory

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SMALL = {"device": "cpu", "kv_cache_memory_bytes": 2 << 20, "threads": 1}
SERVING = {"asyncio", "ssl", "subprocess", "granian", "starlette", "prometheus_client"}
RARE = {"importlib.metadata", "lzma", "bz2", "urllib.request", "http.client", "huggingface_hub", "torch"}


def modules_after(program: str, *arguments: str) -> set[str]:
    code = f"import sys\n{program}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_one_token_needs_little(llama: str) -> None:
    program = (
        "from octavo import LLM, SamplingParams\n"
        "with LLM(sys.argv[1], device='cpu', kv_cache_memory_bytes=2 << 20) as llm:\n"
        "    llm.generate('A', SamplingParams(max_tokens=1), use_tqdm=False)"
    )
    found = modules_after(program, llama)
    assert {"numpy", "tokenizers"} <= found
    assert not found & (SERVING | RARE)


def test_the_engine_process_has_no_text(llama: str) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    process = spawn("cpu")
    config = msgspec.msgpack.encode(engine_config(llama, SMALL))
    with process.sock as sock:
        sock.settimeout(240)
        sock.sendall(len(config).to_bytes(4, "little") + config)
        received = b""
        while b"Ready" not in received:
            received += sock.recv(65536)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert process.end(20) == 1
    assert "multiarray" in mapped
    assert not [name for name in ("tokenizers", "minijinja", "_ssl", "granian") if name in mapped]


def test_one_spawned_ahead_can_be_dropped() -> None:
    process = spawn("cuda")
    process.drop()
    assert process.process.returncode is not None
    assert process.sock.fileno() == -1


def test_the_second_start_maps_the_weights(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip("nothing was compiled")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    monkeypatch.setattr(packed_file, "LEAST", 0)
    monkeypatch.setattr(packed_file, "SETTLED_NS", 0)
    monkeypatch.setattr(packed_file.Saving, "close", lambda self: self._thread.join())

    def answer() -> list[int]:
        with LLM(llama, activation_dtype="int8", **SMALL) as llm:
            (output,) = llm.generate("An octavo is", GREEDY, use_tqdm=False)
            return list(output.outputs[0].token_ids)

    first = answer()
    (file,) = (tmp_path / "packed").iterdir()
    written = file.stat()
    monkeypatch.setattr(packed, "_pack", None)
    assert answer() == first
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    monkeypatch.setenv("OCTAVO_PACKED_CACHE", "0")
    with pytest.raises(TypeError):
        answer()


def test_a_tokenizer_of_a_larger_model(llama: str, tmp_path: Path) -> None:
    """Ordinary tokens that the model lacks; control tokens beyond, as of Gemma 3's images, are passed over."""
    words = AutoTokenizer.from_pretrained(llama)
    fits = ModelConfig(model=llama, tokenizer=str(tmp_path))
    words.add_special_tokens({"additional_special_tokens": [f"<image_{number}>" for number in range(9)]})
    words.save_pretrained(tmp_path)
    assert open_model(fits).tokenizer is not None
    small = msgspec.structs.replace(fits, load_format="dummy", hf_overrides={"vocab_size": 300})
    with pytest.raises(ConfigError, match=rf"^tokenizer={tmp_path} has {words.vocab_size} tokens and the model 300:"):
        open_model(small)
    open_model(msgspec.structs.replace(small, tokenizer=None))  # the model's own is its author's affair


def test_an_opened_model_holds_no_vocabulary(llama: str) -> None:
    model = open_model(ModelConfig(model=llama))
    assert model.tokenizer is not None
    assert model.checkpoint.tokenizer is None
    heap.trim()
    assert model.tokenizer.decode(model.tokenizer.encode("An octavo"), skip_special_tokens=True) == "An octavo"


def test_weights_that_no_memory_holds_are_refused_before_they_are_read(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "device_memory", lambda _device: DeviceMemory(total=1000, free=900, weights=0))
    monkeypatch.setattr(build, "make_backend", pytest.fail)
    with pytest.raises(ConfigError, match=r"the weights take .* memory in all; take a smaller model") as caught:
        LLM(llama, device="cpu")
    assert caught.value.param == "model"

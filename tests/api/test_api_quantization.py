"""quantization=...: what it means for a checkpoint, what contradicts it, and the tokens that come of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_files as make
from quantized_checkpoints import FORMATS, INT4_FORMATS, INT8_FORMATS, WORDS, compressed, quantize_folder

from octavo import LLM, SamplingParams
from octavo.api.build import _weights as model_weights
from octavo.api.build import open_model
from octavo.api.quantization import online_quantization, weight_bytes
from octavo.backends.cpu.runner import CpuBackend
from octavo.backends.torch.quant.experts import QuantizedExperts
from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.backends.torch.quant.scaled import ScaledMatrix
from octavo.backends.torch.weights import ModelWeights, MoEWeights, load_weights
from octavo.base.config.config import ModelConfig
from octavo.base.errors import ConfigError, OctavoError, UnsupportedError

PROMPTS = [[5, 6, 7], [9, 30, 41, 8, 100, 12, 77], [60]]
SIZES: dict[str, Any] = {"max_model_len": 64, "kv_cache_memory_bytes": 1 << 20, "skip_tokenizer_init": True}


def tokens(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, detokenize=False)
    made = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in made]


@pytest.fixture
def plain(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama")


@pytest.fixture(params=["fp8_block", "compressed_channel", "gptq", "awq_64", "int8_channel"])
def quantized(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    return quantize_folder(plain, request.param, tmp_path)[0]


@pytest.mark.parametrize("device", ["torch:cpu", "cpu"])
def test_a_quantized_checkpoint_gives_the_same_tokens_alone_and_in_a_batch(quantized: Path, device: str) -> None:
    with LLM(str(quantized), device=device, **SIZES) as llm:
        together = tokens(llm, PROMPTS)
        assert [tokens(llm, [prompt])[0] for prompt in PROMPTS] == together
    exact = {**SIZES, "activation_dtype": "float32"} if device == "cpu" else SIZES
    found = []
    for folder in (quantized, quantized.parent / "plain"):
        with LLM(str(folder), device=device, **exact) as llm:
            found.append(tokens(llm, PROMPTS))
    assert found[0] == found[1]
    assert device == "cpu" or found[0] == together


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_quantized_while_loaded(plain: Path, load_format: str) -> None:
    options = {"device": "torch:cpu", "load_format": load_format, **SIZES}
    with LLM(str(plain), quantization="fp8", **options) as llm:
        together = tokens(llm, PROMPTS)
        assert [tokens(llm, [prompt])[0] for prompt in PROMPTS] == together
    with LLM(str(plain), **options) as exact:
        assert [len(ids) for ids in tokens(exact, PROMPTS)] == [len(ids) for ids in together]


def opened(path: Path, quantization: str | None, **more: Any) -> Any:
    return open_model(ModelConfig(model=str(path), quantization=quantization, **more), with_text=False)


def test_what_is_asked_for_and_what_is_there(plain: Path, tmp_path: Path) -> None:
    make.write_gguf(tmp_path / "m.gguf")
    block, channel = (quantize_folder(plain, name, tmp_path / name)[0] for name in ("fp8_block", "compressed_channel"))
    for path, asked, wanted in (
        (plain, None, None),
        (plain, "fp8", "fp8"),
        (block, None, None),
        (block, "fp8", None),
        (channel, "compressed-tensors", None),
        (tmp_path / "m.gguf", "gguf", None),
    ):
        assert online_quantization(opened(path, asked), device="cuda") == wanted
    for path, asked, words in (
        (channel, "fp8", "is quantized by compressed-tensors"),
        (block, "compressed-tensors", "is quantized by fp8"),
        (tmp_path / "m.gguf", "fp8", "is quantized by gguf"),
        (plain, "gguf", "is not quantized"),
        (plain, "compressed-tensors", "is not quantized"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            online_quantization(opened(path, asked), device="cuda")
        assert caught.value.param == "quantization"


@pytest.mark.parametrize(
    ("case", "options", "kind", "words"),
    [
        ("llama", {"quantization": "fp8", "device": "cpu"}, UnsupportedError, "device=cuda, or a GGUF file"),
        ("llama", {"quantization": "fp9"}, ConfigError, "awq, compressed-tensors, fbgemm_fp8, fp8, gguf"),
    ],
)
def test_mistakes_are_named(
    checkpoint: Callable[[str], Path], case: str, options: dict[str, Any], kind: type[OctavoError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        LLM(str(checkpoint(case)), **options, **SIZES)
    assert caught.value.param == "quantization"


@pytest.mark.parametrize(
    "name",
    ["fp8_block", "compressed_channel", "int8_channel", "int8_gptq", "gptq", "awq_64", "packed_zeros", "gptq_shuffled"],
)
def test_experts_stay_quantized(checkpoint: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """But for those whose columns have an order. Tokens are those of the numbers they hold, bytes are known before."""
    folders = quantize_folder(checkpoint("qwen3_moe"), name, tmp_path)
    found = []
    for folder in folders:
        with LLM(str(folder), device="torch:cpu", **SIZES) as llm:
            found.append(tokens(llm, PROMPTS))
    assert found[0] == found[1]
    weights, planned = loaded(folders[0])
    mixtures = [layer.ffn for layer in weights.layers if isinstance(layer.ffn, MoEWeights)]
    assert len(mixtures) == 2
    kind = torch.Tensor if name == "gptq_shuffled" else QuantizedExperts
    assert all(isinstance(moe.gate_up, kind) for moe in mixtures)
    assert all(isinstance(moe.down, torch.Tensor if name in WORDS else kind) for moe in mixtures)  # rows of 48
    assert 0.95 * weights.num_bytes <= planned < 1.1 * weights.num_bytes


def loaded(path: Path, quantization: str | None = None) -> tuple[ModelWeights, int]:
    """On a CPU in bfloat16, and the bytes that are planned."""
    model = opened(path, quantization)
    stored = model_weights(model)
    device = torch.device("cpu")
    weights = load_weights(model.spec, stored, dtype=torch.bfloat16, device=device, quantization=quantization)
    return weights, weight_bytes(model, device="cuda", element=2)


@pytest.mark.parametrize("case", ["qwen3_moe", "qwen2_moe"])
def test_experts_are_quantized_while_loaded(checkpoint: Callable[[str], Path], case: str) -> None:
    """The shared one is not."""
    path = checkpoint(case)
    for load_format in ("auto", "dummy"):
        with LLM(str(path), quantization="fp8", device="torch:cpu", load_format=load_format, **SIZES) as llm:
            assert [len(ids) for ids in tokens(llm, PROMPTS)] == [9] * len(PROMPTS)
    weights, planned = loaded(path, "fp8")
    moe = next(layer.ffn for layer in weights.layers if isinstance(layer.ffn, MoEWeights))
    assert isinstance(moe.gate_up, QuantizedExperts)
    assert isinstance(moe.down, QuantizedExperts)
    assert 0.98 * weights.num_bytes <= planned < 1.1 * weights.num_bytes


def test_bytes_on_the_device(plain: Path, tmp_path: Path) -> None:
    """Known from headers, and from a config alone."""
    channel = quantize_folder(plain, "compressed_channel", tmp_path / "a")[0]
    whole = weight_bytes(opened(plain, None), device="cuda", element=2)
    hidden, width, q, kv = 64, 112, 64, 32
    attention = q * hidden * 2 + kv * hidden * 2 + 4 * (2 * q + 2 * kv)
    mlp = 3 * width * hidden + 4 * (2 * width + hidden)
    layer = 2 * (q * hidden * 2 + kv * hidden * 2 + 3 * width * hidden)
    online = weight_bytes(opened(plain, "fp8"), device="cuda", element=2)
    assert online == whole - 2 * (layer - attention - mlp)
    down = width * hidden + 4 * hidden
    assert weight_bytes(opened(channel, None), device="cuda", element=2) == online - down + 2 * width * hidden
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(channel / "config.json", bare)
    model = open_model(ModelConfig(model=str(bare)), with_text=False, with_weights=False)
    assert weight_bytes(model, device="cuda", element=2) == online - down + 2 * width * hidden
    exact = weight_bytes(opened(channel, None), device="cpu", element=4, activation_dtype="float32")
    assert exact == 2 * whole


@pytest.mark.parametrize(
    "form", ["plain", "compressed_channel", "gptq_v2", "gptq_shuffled", "packed_group", "int8_gptq", "dummy"]
)
def test_bytes_on_a_cpu(plain: Path, tmp_path: Path, form: str) -> None:
    """Native kernels keep bfloat16, in 16 bits or in 12, and make it of what they have no blocks for."""
    folder = plain if form in ("plain", "dummy") else quantize_folder(plain, form, tmp_path / "a")[0]
    options = {"load_format": "dummy"} if form == "dummy" else {}
    made: list[CpuBackend] = []
    load = CpuBackend.load

    def note(self: CpuBackend, *given: Any) -> None:
        made.append(self)
        load(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuBackend, "load", note)
        with LLM(str(folder), device="cpu", **options, **SIZES):
            weights = made[0].memory().weights
    planned = weight_bytes(opened(folder, None, **options), device="cpu", element=4)
    assert 0.95 * weights < planned < 1.4 * weights


def test_a_wrong_config_is_told_before_weights_are_read(plain: Path, tmp_path: Path) -> None:
    settings = json.loads((plain / "config.json").read_text())
    config = {**compressed("channel"), "format": "nvfp4-pack-quantized"}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    with pytest.raises(OctavoError, match="nvfp4-pack-quantized"):
        open_model(ModelConfig(model=str(tmp_path)), with_text=False, with_weights=False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gptq", Int4Matrix),
        ("packed_zeros", Int4Matrix),
        ("fp8_block", ScaledMatrix),
        ("int8_channel", ScaledMatrix),
        ("int8_gptq", ScaledMatrix),
    ],
)
def test_dummy_weights_are_made_as_the_config_says(plain: Path, tmp_path: Path, name: str, kind: type) -> None:
    settings = json.loads((plain / "config.json").read_text())
    config = {**FORMATS, **INT4_FORMATS, **INT8_FORMATS}[name][0]
    settings |= {"quantization_config": config, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for device in ("torch:cpu", "cpu"):
        with LLM(str(tmp_path), device=device, load_format="dummy", **SIZES) as llm:
            assert [len(ids) for ids in tokens(llm, PROMPTS)] == [9] * len(PROMPTS)
    model = opened(tmp_path, None, load_format="dummy")
    weights = load_weights(model.spec, model_weights(model), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {type(matrix) for matrix in weights.quantized()} == {kind}
    planned = weight_bytes(model, device="cuda", element=2)
    assert 0.98 * weights.num_bytes <= planned < 1.2 * weights.num_bytes

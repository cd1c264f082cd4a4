"""Every family against Transformers: the same tensors as in its checkpoints, the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import reference_forward
from safetensors.numpy import load_file, save_file

from octavo.models.registry import build_spec, find_family
from octavo.models.rope import LAYER_TYPES
from octavo.models.spec import ModelSpec
from octavo.quant import dequantize
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.names import map_names

IGNORED_PARTS = ("vision_tower.", "multi_modal_projector.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: checkpoints.make_checkpoint(name, root / name) for name in checkpoints.CASES}


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_weights(folder: Path, spec: ModelSpec, config: dict[str, Any]) -> dict[str, np.ndarray]:
    stored = load_file(folder / "model.safetensors")
    return {name: stored[theirs] for name, theirs in find_family(config).names(spec).items()}


@pytest.mark.parametrize("name", checkpoints.CASES)
def test_parameters_are_the_checkpoints_tensors(name: str, folders: dict[str, Path]) -> None:
    config = read_config(folders[name])
    spec = build_spec(config)
    names = find_family(config).names(spec)
    ours = {names[internal]: parameter.shape for internal, parameter in spec.parameters().items()}
    stored = load_file(folders[name] / "model.safetensors")
    assert ours == {n: t.shape for n, t in stored.items() if not n.startswith(IGNORED_PARTS)}
    assert spec.family == config["model_type"]
    assert spec.dtype == "float32"


@pytest.mark.parametrize("name", checkpoints.CASES)
def test_logits_are_transformers(name: str, folders: dict[str, Path]) -> None:
    config = read_config(folders[name])
    spec = build_spec(config)
    tokens = checkpoints.prompt(200)  # beyond the windows and the small original contexts
    ours = reference_forward.forward(spec, read_weights(folders[name], spec, config), tokens)
    theirs = checkpoints.hf_logits(folders[name], tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stored", ["the output matrix alone", "both alike", "both apart"])
@pytest.mark.parametrize("name", ["llama_tied", "gemma3"])
def test_tied_matrices_are_what_is_stored(
    name: str, stored: str, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    embed = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = tensors[embed][:: -1 if stored == "both apart" else 1].copy()
    if stored == "the output matrix alone":
        del tensors[embed]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert ("differs" in caplog.text) == (stored == "both apart")
    spec = build_spec(checkpoint.config)
    shapes = {key: parameter.shape for key, parameter in spec.parameters().items()}
    mapped = map_names(checkpoint, find_family(checkpoint.config).names(spec), shapes)
    tokens = checkpoints.prompt(30)
    ours = reference_forward.forward(spec, {key: dequantize(tensor) for key, tensor in mapped.items()}, tokens)
    np.testing.assert_allclose(ours, checkpoints.hf_logits(folder, tokens), rtol=0, atol=1e-4)
    assert open_checkpoint(folder, hf_overrides={"tie_word_embeddings": True}).config["tie_word_embeddings"] is True


@pytest.mark.parametrize("name", ["llama_llama3", "llama_yarn", "llama_linear", "gemma3", "qwen3_bias"])
def test_the_old_config_form_means_the_same(name: str, folders: dict[str, Path]) -> None:
    config = read_config(folders[name])
    assert build_spec(_old_form(config)) == build_spec(config)


def _old_form(config: dict[str, Any]) -> dict[str, Any]:
    """The config as Transformers 4 wrote it: rope_theta, rope_scaling, rope_local_base_freq, torch_dtype."""
    old = dict(config)
    if "text_config" in old:
        return {**old, "text_config": _old_form(old["text_config"])}
    rope = old.pop("rope_parameters")
    if LAYER_TYPES[0] in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        del old["layer_types"]
        rope = rope["full_attention"]
    old["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    old["rope_scaling"] = {"type": rope["rope_type"], **scaling} if scaling else None
    old["torch_dtype"] = old.pop("dtype", "float32")
    return old


@pytest.mark.parametrize(
    "keys",
    [
        {"sliding_window_pattern": 2},
        {"_sliding_window_pattern": 2},  # an attribute of Transformers' own, written and never read
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ],
)
def test_gemma3_keys(keys: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gemma3_text"], tmp_path / "gemma3_text")
    config = read_config(tmp_path / "gemma3_text")
    del config["layer_types"], config["_sliding_window_pattern"]
    config["rope_parameters"]["sliding_attention"]["rope_theta"] = 1000.0
    config |= keys
    (tmp_path / "gemma3_text" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = checkpoints.prompt(40)
    spec = build_spec(config)
    ours = reference_forward.forward(spec, read_weights(tmp_path / "gemma3_text", spec, config), tokens)
    np.testing.assert_allclose(ours, checkpoints.hf_logits(tmp_path / "gemma3_text", tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "used"), [("qwen3_moe", "num_local_experts"), ("mixtral", "num_experts")])
def test_two_numbers_of_experts(family: str, used: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Of two that differ the same one counts as with Transformers, which loads such a checkpoint."""
    shutil.copytree(folders[family], tmp_path / family)
    config = read_config(tmp_path / family)
    count = config.pop("num_experts", None) or config["num_local_experts"]
    config |= {"num_experts": count + 7, "num_local_experts": count + 7, used: count}
    (tmp_path / family / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = checkpoints.prompt(20)
    spec = build_spec(config)
    ours = reference_forward.forward(spec, read_weights(tmp_path / family, spec, config), tokens)
    np.testing.assert_allclose(ours, checkpoints.hf_logits(tmp_path / family, tokens), rtol=0, atol=1e-4)


def test_published_gemma_configs_leave_defaults_out() -> None:
    # The text_config of google/gemma-3-4b-it holds these keys and no others that matter.
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    spec = build_spec({"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"})
    assert (spec.vocab_size, spec.max_position, spec.dtype, spec.head.tied) == (262_208, 131_072, "bfloat16", True)
    assert [i for i, layer in enumerate(spec.layers) if layer.mixer.window is None] == [5, 11, 17, 23, 29]
    local, full = spec.layers[0].mixer, spec.layers[5].mixer
    assert (full.heads, full.kv_heads, full.head_dim, full.scale) == (8, 4, 256, 256**-0.5)
    assert local.window == 1024
    assert local.rope is not None
    assert full.rope is not None
    assert local.rope.inv_freq[1] == pytest.approx(10_000 ** (-2 / 256))
    assert full.rope.inv_freq[1] == pytest.approx(1e6 ** (-2 / 256) / 8)
    assert spec.embedding_scale == 2560**0.5


def test_keys_that_gguf_headers_bring(folders: dict[str, Path]) -> None:
    """Weights with the 1 of Gemma's norms added, q and k rows paired as (2j, 2j+1), llama3 factors as divisors."""
    gemma = read_config(folders["gemma3_text"])
    spec = build_spec({**gemma, "norm_weight_offset": 0.0})
    assert {spec.final_norm.offset, spec.layers[0].mixer.qk_norm.offset, spec.layers[0].post_ffn.offset} == {0.0}

    config = read_config(folders["llama_llama3"])
    scaled = build_spec(config).layers[0].mixer.rope
    plain = build_spec({**config, "rope_parameters": None}).layers[0].mixer.rope
    factors = [a / b for a, b in zip(plain.inv_freq, scaled.inv_freq, strict=True)]
    changed = {**config, "rope_parameters": None, "rope_freq_factors": factors, "rope_interleaved": True}
    spec = build_spec(changed)
    assert spec.layers[0].mixer.rope.interleaved
    assert spec.layers[0].mixer.rope.inv_freq == pytest.approx(scaled.inv_freq)

    weights = read_weights(folders["llama_llama3"], spec, config)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name in list(weights):
        if name.endswith((".q", ".k")):
            w = weights[name].reshape(heads[name[-1]], 2, config["head_dim"] // 2, -1)
            weights[name] = w.swapaxes(1, 2).reshape(weights[name].shape)
    tokens = checkpoints.prompt(100)
    ours = reference_forward.forward(spec, weights, tokens)
    np.testing.assert_allclose(ours, checkpoints.hf_logits(folders["llama_llama3"], tokens), rtol=0, atol=1e-4)


def test_checkpoints_are_whole_models(folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    assert tokenizer.decode(tokenizer.encode("über alles, 世界"), skip_special_tokens=True) == "über alles, 世界"
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>hi<|assistant|>"
    assert len(tokenizer) < checkpoints.VOCAB_SIZE
    again = checkpoints.make_checkpoint("llama", folders["llama"].parent / "again")
    first, second = (load_file(f / "model.safetensors") for f in (folders["llama"], again))
    assert all(np.array_equal(first[name], second[name]) for name in first)

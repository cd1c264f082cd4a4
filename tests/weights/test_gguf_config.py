"""GGUF metadata of each family as Hugging Face config keys and tensor names, accepted by the families themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import weight_files as make
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, PoolingType, RopeScalingType, quants

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.models.registry import find_family
from octavo.quant import dequantize
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.gguf_config import gguf_config, hugging_face_name
from octavo.weights.names import map_names


def written(tmp_path: Path, arch: str = "llama", *, extra: dict[str, np.ndarray] | None = None, **change) -> Checkpoint:
    """A tiny model of `arch`; change(writer) adds keys before it is written."""
    writer = make.gguf_writer(tmp_path / "m.gguf", arch, key_length=change.get("key_length", True))
    if "keys" in change:
        change["keys"](writer)
    tensors = make.random_tensors(make.matrices(arch, tied=change.get("tied", True)))
    make.finish(writer, {**tensors, **(extra or {})})
    return open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "gemma-embedding"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_family_finds_all_its_weights(tmp_path: Path, arch: str, tied: bool) -> None:
    checkpoint = written(tmp_path, arch, tied=tied, keys=lambda w: w.add_sliding_window(8))
    family = find_family(checkpoint.config)
    spec = family.spec(checkpoint.config)
    shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
    weights = map_names(checkpoint, family.names(spec), shapes)
    assert set(weights) == set(shapes)
    assert len(weights) == len(checkpoint.tensors)
    assert spec.head.tied == tied
    mixer = spec.layers[0].mixer
    assert (mixer.heads, mixer.kv_heads, mixer.head_dim) == (make.HEADS, make.KV_HEADS, make.HEAD_DIM)
    assert mixer.rope.interleaved == (arch == "llama")
    assert spec.final_norm.offset == 0
    assert mixer.qkv_bias == (arch == "qwen2")


def test_a_tensor_in_a_layer_that_would_not_be_run_is_refused(tmp_path: Path) -> None:
    """llama.cpp adds a bias wherever a file has one; Hugging Face's llama has all four or none."""
    biases = {f"blk.{i}.attn_{part}.bias": np.ones(8, np.float32) for i in range(make.LAYERS) for part in "qkv"}
    checkpoint = written(tmp_path, extra=biases)
    family = find_family(checkpoint.config)
    spec = family.spec(checkpoint.config)
    shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_.\.bias .* llama .*6 such"):
        map_names(checkpoint, family.names(spec), shapes)


def test_what_the_metadata_says_too_is_passed_over(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, extra={"blk.0.attn_rot_embd.weight": np.ones(8, np.float32)})
    family = find_family(checkpoint.config)
    spec = family.spec(checkpoint.config)
    shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
    assert map_names(checkpoint, family.names(spec), shapes).keys() == shapes.keys()


def test_encoders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="architecture bert"):
        written(tmp_path, "bert")


def test_generic_keys(tmp_path: Path) -> None:
    config = written(tmp_path).config
    expected = {
        "model_type": "llama",
        "num_hidden_layers": make.LAYERS,
        "hidden_size": make.HIDDEN,
        "intermediate_size": make.WIDTH,
        "num_attention_heads": make.HEADS,
        "num_key_value_heads": make.KV_HEADS,
        "head_dim": make.HEAD_DIM,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 50_000.0,
        "max_position_embeddings": 256,
        "vocab_size": make.VOCAB,
        "tie_word_embeddings": True,
        "rope_interleaved": True,
        "dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    assert {key: config.get(key) for key in expected} == expected


def test_gemma3_scale_window_and_rope(tmp_path: Path) -> None:
    config = written(tmp_path, "gemma3", keys=lambda w: w.add_sliding_window(8)).config
    assert config["model_type"] == "gemma3_text"
    assert config["query_pre_attn_scalar"] == make.HEAD_DIM
    assert (config["rope_local_base_freq"], config["sliding_window_pattern"]) == (10_000.0, 6)
    assert config["norm_weight_offset"] == 0
    spec = find_family(config).spec(config)
    assert [layer.mixer.window for layer in spec.layers] == [8, 8]


def test_embeddinggemma_sees_both_ways(tmp_path: Path) -> None:
    def keys(writer: GGUFWriter) -> None:
        writer.add_sliding_window(8)
        writer.add_causal_attention(False)
        writer.add_pooling_type(PoolingType.MEAN)

    config = written(tmp_path, "gemma-embedding", keys=keys).config
    assert (config["model_type"], config["gguf_pooling"]) == ("gemma3_text", "mean")
    mixers = [layer.mixer for layer in find_family(config).spec(config).layers]
    assert [(mixer.window, mixer.causal) for mixer in mixers] == [(5, False)] * 2
    with pytest.raises(UnsupportedError, match="take the model's safetensors"):
        written(tmp_path, "gemma-embedding", keys=lambda w: w.add_dense_features_dims("dense_2", 8, 16))


def test_gemma3_27b_takes_its_scale_from_the_hidden_size() -> None:
    keys = {"block_count": 62, "embedding_length": 5376, "feed_forward_length": 21504, "context_length": 131072}
    keys |= {"attention.head_count": 32, "attention.key_length": 128}
    metadata = {"general.architecture": "gemma3", **{f"gemma3.{key}": value for key, value in keys.items()}}
    assert gguf_config(metadata, {"token_embd.weight": _embedding()})["query_pre_attn_scalar"] == 168


def test_gemma3_layer_pattern_as_a_list(tmp_path: Path) -> None:
    keys = lambda w: w.add_sliding_window_pattern([True, False])  # noqa: E731
    assert written(tmp_path, "gemma3", keys=keys).config["layer_types"] == ["sliding_attention", "full_attention"]


def test_llama3_frequency_factors(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, make.HEAD_DIM // 2, dtype=np.float32)
    config = written(tmp_path, extra={"rope_freqs.weight": factors}).config
    np.testing.assert_array_equal(np.float32(config["rope_freq_factors"]), factors)
    inv_freq = find_family(config).spec(config).layers[0].mixer.rope.inv_freq
    plain = 50_000.0 ** (-np.arange(0, make.HEAD_DIM, 2) / make.HEAD_DIM)
    np.testing.assert_allclose(inv_freq, plain / factors, rtol=1e-6)


def test_rope_scaling(tmp_path: Path) -> None:
    def yarn(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    scaling = written(tmp_path, keys=yarn).config["rope_scaling"]
    assert scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

    def scaled_yarn(writer: GGUFWriter) -> None:
        yarn(writer)
        writer.add_rope_scaling_attn_factors(0.5)

    scaling = written(tmp_path, keys=scaled_yarn).config["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx(0.5 * (1 + 0.1 * np.log(4)))

    def old_linear(writer: GGUFWriter) -> None:
        writer.add_float32("llama.rope.scale_linear", 2.0)

    assert written(tmp_path, keys=old_linear).config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    none = written(tmp_path, keys=lambda w: w.add_rope_scaling_type(RopeScalingType.NONE))
    assert "rope_scaling" not in none.config


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 0.0}, None),
        ({"type": "linear", "factor": 0.0}, None),
        ({"type": "linear"}, None),
        ({"type": "yarn", "factor": 0.0}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"type": "longrope"}, {"rope_type": "longrope"}),
    ],
    ids=str,
)
def test_rope_scaling_that_is_half_told(
    tmp_path: Path, keys: dict[str, str | float], expected: dict[str, str | float] | None
) -> None:
    """As llama.cpp: linear where the type is missing, none where the factor is missing or 0."""

    def write(writer: GGUFWriter) -> None:
        for name, value in keys.items():
            add = writer.add_string if isinstance(value, str) else writer.add_float32
            add(f"llama.rope.scaling.{name}", value)

    assert written(tmp_path, keys=write).config.get("rope_scaling") == expected


def test_rotated_share_of_a_head(tmp_path: Path) -> None:
    whole = lambda w: w.add_rope_dimension_count(make.HEAD_DIM)  # noqa: E731
    half = lambda w: w.add_rope_dimension_count(make.HEAD_DIM // 2)  # noqa: E731
    assert "partial_rotary_factor" not in written(tmp_path, keys=whole).config
    assert "partial_rotary_factor" not in written(tmp_path, keys=whole, key_length=False).config
    assert written(tmp_path, keys=half).config["partial_rotary_factor"] == 0.5


def test_generation_config_and_sampling_defaults(tmp_path: Path) -> None:
    def sampling(writer: GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 40)

    got = written(tmp_path, keys=sampling).generation_config
    assert got == {"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.5, "top_k": 40}


def test_names() -> None:
    cases = {
        ("blk.3.attn_q.weight", "llama"): "model.layers.3.self_attn.q_proj.weight",
        ("blk.3.attn_q.bias", "qwen2"): "model.layers.3.self_attn.q_proj.bias",
        ("blk.12.ffn_norm.weight", "llama"): "model.layers.12.post_attention_layernorm.weight",
        ("blk.12.ffn_norm.weight", "gemma3"): "model.layers.12.pre_feedforward_layernorm.weight",
        ("blk.0.post_attention_norm.weight", "gemma3"): "model.layers.0.post_attention_layernorm.weight",
        ("blk.0.post_ffw_norm.weight", "gemma3"): "model.layers.0.post_feedforward_layernorm.weight",
        ("blk.7.ffn_up_exps.weight", "qwen3moe"): "model.layers.7.mlp.experts.up_proj.weight",
        ("blk.7.ffn_gate_inp.weight", "llama"): "model.layers.7.block_sparse_moe.gate.weight",
        ("blk.7.ffn_down_exps.weight", "llama"): "model.layers.7.block_sparse_moe.experts.w2.weight",
        ("output.weight", "llama"): "lm_head.weight",
        ("rope_freqs.weight", "llama"): "rope_freqs.weight",
        ("blk.0.unheard_of.weight", "llama"): "blk.0.unheard_of.weight",
    }
    assert {case: hugging_face_name(*case) for case in cases} == cases


def _embedding():
    from octavo.base.types.tensor import SCHEMES, StoredTensor

    return StoredTensor("token_embd.weight", SCHEMES["F32"], (2, 4), memoryview(bytes(32)))


GOOD = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.context_length": 256,
    "llama.attention.head_count": 4,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"general.architecture": None}, r"general\.architecture"),
        ({"general.architecture": 7}, r"general\.architecture"),
        ({"llama.block_count": None}, r"llama\.block_count"),
        ({"llama.block_count": "2"}, r"llama\.block_count"),
        ({"llama.block_count": True}, r"llama\.block_count"),
        ({"llama.embedding_length": 64.0}, r"llama\.embedding_length"),
        ({"llama.attention.head_count": [4, 8]}, r"llama\.attention\.head_count"),
        ({"llama.rope.freq_base": [1.0]}, r"llama\.rope\.freq_base"),
        ({"llama.rope.scaling.type": 3}, r"llama\.rope\.scaling\.type"),
        ({"llama.expert_count": "8"}, r"llama\.expert_count"),
        ({"tokenizer.ggml.eos_token_id": "2"}, r"eos_token_id"),
    ],
)
def test_missing_and_mistyped_keys_are_named(change: dict[str, object], expected: str) -> None:
    gguf_config(GOOD, {"token_embd.weight": _embedding()})
    metadata = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ModelFormatError, match=expected):
        gguf_config(metadata, {"token_embd.weight": _embedding()})


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"general.architecture": "clip"}, "give the .gguf file of its text model"),
        ({**GOOD, "general.type": "mmproj"}, "give the .gguf file of its text model"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "a LoRA adapter, which is not supported"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.architecture": "whisper"}, "architecture 'whisper' is not supported; supported are llama, qwen2"),
    ],
)
def test_files_that_are_no_model_say_what_they_are(metadata: dict[str, object], expected: str) -> None:
    with pytest.raises((UnsupportedError, ModelFormatError), match=expected):
        gguf_config(metadata, {})


def test_equal_numbers_for_each_layer_are_one_number() -> None:
    config = gguf_config({**GOOD, "llama.attention.head_count": [4, 4]}, {"token_embd.weight": _embedding()})
    assert config["num_attention_heads"] == 4


def test_no_embedding() -> None:
    with pytest.raises(ModelFormatError, match=r"token_embd\.weight"):
        gguf_config(GOOD, {})


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_files(real_model, name: str) -> None:
    """Every weight of a real file is found and dequantized as ggml does; SmolLM2's lie where its own reader says."""
    path = real_model(name)
    checkpoint = open_checkpoint(path)
    family = find_family(checkpoint.config)
    spec = family.spec(checkpoint.config)
    shapes = {key: parameter.shape for key, parameter in spec.parameters().items()}
    weights = map_names(checkpoint, family.names(spec), shapes)
    assert len(weights) == len(checkpoint.tensors)
    for tensor in [t for t in weights.values() if t.data.nbytes < 2_000_000][:40]:
        raw = np.frombuffer(tensor.data, np.uint8)
        want = quants.dequantize(raw, GGMLQuantizationType[tensor.scheme.name]).view(np.float32)
        np.testing.assert_array_equal(dequantize(tensor).reshape(-1), want.reshape(-1))
    if name == "smollm2":  # the package takes half a minute for Gemma's vocabulary
        for oracle in GGUFReader(path).tensors:
            stored = checkpoint.tensors[hugging_face_name(oracle.name, "llama")]
            assert bytes(stored.data) == oracle.data.tobytes()

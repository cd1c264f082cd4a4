"""quantization_config: which modules are stored how, what is refused by name, parts that are missing or misshapen."""

from __future__ import annotations

from typing import Any

import pytest
from quantized_checkpoints import compressed, read

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, QuantizedTensor, StoredTensor
from octavo.weights.quantization import METHODS, read_quantization
from octavo.weights.quantization.patterns import compile_pattern

SHAPE = (256, 130)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = {**FP8, "weight_block_size": [128, 128]}


def tensor(name: str, scheme: str, *shape: int) -> StoredTensor:
    kind = {**SCHEMES, **PART_SCHEMES}[scheme]
    count = 1
    for size in shape:
        count *= size
    return StoredTensor(name, kind, shape, memoryview(bytes(count * kind.group_bytes)))


def parts(*given: tuple[str, str, tuple[int, ...]], weight: str = "F8_E4M3") -> dict[str, StoredTensor]:
    made = [
        tensor("m.q.weight", weight, *SHAPE),
        *(tensor(f"m.q.{name}", scheme, *size) for name, scheme, size in given),
    ]
    return {each.name: each for each in made}


def find(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> QuantizedTensor | None:
    return read(config).find(tensors, "m.q", SHAPE)


def test_none_is_none() -> None:
    assert read_quantization({}) is None
    assert read_quantization({"quantization_config": None}) is None


@pytest.mark.parametrize(
    ("config", "scale", "group", "shape"),
    [
        (FP8, ("weight_scale", "F32", ()), (0, 0), (1, 1)),
        (FP8, ("weight_scale_inv", "F32", (1,)), (0, 0), (1, 1)),
        (FP8, ("weight_scale", "BF16", (256, 1)), (1, 0), (256, 1)),
        (BLOCKS, ("weight_scale_inv", "F32", (2, 2)), (128, 128), (2, 2)),
        (compressed("tensor"), ("weight_scale", "F32", (1,)), (0, 0), (1, 1)),
        (compressed("channel"), ("weight_scale", "F16", (256, 1)), (1, 0), (256, 1)),
        (compressed("channel"), ("weight_scale", "F32", (256,)), (1, 0), (256, 1)),
        (compressed("block", block_structure=[128, 128]), ("weight_scale", "F32", (2, 2)), (128, 128), (2, 2)),
        ({**compressed("tensor"), "format": "naive-quantized"}, ("weight_scale", "F32", (1,)), (0, 0), (1, 1)),
    ],
)
def test_parts_of_fp8(
    config: dict[str, Any],
    scale: tuple[str, str, tuple[int, ...]],
    group: tuple[int, int],
    shape: tuple[int, int],
) -> None:
    found = find(config, parts(scale))
    assert found is not None
    assert (found.name, found.shape, found.scheme.group) == ("m.q.weight", SHAPE, group)
    assert found.scheme.bits == 8
    assert found.parts["scale"].shape == shape == found.scheme.scale_shape(SHAPE)
    assert found.nbytes == sum(part.nbytes for part in found.parts.values())


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        (FP8, parts(), "no tensor m.q.weight_scale or .weight_scale_inv"),
        (FP8, parts(("weight_scale", "F32", (2,))), "m.q.weight_scale"),
        (FP8, parts(("weight_scale", "F8_E4M3", (1,))), "F8_E4M3"),
        (BLOCKS, parts(("weight_scale_inv", "F32", (2, 1))), r"\[2, 2\]"),
        (compressed("tensor"), parts(("weight_scale", "F32", (2, 2))), r"\[256, 1\]"),
        (compressed("channel"), parts(("weight_scale", "F32", (1,))), r"\[256, 1\]"),
        (FP8, {"m.q.weight": tensor("m.q.weight", "F8_E4M3", 130, 256)}, r"\[256, 130\]"),
    ],
)
def test_damaged_parts_are_named(config: dict[str, Any], tensors: dict[str, StoredTensor], words: str) -> None:
    with pytest.raises(ModelFormatError, match=words):
        find(config, tensors)


def test_what_is_stored_plainly_is_plain() -> None:
    assert find(FP8, parts(weight="BF16")) is None
    assert find(FP8, {}) is None


def test_modules_that_are_left_out() -> None:
    listed = read({**FP8, "modules_to_not_convert": ["lm_head", "mlp.gate"]})
    assert listed.scheme("lm_head") is None
    assert listed.scheme("model.layers.3.mlp.gate") is None
    assert listed.scheme("model.layers.3.mlp.gate_proj") is not None
    assert read({**FP8, "ignored_layers": ["re.*mlp"]}).scheme("mlp.up_proj") is not None  # no pattern: no "re:"
    config = compressed("channel")
    config["ignore"] = ["lm_head", r"re:.*self_attn\.[qk]_proj$"]
    ignoring = read(config)
    assert ignoring.scheme("lm_head") is None
    assert ignoring.scheme("model.lm_head") is not None
    assert ignoring.scheme("model.layers.0.self_attn.k_proj") is None
    assert ignoring.scheme("model.layers.0.self_attn.v_proj") is not None


def test_modules_that_modelopt_leaves_out() -> None:
    keys = {"quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.0.mlp*"]}
    for config in (keys, {"producer": {"name": "modelopt"}, "quantization": keys}):
        found = read({"quant_method": "modelopt", **config})
        names = ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj")
        assert [scheme and scheme.group for scheme in map(found.scheme, names)] == [None, None, (0, 0)]


def test_groups_are_told_apart_by_their_targets() -> None:
    config = compressed("channel")
    other = compressed("tensor")["config_groups"]["group_0"]
    config["config_groups"] = {
        "a": {**other, "targets": ["re:.*down_proj", "model.layers.0.mlp.up_proj"]},
        "b": {**config["config_groups"]["group_0"], "targets": ["re:.*q_proj"]},
    }
    found = read(config)
    groups = {name: found.scheme(f"model.layers.0.mlp.{name}") for name in ("down_proj", "up_proj", "q_proj", "o_proj")}
    assert [scheme and scheme.group for scheme in groups.values()] == [(0, 0), (0, 0), (1, 0), None]


def test_the_group_that_names_a_module_most_closely_wins() -> None:
    config = compressed("channel")
    whole, blocks = config["config_groups"]["group_0"], compressed("block", block_structure=[128, 128])
    config["config_groups"] = {
        "a": whole,
        "b": {**compressed("tensor")["config_groups"]["group_0"], "targets": ["re:.*down_proj"]},
        "c": {**blocks["config_groups"]["group_0"], "targets": ["model.layers.1.mlp.down_proj"]},
    }
    config["ignore"] = ["re:.*layers\\.2\\."]
    config["config_groups"]["c"]["targets"] = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    found = [read(config).scheme(f"model.layers.{i}.mlp.{name}") for name in ("up_proj", "down_proj") for i in range(3)]
    assert [scheme and scheme.group for scheme in found] == [(1, 0), (1, 0), None, (0, 0), (128, 128), None]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*self_attn\.(q|k|v|o)_proj$",
        r"^(?!.*(vision_tower|lm_head)).*",
        r"(?i)(?:model\.)?layers\.(\d+)\.(?P<kind>self_attn|mlp)\..*",
        r"model.*layers.*self_attn.*q.*proj",
        r".*lm_head|.*gate|.*vision.*|.*router|.*embed.*|.*norm|.*bias",
        r"[]a(+*)]+\(*\[*",
        "|".join(rf"model\.layers\.{i}\..*" for i in range(200)),
        r".*\.experts\.[0-9]{1,3}\.w[123]",
    ],
)
def test_patterns_of_ordinary_checkpoints_are_taken(pattern: str) -> None:
    assert compile_pattern(pattern).pattern == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        r"([a-z_.0-9]+)+!",
        r"(?:[a-z.]*)*!",
        r"(a|a)*!",
        r"((a|b)c?){2,}!",
        r"(?P<x>\w+\.?){3}!",
        ".*.*.*.*.*.*.*.*!",
        "([a-z]?)" * 40 + "!",
        "(aa|aa|aa)" * 30 + "!",
        r"(?x)(a+) +!",
        r"(?#[)(a+)+]",
        r"(?:(?=(a+))b)+",
        r"a{99999999999999999999}",
        "(" * 20_000 + ")" * 20_000,
        "(",
    ],
    ids=lambda pattern: pattern[:20],
)
def test_patterns_that_could_take_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(ModelFormatError, match="pattern") as caught:
        read({**compressed("tensor"), "ignore": [f"re:{pattern}"]})
    assert repr(pattern[:80]) in caught.value.message
    assert caught.value.param == "quantization_config"


def rotated(*locations: str) -> dict[str, Any]:
    places = [{"targets": ["re:.*down_proj$"], "location": location, "inverse": False} for location in locations]
    return {"config_groups": {"R4": {"type": "hadamard", "apply": places}}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
        ({"quant_method": None}, "None"),
        ("awq", "'awq'"),
        ({"quant_method": ["fp8"]}, r"quant_method"),
        ({**compressed("tensor"), "sparsity_config": "sparse"}, "sparsity_config 'sparse'"),
        ({**compressed("tensor"), "format": ["float-quantized"]}, "format"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo 'NVFP4'"),
        ({"quant_method": "modelopt", "quantization": ["FP8"]}, "quant_algo"),
        (compressed({"tensor": 1}), "strategy"),
        ({**FP8, "activation_scheme": "sometimes"}, "activation_scheme 'sometimes'"),
        ({**FP8, "fmt": "e5m2"}, "fmt 'e5m2'"),
        ({**FP8, "weight_block_size": [64, 64]}, r"weight_block_size '\[64, 64\]'"),
        ({**FP8, "weight_block_size": 128}, "weight_block_size '128'"),
        ({**FP8, "ignored_layers": "lm_head"}, "ignored_layers"),
        ({**FP8, "ignored_layers": ["lm_head", 3]}, "ignored_layers"),
        ({**compressed("tensor"), "format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({**compressed("tensor"), "ignore": ["re:("]}, "pattern"),
        ({**compressed("tensor"), "config_groups": None}, "config_groups"),
        ({**compressed("tensor"), "config_groups": {"a": {"targets": ["Linear"]}}}, "weights 'None'"),
        ({**compressed("tensor"), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({**compressed("tensor"), "transform_config": rotated("weight_input", "input")}, "transform_config"),
        ({**compressed("tensor"), "transform_config": rotated("k_cache")}, "transform_config"),
        (
            {**compressed("tensor"), "transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}},
            "transform_config",
        ),
        ({**compressed("tensor"), "transform_config": {"other": 1}}, "transform_config"),
        ({**compressed("tensor"), "transform_config": "hadamard"}, "transform_config"),
        (compressed("group"), "strategy 'group'"),
        (compressed("tensor", num_bits=4), "4 bits of float"),
        (compressed("block", block_structure=[1, 128]), "block"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(config: Any, words: str) -> None:
    with pytest.raises(ModelFormatError, match=words) as caught:
        read_quantization({"quantization_config": config})
    assert caught.value.param == "quantization_config"


@pytest.mark.parametrize(
    "transforms", [None, {}, {"config_groups": {}}, rotated("weight_input", "weight_output")], ids=str
)
def test_rotations_that_the_weights_hold_are_taken(transforms: Any) -> None:
    found = read({**compressed("channel"), "transform_config": transforms})
    assert found.scheme("model.layers.0.mlp.up_proj") is not None


def test_every_method_is_read_here() -> None:
    assert set(METHODS) == {"fp8", "fbgemm_fp8", "modelopt", "compressed-tensors", "gptq", "awq"}

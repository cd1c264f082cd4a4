"""quantization_config of checkpoints of integers: what is read, what is refused by name, parts that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_checkpoints import AWQ, GPTQ, eight_bits, integers, read

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, MatrixScheme, QuantizedTensor, StoredTensor
from octavo.weights.quantization import find_quantization, read_quantization

OUT, IN = 24, 128
Shapes = dict[str, tuple[str, tuple[int, ...]]]
IN_GPTQ: Shapes = {"qweight": ("I32", (16, 24)), "qzeros": ("I32", (4, 3)), "scales": ("F16", (4, 24))}
IN_AWQ: Shapes = {"qweight": ("I32", (128, 3)), "qzeros": ("I32", (4, 3)), "scales": ("F16", (4, 24))}
IN_GPTQ_8: Shapes = {"qweight": ("I32", (32, 24)), "scales": ("F16", (1, 24))}
IN_PACKED: Shapes = {"weight_packed": ("I32", (24, 16)), "weight_scale": ("BF16", (24, 4))}
PACKED = integers("group", group_size=32)


def tensors(shapes: Shapes) -> dict[str, StoredTensor]:
    made = {}
    for name, (scheme, shape) in shapes.items():
        kind = {**SCHEMES, **PART_SCHEMES}[scheme]
        data = memoryview(bytes(int(np.prod(shape)) * kind.group_bytes))
        made[f"m.q.{name}"] = StoredTensor(f"m.q.{name}", kind, shape, data)
    return made


def grouped(index: np.ndarray) -> dict[str, StoredTensor]:
    """GPTQ with this g_idx."""
    values = index.astype("<i4")
    part = StoredTensor("m.q.g_idx", PART_SCHEMES["I32"], values.shape, memoryview(values.tobytes()))
    return {**tensors(IN_GPTQ), "m.q.g_idx": part}


def find(config: dict[str, Any], stored: dict[str, StoredTensor], *, width: int = IN) -> QuantizedTensor:
    found = read(config).find(stored, "m.q", (OUT, width))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "shapes", "scheme"),
    [
        (GPTQ, IN_GPTQ, MatrixScheme("gptq", 4, (1, 32), zeros=True)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, IN_GPTQ, MatrixScheme("gptq_v2", 4, (1, 32), zeros=True)),
        (AWQ, IN_AWQ, MatrixScheme("awq", 4, (1, 32), zeros=True)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"}, IN_AWQ, None),
        (PACKED, IN_PACKED, MatrixScheme("packed", 4, (1, 32))),
        (integers("channel"), {**IN_PACKED, "weight_scale": ("F32", (24, 1))}, MatrixScheme("packed", 4, (1, 0))),
        (
            integers("group", group_size=32, symmetric=False),
            {**IN_PACKED, "weight_zero_point": ("I32", (3, 4))},
            MatrixScheme("packed", 4, (1, 32), zeros=True),
        ),
        ({**GPTQ, "bits": 8, "group_size": 128}, IN_GPTQ_8, MatrixScheme("int8_gptq", 8, (1, 128))),
        (
            {**GPTQ, "bits": 8, "group_size": -1, "format": "gptq_v2"},
            IN_GPTQ_8,
            MatrixScheme("int8_gptq_v2", 8, (1, 0)),
        ),
        (
            integers("channel", num_bits=8),
            {"weight_packed": ("I32", (24, 32)), "weight_scale": ("BF16", (24, 1))},
            MatrixScheme("int8_packed", 8, (1, 0)),
        ),
        (
            eight_bits("channel"),
            {"weight": ("I8", (24, 128)), "weight_scale": ("BF16", (24, 1))},
            MatrixScheme("int8", 8, (1, 0)),
        ),
        (
            {**eight_bits("tensor"), "format": "naive-quantized"},
            {"weight": ("I8", (24, 128)), "weight_scale": ("F32", ())},
            MatrixScheme("int8", 8, (0, 0)),
        ),
    ],
)
def test_parts(config: dict[str, Any], shapes: Shapes, scheme: MatrixScheme | None) -> None:
    stored = tensors(shapes)
    found = find(config, stored)
    assert scheme is None or found.scheme == scheme
    assert found.shape == (OUT, IN)
    assert {part.name for part in found.parts.values()} == set(stored)
    assert found.nbytes == sum(part.nbytes for part in stored.values())
    planned = read(config).scheme("m.q")
    assert planned is not None
    assert planned.group == found.scheme.group


def test_groups_in_order_need_no_index() -> None:
    ordered = np.arange(IN) // 32
    assert "g_idx" not in find(GPTQ, grouped(ordered)).parts
    assert "g_idx" in find(GPTQ, grouped(ordered[::-1])).parts


@pytest.mark.parametrize("index", [np.zeros(IN), np.arange(IN) // 32 + 1, np.arange(IN) // 33, -np.ones(IN)])
def test_groups_of_other_sizes_are_refused(index: np.ndarray) -> None:
    with pytest.raises(ModelFormatError, match=r"m\.q\.g_idx does not put 32 columns into each of 4 groups"):
        find(GPTQ, grouped(index))


@pytest.mark.parametrize(
    ("config", "shapes", "words"),
    [
        (GPTQ, {**IN_GPTQ, "qweight": ("I32", (24, 16))}, r"m\.q\.qweight.*\[16, 24\] of I32"),
        (GPTQ, {**IN_GPTQ, "qweight": ("F32", (16, 24))}, r"qweight.*of I32"),
        (GPTQ, {**IN_GPTQ, "qweight": ("I32", (32, 24))}, r"qweight.*\[16, 24\]"),
        (GPTQ, {**IN_GPTQ, "scales": ("F16", (2, 24))}, r"m\.q\.scales.*\[4, 24\] of F32, BF16, F16"),
        (GPTQ, {**IN_GPTQ, "qzeros": ("I32", (4, 24))}, r"m\.q\.qzeros.*\[4, 3\]"),
        (GPTQ, {**IN_GPTQ, "g_idx": ("I32", (64,))}, r"m\.q\.g_idx.*\[128\]"),
        (AWQ, IN_GPTQ, r"qweight.*\[128, 3\]"),
        (PACKED, {**IN_PACKED, "weight_scale": ("BF16", (24, 1))}, r"weight_scale.*\[24, 4\]"),
    ],
)
def test_misshapen_parts_are_named(config: dict[str, Any], shapes: Shapes, words: str) -> None:
    with pytest.raises(ModelFormatError, match=words):
        find(config, tensors(shapes))


@pytest.mark.parametrize(
    ("config", "shapes", "missing"),
    [
        (GPTQ, IN_GPTQ, "scales"),
        ({**GPTQ, "sym": False}, IN_GPTQ, "qzeros"),
        (AWQ, IN_AWQ, "qzeros"),
        (PACKED, IN_PACKED, "weight_scale"),
        (integers("group", group_size=32, symmetric=False), IN_PACKED, "weight_zero_point"),
    ],
)
def test_missing_parts_are_named(config: dict[str, Any], shapes: Shapes, missing: str) -> None:
    left = tensors({name: shape for name, shape in shapes.items() if name != missing})
    with pytest.raises(ModelFormatError, match=rf"no tensor m\.q\.{missing}"):
        find(config, left)


def without_method(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quant_method"}


@pytest.mark.parametrize(
    ("config", "file", "own", "shapes"),
    [
        ({}, "quantize_config.json", without_method(GPTQ), IN_GPTQ),
        ({}, "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}, IN_AWQ),
        (
            {},
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
            {"weight": ("F8_E4M3", (OUT, IN)), "weight_scale": ("F32", ())},
        ),
        ({"compression_config": without_method(PACKED)}, None, None, IN_PACKED),
        ({"text_config": {"quantization_config": GPTQ}}, None, None, IN_GPTQ),
        ({"quantization_config": GPTQ}, "quantize_config.json", {"bits": 3}, IN_GPTQ),
        ({"quantization_config": GPTQ, "compression_config": without_method(PACKED)}, None, None, IN_GPTQ),
    ],
)
def test_where_older_checkpoints_tell_it(
    tmp_path: Path, config: dict[str, Any], file: str | None, own: object, shapes: Shapes
) -> None:
    if file is not None:
        (tmp_path / file).write_text(json.dumps(own))
    stored = tensors(shapes)
    quantization = find_quantization(tmp_path, config, stored)
    assert quantization is not None
    assert quantization.find(stored, "m.q", (OUT, IN)) is not None
    without_weights = find_quantization(tmp_path, config, {})
    assert without_weights is not None
    assert without_weights.scheme("m.q") == quantization.scheme("m.q")


def test_a_file_of_its_own_is_named_in_errors_and_passed_over_beside_plain_weights(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 3, "group_size": 32}))
    with pytest.raises(ModelFormatError, match=r"quantize_config\.json: bits '3' is not supported"):
        find_quantization(tmp_path, {}, tensors(IN_GPTQ))
    plain = tensors({"weight": ("F16", (OUT, IN))})
    assert find_quantization(tmp_path, {}, plain) is None
    assert find_quantization(tmp_path, {"compression_config": {"sparsity_config": {"format": "dense"}}}, plain) is None


def test_modules_with_keys_of_their_own() -> None:
    dynamic = {r"-:.*\.2\.": {}, r"+:.*\.1\.": {"group_size": 64, "sym": False}, r".*\.[12]\.": {"group_size": -1}}
    config = read({**GPTQ, "dynamic": dynamic})
    found = [config.scheme(f"model.layers.{i}.mlp.up_proj") for i in range(3)]
    assert found == [MatrixScheme("gptq", 4, (1, 32), zeros=False), MatrixScheme("gptq", 4, (1, 64), zeros=True), None]
    assert config.find({}, "model.layers.2.mlp.up_proj", (OUT, IN)) is None


def test_what_is_stored_plainly_is_plain() -> None:
    for config in (GPTQ, AWQ, PACKED):
        assert read(config).find({}, "m.q", (OUT, IN)) is None
    listed = read({**AWQ, "modules_to_not_convert": ["lm_head", "self_attn"]})
    assert listed.scheme("model.layers.0.self_attn.q_proj") is None
    assert listed.scheme("model.layers.0.mlp.up_proj") is not None


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_are_of_128_where_nothing_is_said(bits: int) -> None:
    for config in ({"quant_method": "gptq", "bits": bits}, {"quant_method": "awq", "bits": 4}):
        found = read(config).scheme("m.q")
        assert found is not None
        assert (found.bits, found.group) == (config["bits"], (1, 128))
    packed = read(integers("channel", num_bits=bits)).scheme("m.q")
    assert packed is not None
    assert packed.bits == bits


def test_rows_that_are_no_multiple_of_a_chunk_or_group_long() -> None:
    with pytest.raises(ModelFormatError, match="multiple of 32"):
        find(GPTQ, tensors(IN_GPTQ), width=112)
    with pytest.raises(ModelFormatError, match=r"\[128\]"):
        read(GPTQ).find(tensors(IN_GPTQ), "m.q", (IN,))
    with pytest.raises(ModelFormatError, match="groups of 64"):
        find({**GPTQ, "group_size": 64}, tensors(IN_GPTQ), width=96)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**GPTQ, "bits": 3}, "bits '3' is not supported, only 4 or 8"),
        ({**GPTQ, "bits": 8}, "group_size '32' is not supported, only -1 or a multiple of 128"),
        ({**GPTQ, "bits": None}, "bits 'None'"),
        ({**GPTQ, "group_size": 1}, "group_size '1'"),
        ({**GPTQ, "group_size": 0}, "group_size '0'"),
        ({**GPTQ, "group_size": 96}, "group_size '96' is not supported, only -1, 32, 64 or a multiple of 128"),
        ({**GPTQ, "group_size": "128"}, "group_size '128'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "checkpoint_format 'marlin'"),
        ({**GPTQ, "dynamic": {"+:.*down_proj": {"bits": 2}}}, "bits '2' is not supported, only 4 or 8"),
        ({**GPTQ, "dynamic": ["-:.*"]}, "dynamic"),
        ({**GPTQ, "dynamic": {"-:.*": None}}, "dynamic"),
        ({**GPTQ, "dynamic": {"-:(": {}}}, "pattern"),
        ({**AWQ, "bits": 3}, "bits '3'"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'"),
        ({**AWQ, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        (
            integers("group", group_size=32, num_bits=8),
            "group_size '32' is not supported, only -1 or a multiple of 128",
        ),
        (integers("group", group_size=32, num_bits=3), "num_bits '3'"),
        ({**AWQ, "bits": 8}, "bits '8' is not supported, only 4"),
        (eight_bits("group"), "strategy 'group'"),
        (eight_bits(["channel"]), "strategy"),
        (eight_bits("channel", num_bits=4), "4 bits of int"),
        (eight_bits("channel", symmetric=False), "symmetric 'False'"),
        (integers("group", group_size=32, type="float"), "type 'float'"),
        (integers("tensor"), "strategy 'tensor'"),
        (integers("group"), "group_size 'None'"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFormatError, match=words) as caught:
        read_quantization({"quantization_config": config})
    assert caught.value.param == "quantization_config"


@pytest.mark.parametrize(("form", "middle"), [("gptq", 127), ("gptq_v2", 128)])
def test_zeros_of_8_bits_are_the_middle_and_columns_in_order(form: str, middle: int) -> None:
    config = {**GPTQ, "bits": 8, "group_size": 64 * 2, "sym": False, "checkpoint_format": form}
    shapes = {"qweight": ("I32", (64, 24)), "scales": ("F16", (2, 24)), "qzeros": ("I32", (2, 6))}
    stored = tensors(shapes)

    def with_zeros(*values: int) -> dict[str, StoredTensor]:
        raw = memoryview(bytes(values))
        return {**stored, "m.q.qzeros": replace(stored["m.q.qzeros"], data=raw)}

    right = with_zeros(*[middle] * 48)
    assert set(find(config, right, width=256).parts) == {"words", "scale"}
    with pytest.raises(ModelFormatError, match=r"m\.q\.qweight: 8-bit matrices with zeros other than the middle"):
        find(config, with_zeros(*[middle] * 47, middle + 1), width=256)
    index = (np.arange(256) // 128)[::-1].astype("<i4")
    part = StoredTensor("m.q.g_idx", PART_SCHEMES["I32"], (256,), memoryview(index.tobytes()))
    with pytest.raises(ModelFormatError, match="desc_act"):
        find(config, {**right, "m.q.g_idx": part}, width=256)


def test_packed_integers_with_integer_activations_are_refused() -> None:
    config = integers("channel")
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int"}
    with pytest.raises(ModelFormatError, match="input_activations"):
        read_quantization({"quantization_config": config})


def test_a_scheme_keeps_whether_zeros_are_stored() -> None:
    stored = tensors({**IN_PACKED, "weight_zero_point": ("I32", (3, 4))})
    assert find(PACKED, stored).scheme == replace(MatrixScheme("packed", 4, (1, 32)), zeros=True)

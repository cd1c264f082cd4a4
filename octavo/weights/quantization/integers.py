"""Checkpoints of integers: quant_method gptq and awq, pack-quantized and int-quantized of compressed-tensors.

quant/int4 and quant/int8 tell the layouts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor, StoredTensor
from octavo.weights.quantization.patterns import compile_pattern
from octavo.weights.quantization.rules import SCALES, Rule, Tensors, bad, matcher, misshapen, names_of, part_of

_CHUNK = 32
"""Columns that the kernels read at once: a matrix has a multiple of them."""
_GPTQ, _PACKED = ("qweight", "scales", "qzeros"), ("weight_packed", "weight_scale", "weight_zero_point")
PARTS = {
    "gptq": _GPTQ,
    "gptq_v2": _GPTQ,
    "awq": _GPTQ,
    "packed": _PACKED,
    "int8_gptq": _GPTQ,
    "int8_gptq_v2": _GPTQ,
    "int8_packed": _PACKED,
}
"""Layout -> the names of words, scales and zeros; the columns' groups are g_idx or weight_g_idx."""
_MIDDLE = {"int8_gptq": 127, "int8_gptq_v2": 128, "int8_packed": 128}
"""Layout -> a byte of its zeros where they are the middle."""


def gptq_rules(config: Mapping[str, Any]) -> list[Rule]:
    """quant_method gptq: a scheme for all that has a qweight, others by `dynamic`, whose first pattern that matches a
    module's name from its beginning holds: +: (or nothing) has keys of its own, -: is not quantized."""
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(own, dict) for own in dynamic.values()):
        raise bad("dynamic", dynamic, "an object from patterns to objects")
    rules = []
    for key, own in dynamic.items():
        pattern = compile_pattern(key.removeprefix("+:").removeprefix("-:"))
        scheme = None if key.startswith("-:") else _gptq_scheme({**config, **own})
        rules.append(Rule(partial(_begins, pattern), scheme))
    return [*rules, Rule(lambda _: True, _gptq_scheme(config))]


def _begins(pattern: re.Pattern[str], module: str) -> bool:
    return pattern.match(module) is not None


def _gptq_scheme(config: Mapping[str, Any]) -> MatrixScheme:
    """Before version 2 zeros are stored less 1."""
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    if config.get("is_marlin_format"):
        form = "marlin"
    if form not in ("gptq", "gptq_v2"):
        raise bad("checkpoint_format", form, "gptq or gptq_v2")
    if config.get("bits") == 8:
        return MatrixScheme(f"int8_{form}", 8, _group(config.get("group_size", 128), bits=8))
    group = _group(config.get("group_size", 128))
    zeros = config.get("sym") is not True
    return MatrixScheme(form, _bits("bits", config.get("bits"), "4 or 8"), group, zeros)


def awq_rules(config: Mapping[str, Any]) -> list[Rule]:
    """quant_method awq, version gemm: one scheme for all that is not listed."""
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise bad("version", version, "gemm")
    bits = _bits("bits", config.get("bits", config.get("w_bit")), "4")
    group = _group(config.get("group_size", config.get("q_group_size", 128)))
    ignored = matcher(names_of(config, "modules_to_not_convert"), inside=True)
    scheme = MatrixScheme("awq", bits, group, config.get("zero_point") is not False)
    return [Rule(lambda module: not ignored(module), scheme)]


def packed_scheme(weights: Mapping[str, Any]) -> MatrixScheme:
    """`weights` of a group of compressed-tensors whose format is pack-quantized."""
    if weights.get("type", "int") != "int":
        raise bad("type", weights["type"], "int")
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise bad("strategy", strategy, "group or channel")
    size = weights.get("group_size") if strategy == "group" else -1
    if weights.get("num_bits") == 8:
        return MatrixScheme("int8_packed", 8, _group(size, bits=8))
    bits = _bits("num_bits", weights.get("num_bits"), "4 or 8")
    return MatrixScheme("packed", bits, _group(size), weights.get("symmetric") is not True)


def int_scheme(weights: Mapping[str, Any]) -> MatrixScheme:
    """`weights` of a group of compressed-tensors whose format is int-quantized. What activations are to be rounded to
    is not read: 8 bits a token is what products make of them, or finer."""
    if (weights.get("num_bits"), weights.get("type", "int")) != (8, "int"):
        raise bad("weights", f"{weights.get('num_bits')} bits of {weights.get('type')}", "8 bits of int")
    if weights.get("symmetric") is False:
        raise bad("symmetric", False, "true")
    groups = {"tensor": (0, 0), "channel": (1, 0)}
    strategy = weights.get("strategy")
    if not isinstance(strategy, str) or strategy not in groups:
        raise bad("strategy", strategy, "tensor or channel")
    return MatrixScheme("int8", 8, groups[strategy])


def find_words(tensors: Tensors, module: str, scheme: MatrixScheme, shape: tuple[int, ...]) -> QuantizedTensor | None:
    """rules.Find. Parts are words and scale, of 4 bits zeros where stored and g_idx where groups are not in order."""
    layout, word = scheme.layout, 32 // scheme.bits
    words_name, scale_name, zeros_name = PARTS[layout]
    words = tensors.get(f"{module}.{words_name}")
    if words is None:
        return None
    if len(shape) != 2 or shape[1] % _CHUNK:
        raise ModelFormatError(
            f"tensor {words.name}: matrices in words whose rows are not a multiple of {_CHUNK} long are not supported "
            f"({list(shape)}); take the unquantized model or a GGUF file of it"
        )
    out, width = shape
    down = -(-out // word)
    if width % (scheme.group[1] or width):
        raise misshapen(words, f"rows that split into groups of {scheme.group[1]}, not {list(shape)}")
    _, groups = scheme.scale_shape(shape)
    across = PARTS[layout] is _PACKED
    placed = (out, width // word) if across else (width, down) if layout == "awq" else (width // word, out)
    parts = {
        "words": _checked(words, placed, "I32"),
        "scale": _checked(part_of(tensors, module, scale_name), (out, groups) if across else (groups, out), *SCALES),
    }
    zeros = tensors.get(f"{module}.{zeros_name}")
    if zeros is not None:
        parts["zeros"] = _checked(zeros, (down, groups) if across else (groups, down), "I32")
    elif scheme.zeros:
        part_of(tensors, module, zeros_name)
    index = tensors.get(f"{module}.g_idx") or tensors.get(f"{module}.weight_g_idx")
    if index is not None and _in_disorder(_checked(index, (width,), "I32"), groups):
        parts["g_idx"] = index
    if layout in _MIDDLE:
        _check_8_bits(parts, _MIDDLE[layout])
    return QuantizedTensor(words.name, replace(scheme, zeros=zeros is not None), shape, parts)


def _check_8_bits(parts: dict[str, StoredTensor], middle: int) -> None:
    """What 4 bits may have: zeros are to be the middle, and are taken out; columns are to be in order."""
    zeros, words = parts.pop("zeros", None), parts["words"]
    if zeros is not None and set(zeros.data.cast("B")) != {middle}:
        what = "zeros other than the middle"
    elif "g_idx" in parts:
        what = "columns in an order of their own (desc_act)"
    else:
        return
    raise ModelFormatError(
        f"tensor {words.name}: 8-bit matrices with {what} are not supported; take the unquantized model or a GGUF file "
        "of it"
    )


def _checked(part: StoredTensor, shape: tuple[int, ...], *schemes: str) -> StoredTensor:
    """The part, if it is so."""
    if part.shape != shape or part.scheme.name not in schemes:
        raise misshapen(part, f"{list(shape)} of {', '.join(schemes)}")
    return part


def _in_disorder(index: StoredTensor, groups: int) -> bool:
    """Whether columns are not grouped as they come; all groups must have as many."""
    values = [value for (value,) in struct.iter_unpack("<i", index.data)]
    ordered = [column // (len(values) // groups) for column in range(len(values))]
    if sorted(values) != ordered:
        raise ModelFormatError(
            f"tensor {index.name} does not put {len(values) // groups} columns into each of {groups} groups; the "
            "config and the weights do not belong together"
        )
    return values != ordered


def _bits(key: str, value: Any, wanted: str) -> int:
    if value != 4:
        raise bad(key, value, wanted)
    return 4


def _group(size: Any, *, bits: int = 4) -> tuple[int, int]:
    """Multiples of 128; -1: a row; of 4 bits also 32 and 64."""
    smaller = (32, 64) if bits == 4 else ()
    known = isinstance(size, int) and (size in (-1, *smaller) or (size > 1 and not size % 128))
    if not known:
        raise bad("group_size", size, f"-1{', 32, 64' if smaller else ''} or a multiple of 128")
    return 1, max(size, 0)

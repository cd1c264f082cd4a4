"""Which modules a quantization_config speaks of: names and patterns in, True or False out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor, StoredTensor
from octavo.weights.quantization.patterns import compile_pattern

SCALES = ("F32", "BF16", "F16")
"""Types that scales are stored in."""
Tensors = Mapping[str, StoredTensor]
Find = Callable[[Tensors, str, MatrixScheme, tuple[int, ...]], QuantizedTensor | None]
"""(tensors, module, scheme, [out, in]) -> the module's matrix, None where it is stored plainly. ModelFormatError where
a part is missing or misshapen."""


@dataclass(frozen=True)
class Rule:
    """Matrices of the modules that `matches` takes are stored as the scheme says, if they are not stored plainly.

    scheme None: they are.
    """

    matches: Callable[[str], bool]
    scheme: MatrixScheme | None


def names_of(config: Mapping[str, Any], *keys: str) -> list[str]:
    """The list of names under the first of the keys that is there; [] for none."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise bad(key, value, "a list of names")
        return value
    return []


def matcher(names: list[str], *, inside: bool) -> Callable[[str], bool]:
    """Whether a module's name is one of `names`, or what follows "re:" in one of them matches it from its beginning.

    inside: a name may also be a part of the module's, between dots.
    """
    plain = [name for name in names if not name.startswith("re:")]
    patterns = [compile_pattern(name[3:]) for name in names if name.startswith("re:")]

    def matches(module: str) -> bool:
        if any(name == module or (inside and f".{name}." in f".{module}.") for name in plain):
            return True
        return any(pattern.match(module) for pattern in patterns)

    return matches


def bad(key: str, value: Any, wanted: str) -> ModelFormatError:
    """For a key of quantization_config whose value is none that can be run."""
    return ModelFormatError(
        f"config.json: quantization_config: {key} {str(value)[:60]!r} is not supported, only {wanted}; take the "
        "unquantized model or a GGUF file of it",
        param="quantization_config",
    )


def part_of(tensors: Tensors, module: str, *names: str) -> StoredTensor:
    """The module's part of the first of these names that is there."""
    for name in names:
        if f"{module}.{name}" in tensors:
            return tensors[f"{module}.{name}"]
    raise ModelFormatError(
        f"{module} is quantized, but there is no tensor {module}.{' or .'.join(names)}; the checkpoint is incomplete"
    )


def misshapen(part: StoredTensor, wanted: str) -> ModelFormatError:
    """For a part whose shape or type does not fit its matrix."""
    return ModelFormatError(
        f"tensor {part.name} is {list(part.shape)} of {part.scheme.name}, its matrix needs {wanted}; the config "
        "and the weights do not belong together"
    )

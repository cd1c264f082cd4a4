"""The tables: a quant_method's rules, a layout's parts. A new format is a line in each, and a dequantizer in quant/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor
from octavo.weights.files import read_json
from octavo.weights.quantization import compressed, fp8, integers
from octavo.weights.quantization.rules import Find, Rule, Tensors

METHODS: dict[str, Callable[[Mapping[str, Any]], list[Rule]]] = {
    "fp8": fp8.fp8_rules,
    "fbgemm_fp8": fp8.fp8_rules,
    "modelopt": fp8.modelopt_rules,
    "compressed-tensors": compressed.compressed_rules,
    "gptq": integers.gptq_rules,
    "awq": integers.awq_rules,
}
"""quant_method -> from quantization_config to the rules, of which the first that matches a module holds."""

LAYOUTS: dict[str, Find] = {
    **dict.fromkeys(fp8.ELEMENTS, fp8.find_bytes),
    **dict.fromkeys(integers.PARTS, integers.find_words),
}
"""MatrixScheme.layout -> how its parts are found."""


OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""What AutoGPTQ, AutoAWQ and ModelOpt write, or wrote once, in place of quantization_config -> quant_method."""


@dataclass(frozen=True)
class Quantization:
    """A checkpoint's quantization_config. method: its quant_method."""

    method: str
    rules: tuple[Rule, ...]

    def scheme(self, module: str) -> MatrixScheme | None:
        """How the module's matrix is stored, if it is not stored plainly; None: it is not quantized."""
        return next((rule.scheme for rule in self.rules if rule.matches(module)), None)

    def find(self, tensors: Tensors, module: str, shape: tuple[int, ...]) -> QuantizedTensor | None:
        """The module's matrix [out, in]; None where it is stored plainly. ModelFormatError as rules.Find."""
        scheme = self.scheme(module)
        return None if scheme is None else LAYOUTS[scheme.layout](tensors, module, scheme, shape)


def find_quantization(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Quantization | None:
    """As read_quantization; also from where older checkpoints tell it: compression_config, text_config, OWN_FILES, the
    last where there are no tensors (dummy weights, `octavo plan` of a config alone) or some are as they say.
    """
    text, old = config.get("text_config"), config.get("compression_config")
    found = config.get("quantization_config")
    if not found and isinstance(old, dict) and old.get("config_groups"):
        found = {**old, "quant_method": "compressed-tensors"}
    if not found and isinstance(text, dict):
        found = text.get("quantization_config")
    plain = tensors and not any(name.endswith((".qweight", ".weight_scale")) for name in tensors)
    if found or plain:
        return read_quantization({"quantization_config": found})
    for file, method in OWN_FILES.items():
        if own := read_json(folder / file):
            try:
                return read_quantization({"quantization_config": {"quant_method": method, **own}})
            except ModelFormatError as error:
                message = error.message.replace("config.json: quantization_config", file)
                raise ModelFormatError(message, param=error.param) from None
    return None


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Of a config.json; None where it has none. ModelFormatError names what cannot be run."""
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if not isinstance(quantization, dict) or not isinstance(method, str) or method not in METHODS:
        raise ModelFormatError(
            f"config.json: quantization_config.quant_method {str(method)[:40]!r} is not supported, only "
            f"{', '.join(METHODS)}; take the unquantized model or a GGUF file of it",
            param="quantization_config",
        )
    return Quantization(method, tuple(METHODS[method](quantization)))

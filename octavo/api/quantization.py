"""What a model's files hold and what was asked for in; what becomes of plain matrices, and bytes on the device, out."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor

if TYPE_CHECKING:
    from octavo.api.model import Model
    from octavo.weights.quantization import Quantization

ONLINE: dict[str, MatrixScheme] = {"fp8": MatrixScheme("fp8", 8, (1, 0))}
"""ModelConfig.quantization -> how the torch backend then keeps the layers' matrices of a plain checkpoint."""

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def online_quantization(model: Model, *, device: str) -> str | None:
    """Of ONLINE, what to make of the layers' matrices while they are loaded; None: they stay as they are stored.

    ConfigError where what was asked for is not how the checkpoint is quantized; UnsupportedError where the device
    cannot do it.
    """
    asked, stored = model.config.quantization, _stored_method(model)
    if asked is None or asked == stored:
        return None
    if stored is not None:
        raise ConfigError(
            f"quantization={asked}, but {model.path.name} is quantized by {stored}; leave it out", param="quantization"
        )
    if asked not in ONLINE:
        raise ConfigError(
            f"quantization={asked}, but {model.path.name} is not quantized; leave it out, use "
            f"{' or '.join(ONLINE)}, or name a model that is",
            param="quantization",
        )
    if device == "cpu":
        raise UnsupportedError(
            f"quantization={asked} is not supported on device cpu; use device=cuda, or a GGUF file of the model",
            param="quantization",
        )
    return asked


def weight_bytes(model: Model, *, device: str, element: int, activation_dtype: str = "auto") -> int:
    """Of all weights on the device. element: bytes of one number of its arithmetic.  activation_dtype: the option."""
    online = online_quantization(model, device=device)
    if device == "cpu":
        return _host_bytes(model, element=element, activation_dtype=activation_dtype)
    names = model.tensor_names()
    total = 0
    for name, parameter in model.spec.parameters().items():
        scheme = None
        if name.rsplit(".", 1)[-1] in _MATRICES and ".shared." not in name:
            stored = None if online else _stored(model, names[name], parameter.shape)
            scheme = ONLINE[online] if online else stored.scheme if isinstance(stored, QuantizedTensor) else stored
            if isinstance(stored, QuantizedTensor) and "g_idx" in stored.parts and ".experts." in name:
                scheme = None  # dequantized: each has an order of columns of its own
        size = prod(parameter.shape) * element
        total += size if scheme is None else scheme.num_bytes(parameter.shape)
    return total


def _host_bytes(model: Model, *, element: int, activation_dtype: str) -> int:
    """Native kernels keep what the files have, and blocks or bfloat16 of what is no format of theirs; NumPy has numbers
    of `element` bytes, as have exact products."""
    from octavo.backends.cpu.native import rounds
    from octavo.backends.cpu.packed import kept_bytes

    numbers = model.spec.num_parameters()
    if not rounds(activation_dtype):
        return numbers * element
    if model.config.load_format == "dummy":
        return numbers * 2
    plain = 4 if model.spec.dtype == "float32" else 2
    if model.checkpoint.quantization is not None:
        names, total = model.tensor_names(), 0
        for name, parameter in model.spec.parameters().items():
            matrix = name.rsplit(".", 1)[-1] in _MATRICES
            stored = _stored(model, names[name], parameter.shape) if matrix else None
            size = prod(parameter.shape) * plain
            total += size if stored is None else kept_bytes(stored, parameter.shape)
        return total
    return min(model.stored_bytes or numbers * plain, numbers * element)


def quantized_matrices(quantization: Quantization | None, names: Mapping[str, str]) -> dict[str, MatrixScheme]:
    """How config.json says that matrices are stored, by internal name. names: internal name -> checkpoint's name."""
    if quantization is None:
        return {}
    modules = {name: stored.removesuffix(".weight") for name, stored in names.items() if stored.endswith(".weight")}
    return {name: scheme for name, module in modules.items() if (scheme := quantization.scheme(module)) is not None}


def _stored_method(model: Model) -> str | None:
    from octavo.weights.gguf import is_gguf

    if is_gguf(model.path.name) or model.checkpoint.format == "gguf":
        return "gguf"
    quantization = model.checkpoint.quantization
    return None if quantization is None else quantization.method


def _stored(model: Model, name: str, shape: tuple[int, ...]) -> QuantizedTensor | MatrixScheme | None:
    """The matrix `name` if it is quantized; how config.json says that it is stored where no tensor is here."""
    quantization, tensors = model.checkpoint.quantization, model.checkpoint.tensors
    if quantization is None:
        return None
    module = name.removesuffix(".weight")
    return quantization.find(tensors, module, shape) if tensors else quantization.scheme(module)

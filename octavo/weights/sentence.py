"""sentence-transformers' files beside a checkpoint in; how its vectors are made out of hidden states, out.

modules.json lists the modules: Transformer, Pooling, Dense, Normalize. Others would change the vectors: refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.base.types.tensor import StoredTensor
from octavo.weights.files import map_file, read_json, read_text
from octavo.weights.safetensors import WHOLE, read_safetensors

DenseActivation = Literal["tanh", "identity", "relu", "sigmoid", "gelu", "silu"]
MODULES = "modules.json"
MOST_FEATURES = 1 << 17
# sentence-transformers' names of poolings -> ours
_MODES: dict[str, Literal["cls", "mean", "last"]] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
}
# PyTorch's names of activation functions -> ours
_ACTIVATIONS: dict[str, DenseActivation] = {
    "Tanh": "tanh",
    "Identity": "identity",
    "ReLU": "relu",
    "Sigmoid": "sigmoid",
    "GELU": "gelu",
    "SiLU": "silu",
}
_STATE = "sentence_embedding"
"""What a module that comes after Pooling reads and writes."""


@dataclass(frozen=True)
class DenseModule:
    """A layer, of `inputs` numbers `outputs`. path: its folder in the model's."""

    path: str
    inputs: int
    outputs: int
    bias: bool
    act: DenseActivation


@dataclass(frozen=True)
class SentenceFiles:
    """kind: how states are pooled.  normalize: vectors get length 1.  max_length: tokens of a text, where told.

    prompts: what a kind of text ("query", "document" ...) begins with.  dense: layers between pooling and normalizing.
    lower_case: texts are read in small letters.
    """

    kind: Literal["cls", "mean", "last"]
    normalize: bool
    max_length: int | None
    prompts: dict[str, str] = field(default_factory=dict)
    dense: tuple[DenseModule, ...] = ()
    lower_case: bool = False


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """None where there is no modules.json. ModelFormatError, UnsupportedError name the file and the key."""
    if not (folder / MODULES).is_file():
        return None
    pooling: dict[str, Any] | None = None
    normalize, where = False, ""
    dense: list[DenseModule] = []
    for path, kind in _modules(folder):
        if kind == "Pooling":
            where = f"{path}/config.json" if path else "config.json"
            pooling = read_json(folder / where)
        elif kind == "Normalize":
            normalize = True
        elif kind == "Dense" and pooling is not None and not normalize:
            dense.append(_read_dense(folder, path))
        elif kind == "Dense":
            raise UnsupportedError(
                f"{MODULES}: a module of type 'Dense' is supported between Pooling and Normalize alone, and "
                f"{path[:60]!r} is not",
                param="model",
            )
        elif kind != "Transformer":
            raise UnsupportedError(
                f"{MODULES}: modules of type {kind[:60]!r} are not supported; supported are Transformer, Pooling, "
                "Dense and Normalize",
                param="model",
            )
    if pooling is None:
        return None  # a cross-encoder's, or a model whose states are not pooled
    length, lower = _texts(folder)
    return SentenceFiles(_kind(pooling, where), normalize, length, _prompts(folder), tuple(dense), lower)


def read_dense(folder: Path, modules: Sequence[DenseModule]) -> dict[str, StoredTensor]:
    """The layers' weights, dense.{i} and dense.{i}_bias. ModelFormatError names the file that lacks one."""
    found = {}
    for i, module in enumerate(modules):
        where = f"{module.path}/{WHOLE}"
        if not (folder / where).is_file():
            raise ModelFormatError(
                f"{where} is missing, which {MODULES} names the module of; pickled weights (pytorch_model.bin) are "
                "never read because loading them can run code. Download it, or convert them"
            )
        tensors = read_safetensors(map_file(folder / where), where=where).tensors
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {f"dense.{i}": ("weight", (module.outputs, module.inputs))}
        if module.bias:
            wanted[f"dense.{i}_bias"] = ("bias", (module.outputs,))
        for name, (part, shape) in wanted.items():
            tensor = tensors.get(f"linear.{part}")
            if tensor is None or tensor.shape != shape:
                what = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
                raise ModelFormatError(
                    f"{where}: the tensor linear.{part} {what}, expected {list(shape)} by {module.path}/config.json"
                )
            found[name] = tensor
    return found


def check_dense(modules: Sequence[DenseModule], hidden_size: int) -> None:
    """ModelFormatError where a layer does not take what the one before it makes, the first one the model's states."""
    width = hidden_size
    for module in modules:
        if module.inputs != width:
            raise ModelFormatError(
                f"{module.path}/config.json: in_features is {module.inputs}, and what comes before it makes {width} "
                "numbers; the files do not belong together",
                param="in_features",
            )
        width = module.outputs


def _read_dense(folder: Path, path: str) -> DenseModule:
    where = f"{path}/config.json"
    config = read_json(folder / where)
    sizes: dict[str, int] = {}
    for key in ("in_features", "out_features"):
        size = config.get(key)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MOST_FEATURES:
            raise ModelFormatError(f"{where}: {key} must be an integer from 1 to {MOST_FEATURES}, got {size!r:.60}")
        sizes[key] = size
    bias = config.get("bias", True)
    if not isinstance(bias, bool):
        raise ModelFormatError(f"{where}: bias must be true or false, got {bias!r:.60}")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    act = _ACTIVATIONS.get(name.rpartition(".")[2]) if name.startswith("torch.nn.") else None
    if act is None:
        raise UnsupportedError(
            f"{where}: activation_function {name[:60]!r} is not supported; supported are torch's "
            f"{', '.join(_ACTIVATIONS)}",
            param="activation_function",
        )
    plain = {"module_input_name": _STATE, "module_output_name": _STATE, "use_residual": False}
    for key, usual in plain.items():
        if config.get(key, usual) not in (usual, None):
            raise UnsupportedError(f"{where}: {key} {config[key]!r:.60} is not supported", param=key)
    return DenseModule(path, sizes["in_features"], sizes["out_features"], bias, act)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Path and type of each module; the type without its package."""
    try:
        listed = json.loads(read_text(folder / MODULES))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{MODULES} is not valid JSON ({error}); download it again") from error
    found = []
    for entry in listed if isinstance(listed, list) else [None]:
        path, kind = (entry.get("path"), entry.get("type")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(kind, str):
            raise ModelFormatError(f"{MODULES} must be a list of objects with a path and a type; download it again")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelFormatError(f"{MODULES}: path {path[:60]!r} leaves the model's folder")
        found.append((path, kind.rpartition(".")[2]))
    return found


def _kind(config: dict[str, Any], where: str) -> Literal["cls", "mean", "last"]:
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in _MODES:
        shown = " + ".join(modes)[:60] or "nothing"
        raise UnsupportedError(
            f"{where}: pooling by {shown} is not supported; supported is one of {', '.join(_MODES)}",
            param="pooling_mode",
        )
    if config.get("include_prompt", True) is not True:
        raise UnsupportedError(f"{where}: include_prompt false is not supported", param="include_prompt")
    return _MODES[modes[0]]


def _texts(folder: Path) -> tuple[int | None, bool]:
    """max_seq_length and do_lower_case of the first sentence_*_config.json that is there."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        config = read_json(path)
        lower = config.get("do_lower_case") or False
        if not isinstance(lower, bool):
            raise ModelFormatError(f"{path.name}: do_lower_case must be true or false, got {str(lower)[:60]}")
        length = config.get("max_seq_length")
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise ModelFormatError(f"{path.name}: max_seq_length must be an integer from 1, got {str(length)[:60]}")
        return length, lower
    return None, False


def _prompts(folder: Path) -> dict[str, str]:
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts")
    if prompts is None:
        return {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelFormatError("config_sentence_transformers.json: prompts must map names to texts")
    return prompts

"""A checkpoint's tensors by Hugging Face name in, the model's weights by internal name out, each of the right shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.base.types.tensor import PART_SCHEMES, QuantizedTensor, StoredTensor, Weights, stored_parts
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.experts import find_expert

BODIES = ("model.", "bert.", "roberta.")
OTHER_NAMES = (
    # Transformers from 4.52 on names the parts of a model with a vision tower so
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    # checkpoints converted from TensorFlow: bert-base-uncased and its like
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
)
"""A part of a name -> what older or newer checkpoints have in its place."""
DERIVED = ("attn_rot_embd.weight",)
"""Tensors of a GGUF file's layers that its metadata says, too: rope's frequencies, in files of 2023."""
_log = logging.getLogger(__name__)


def map_names(checkpoint: Checkpoint, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """The weights that a spec asks for.

    names: internal name -> checkpoint's name.  shapes: internal name -> shape (models.spec.ModelSpec.parameters).
    Tensors that nobody asked for are passed over. Raises ModelFormatError for a missing tensor or another shape, and
    UnsupportedError for a GGUF file whose layers hold more: its architecture's name alone does not tell biases.
    """
    weights: dict[str, StoredTensor | QuantizedTensor] = {}
    for internal, shape in shapes.items():
        name = names[internal]
        tensor = _find(checkpoint, name, shape)
        if tensor is None and "head" not in names:  # where the two are one, either name may be stored
            tensor = _find(checkpoint, name.replace("model.embed_tokens.", "lm_head."), shape)
        if tensor is None:
            raise ModelFormatError(
                f"{checkpoint.path.name} has no tensor {name} (expected shape {list(shape)}, found none among "
                f"{len(checkpoint.tensors)} tensors); the config and the weights do not belong together"
            )
        if isinstance(tensor, StoredTensor):
            if tensor.scheme.name in PART_SCHEMES:
                raise ModelFormatError(
                    f"{checkpoint.path.name}: tensor {name} is stored as {tensor.scheme.name}, but config.json's "
                    "quantization_config does not say how it is quantized"
                )
            if shape[0] == 1 and tensor.shape == shape[1:]:  # GGUF keeps a matrix of one row as a vector
                tensor = replace(tensor, shape=shape)
        if tensor.shape != shape:
            raise ModelFormatError(
                f"{checkpoint.path.name}: tensor {name} has the shape {list(tensor.shape)}, expected {list(shape)}; "
                "the config and the weights do not belong together"
            )
        weights[internal] = tensor
    used = {tensor.name for tensor in stored_parts(weights)}
    extra = [tensor.name for tensor in checkpoint.tensors.values() if tensor.name not in used]
    in_layers = [name for name in extra if name.startswith("blk.") and not name.endswith(DERIVED)]
    if checkpoint.format == "gguf" and in_layers:
        raise UnsupportedError(
            f"{checkpoint.path.name}: the tensor {in_layers[0][:80]} is no part of a {checkpoint.config['model_type']} "
            f"model as it runs here ({len(in_layers)} such tensors); take the model's safetensors",
            param="model",
        )
    if extra:
        _log.debug("%s: %d tensors are not part of the model and were passed over", checkpoint.path.name, len(extra))
    return weights


def _find(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> StoredTensor | QuantizedTensor | None:
    tensors, quantization = checkpoint.tensors, checkpoint.quantization
    if quantization is not None and name.endswith(".weight") and len(shape) == 2:
        quantized = quantization.find(tensors, name.removesuffix(".weight"), shape)
        if quantized is not None:
            return quantized
    found: StoredTensor | QuantizedTensor | None = tensors.get(name) or find_expert(tensors, name)
    for usual, other in OTHER_NAMES:
        if found is None and usual in name:
            found = _find(checkpoint, name.replace(usual, other), shape)
    if found is None and name.startswith(BODIES):
        # a checkpoint of the body alone (BertModel, Qwen3Model) has no name for it
        return _find(checkpoint, name.partition(".")[2], shape)
    return found

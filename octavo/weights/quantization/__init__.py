"""config.json's quantization_config in, which matrix is stored how out; and its parts, found among a file's tensors."""

from octavo.weights.quantization.read import METHODS, Quantization, read_quantization

__all__ = ["METHODS", "Quantization", "read_quantization"]

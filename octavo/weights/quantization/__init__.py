"""A folder's quantization_config in, which matrix is stored how out; and its parts, found among a file's tensors."""

from octavo.weights.quantization.read import METHODS, Quantization, find_quantization, read_quantization

__all__ = ["METHODS", "Quantization", "find_quantization", "read_quantization"]

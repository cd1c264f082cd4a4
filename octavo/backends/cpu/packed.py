"""In: stored tensors and a program's packs. Out: matrices in the native kernels' own form, vectors as float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.program import Pack
from octavo.backends.cpu.weights import release
from octavo.base.types.ports import Progress
from octavo.base.types.tensor import StoredTensor, Weights
from octavo.quant.scheme import dequantize

EXACT = ("F32", "F16")
"""Formats whose products are float32 throughout; the others round activations to int8 or bfloat16."""


@dataclass(frozen=True)
class Matrix:
    """A packed matrix [n, k] of a scheme."""

    scheme: str
    n: int
    k: int
    data: np.ndarray


@dataclass(frozen=True)
class Packed:
    """vectors: float32 of the pack's shape.  matrices: a pack's sources one by one, as their formats may differ."""

    vectors: dict[str, np.ndarray]
    matrices: dict[str, tuple[Matrix, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        matrices = sum(matrix.data.nbytes for pack in self.matrices.values() for matrix in pack)
        return matrices + sum(vector.nbytes for vector in self.vectors.values())


def load_packed(
    packs: Mapping[str, Pack], weights: Weights, *, pool: Pool, exact: bool = False, progress: Progress | None = None
) -> Packed:
    """Pack all weights, a matrix after the other, each by all threads; gives mapped pages back.

    exact: matrices whose products would round activations are made float32 first.
    """
    packed = Packed({}, {})
    done, total = 0, sum(tensor.data.nbytes for pack in packs.values() for tensor in _sources(pack, weights))
    for name, pack in packs.items():
        matrices = []
        for tensor in _sources(pack, weights):
            if len(tensor.shape) > 1:
                n, k = tensor.shape[0], prod(tensor.shape[1:])
                rounds = exact and tensor.scheme.name not in EXACT
                scheme, data = ("F32", dequantize(tensor).data) if rounds else (tensor.scheme.name, tensor.data)
                matrices.append(Matrix(scheme, n, k, pool.pack(scheme, data, n=n, k=k)))
            done += tensor.data.nbytes
            if progress is not None:
                progress("weights", done, total)
        if matrices:
            packed.matrices[name] = tuple(matrices)
        else:
            joined = np.concatenate([dequantize(tensor) for tensor in _sources(pack, weights)])
            packed.vectors[name] = np.ascontiguousarray(joined.reshape(pack.shape), np.float32)
    release(weights)
    return packed


def _sources(pack: Pack, weights: Weights) -> Iterator[StoredTensor]:
    return (weights[source] for source in pack.sources)

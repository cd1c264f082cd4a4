"""In: stored tensors and a program's packs. Out: float32 arrays, dequantized piece by piece on a few threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from octavo.backends.cpu.program import Pack
from octavo.base.errors import ModelFormatError
from octavo.base.types.ports import Progress
from octavo.base.types.tensor import QuantizedTensor, StoredTensor, Weights, stored_parts
from octavo.models.spec import ModelSpec
from octavo.quant import dequantize, dequantize_matrix
from octavo.weights.files import release

_PIECE = 1 << 19
"""Elements dequantized at once: temporaries stay in a core's cache, and one large tensor keeps all threads busy."""

Piece = tuple[StoredTensor | QuantizedTensor, np.ndarray]
"""Some rows of a stored tensor, and where their numbers go."""


def check_weights(spec: ModelSpec, weights: Weights) -> None:
    """Raises ModelFormatError if a parameter of the spec is missing or of another shape."""
    for name, parameter in spec.parameters().items():
        tensor = weights.get(name)
        if tensor is None:
            raise ModelFormatError(
                f"the checkpoint has no tensor for {name}; it is incomplete, or not a {spec.family} model"
            )
        if tensor.shape != parameter.shape:
            raise ModelFormatError(
                f"tensor {tensor.name} ({name}) has shape {list(tensor.shape)}, the model's config makes it "
                f"{list(parameter.shape)}; the checkpoint and its config do not belong together"
            )


def load_packs(
    packs: Mapping[str, Pack], weights: Weights, *, threads: int, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """float32, C order, by pack name. Calls progress("weights", stored bytes done, of all); gives mapped pages back."""
    arrays: dict[str, np.ndarray] = {}
    pieces: list[Piece] = []
    for name, pack in packs.items():
        array = arrays[name] = np.empty(pack.shape, np.float32)
        at = 0
        for source in pack.sources:
            tensor = weights[source]
            end = at + tensor.shape[0]
            target = array.T[at:end] if len(tensor.shape) > 1 else array.reshape(-1)[at:end]
            pieces += _pieces(tensor, target) if isinstance(tensor, StoredTensor) else [(tensor, target)]
            at = end
    total = sum(stored.nbytes for stored, _ in pieces)
    lock, done = threading.Lock(), 0

    def run(piece: Piece) -> None:
        nonlocal done
        stored, target = piece
        target[...] = dequantize(stored) if isinstance(stored, StoredTensor) else dequantize_matrix(stored)
        if progress is not None:
            with lock:
                done += stored.nbytes
                progress("weights", done, total)

    with ThreadPoolExecutor(threads, "octavo-load") as pool:
        for _ in pool.map(run, pieces):
            pass
    release(*(part.data for part in stored_parts(weights)))
    return arrays


def _pieces(tensor: StoredTensor, target: np.ndarray) -> list[Piece]:
    """Cut by rows, so that groups stay whole. target: of the tensor's shape."""
    if len(tensor.shape) < 2:
        return [(tensor, target)]
    rows, width = tensor.shape
    row_bytes = tensor.data.nbytes // rows
    step = max(1, _PIECE // width)
    data = tensor.data.cast("B")
    pieces: list[Piece] = []
    for at in range(0, rows, step):
        end = min(rows, at + step)
        part = StoredTensor(tensor.name, tensor.scheme, (end - at, width), data[at * row_bytes : end * row_bytes])
        pieces.append((part, target[at:end]))
    return pieces

"""In: stored tensors and a program's packs. Out: matrices in the native kernels' own form, vectors as float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from octavo.backends.cpu import packed_file
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.packed_file import Part
from octavo.backends.cpu.program import Pack
from octavo.base.types.ports import Progress
from octavo.base.types.tensor import SCHEMES, MatrixScheme, QuantizedTensor, StoredTensor, Weights, stored_parts
from octavo.quant import dequantize
from octavo.quant.as_blocks import AS_STORED_VERSION, as_stored, block_scheme
from octavo.quant.int4 import LAYOUTS as INT4
from octavo.quant.int8 import LAYOUTS as INT8
from octavo.weights.files import release

EXACT = ("F32", "F16")
"""Formats whose products are float32 throughout; the others round activations to int8 or bfloat16."""
SLOW = ("scalar",)
"""Variants that take longer to decode BF16_SHORT than its bytes save."""
_RELEASE = 16 << 20
"""Stored bytes after which mapped pages are given back: the source is never whole in memory beside its packed form."""

Chosen = tuple[StoredTensor | QuantizedTensor, str]
"""A matrix as the checkpoint has it, and the scheme to pack it in; BF16 stands for BF16_SHORT as well."""


@dataclass(frozen=True)
class Matrix:
    """A packed matrix [n, k] of a scheme, which may be one of native.PACKED_ONLY."""

    scheme: str
    n: int
    k: int
    data: np.ndarray

    @property
    def act_scheme(self) -> str:
        """The scheme in whose form its products read activations."""
        return "BF16" if self.scheme == "BF16_SHORT" else self.scheme


@dataclass(frozen=True)
class Packed:
    """vectors: float32 of the pack's shape.  matrices: a pack's sources one by one, as their formats may differ.

    saving: the thread that keeps them in a file, if one does.
    mapped: bytes that come from such a file: as they can be read again, the system counts them as free.
    """

    vectors: dict[str, np.ndarray]
    matrices: dict[str, tuple[Matrix, ...]]
    saving: packed_file.Saving | None = None
    mapped: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        matrices = sum(matrix.data.nbytes for pack in self.matrices.values() for matrix in pack)
        return matrices + sum(vector.nbytes for vector in self.vectors.values())

    def close(self) -> None:
        """Wait a little for the file; idempotent."""
        if self.saving is not None:
            self.saving.close()


def load_packed(
    packs: Mapping[str, Pack],
    weights: Weights,
    *,
    pool: Pool,
    exact: bool = False,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Packed:
    """All weights, packed one matrix after the other, each by all threads; mapped pages are given back.

    exact: matrices whose products would round activations are made float32 first.
    folder: where an earlier load has left the packed matrices, or this one leaves them; not where exact.
    A QuantizedTensor takes the form that quant.block_scheme names, else bfloat16, or float32 where exact.
    Matrices in bfloat16 become BF16_SHORT where they can, and where that is faster.
    """
    sources = {name: [weights[source] for source in pack.sources] for name, pack in packs.items()}
    chosen = [
        (tensor, _scheme(tensor, exact=exact or packs[name].exact))
        for name, pack in sources.items()
        for tensor in pack
        if len(tensor.shape) > 1
    ]
    file = None
    if folder is not None and not exact:
        file = packed_file.locate(folder, [tensor for tensor, _ in chosen], layout=_layout(chosen, pool))
    parts = None if file is None else file.read(partial(_size, chosen, pool))
    saving, mapped = None, sum(matrix.nbytes for _, matrix in parts or ())
    if parts is None:
        parts = _pack(chosen, pool, progress=progress)
        saving = None if file is None else packed_file.Saving(file, parts)
    made = zip(chosen, parts, strict=True)
    matrices = iter([Matrix(scheme, **_shape(tensor), data=part) for (tensor, _), (scheme, part) in made])
    packed = Packed({}, {}, saving, mapped)
    for name, pack in sources.items():
        if len(pack[0].shape) > 1:
            packed.matrices[name] = tuple(islice(matrices, len(pack)))
        else:
            joined = np.concatenate([dequantize(tensor) for tensor in pack if isinstance(tensor, StoredTensor)])
            packed.vectors[name] = np.ascontiguousarray(joined.reshape(packs[name].shape), np.float32)
    release(*(part.data for part in stored_parts(weights)))
    return packed


def _scheme(tensor: StoredTensor | QuantizedTensor, *, exact: bool) -> str:
    """The scheme to pack it in, as in Chosen."""
    stored = tensor.scheme.name if isinstance(tensor, StoredTensor) else block_scheme(tensor) or "BF16"
    return "F32" if exact and stored not in EXACT else stored


def kept_bytes(stored: QuantizedTensor | MatrixScheme, shape: tuple[int, ...]) -> int:
    """About how many a matrix in parts takes when packed, where products may round, by what headers or a config say."""
    scheme = stored.scheme if isinstance(stored, QuantizedTensor) else stored
    shuffled = isinstance(stored, QuantizedTensor) and "g_idx" in stored.parts
    if scheme.layout not in (*INT4, *INT8) or shuffled:
        return prod(shape) * 2
    block = SCHEMES["Q8_0" if scheme.layout in INT8 else "Q4_1" if scheme.zeros else "Q4_0"]
    return prod(shape) // block.group * block.group_bytes


def _layout(chosen: Sequence[Chosen], pool: Pool) -> str:
    """What tells one packed form from another: its version, and how a probe of each format comes out when packed in
    the scheme that it is to have. What a matrix in parts becomes before has a version of its own."""
    n, k = 33, 512
    digest = blake2b(str(pool.layout).encode(), digest_size=16)
    if any(isinstance(tensor, QuantizedTensor) for tensor, _ in chosen):
        digest.update(AS_STORED_VERSION)
    kinds = {(t.scheme.name if isinstance(t, StoredTensor) else scheme, scheme) for t, scheme in chosen}
    for stored, scheme in sorted(kinds):
        size = n * k // SCHEMES[stored].group * SCHEMES[stored].group_bytes
        # Knuth's multiplicative hash: no byte like the next
        probe = (np.arange(size, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8)
        digest.update(pool.pack(stored, probe.data, n=n, k=k, to_float=scheme != stored).data)
        if scheme == "BF16":
            few = probe.view(np.uint16) & 0x87FF | 0x3800  # 16 upper bytes, and another one
            few[::5000] = 0
            short = pool.pack_short(few.data.cast("B"), n=n, k=k)
            digest.update(b"" if short is None else short.data)
    return digest.hexdigest()


def _size(chosen: Sequence[Chosen], pool: Pool, index: int, scheme: str) -> int | None:
    """Bytes of a tensor's packed form; None where it is not to have this one."""
    tensor, wanted = chosen[index]
    if scheme != wanted and (wanted, scheme) != ("BF16", "BF16_SHORT"):
        return None
    return pool.packed_bytes(scheme, **_shape(tensor))


def _pack(chosen: Sequence[Chosen], pool: Pool, *, progress: Progress | None) -> list[Part]:
    """Each tensor in the form of the scheme beside it: its own, BF16_SHORT for BF16 where that can hold it, or F32."""
    packed: list[Part] = []
    done, released = 0, 0
    total = sum(tensor.nbytes for tensor, _ in chosen)
    parts = stored_parts({str(i): tensor for i, (tensor, _) in enumerate(chosen)})
    owners = list({id(part.data.obj): part.data for part in parts}.values())
    for tensor, scheme in chosen:
        plain = tensor if isinstance(tensor, StoredTensor) else as_stored(tensor, scheme)
        shorten = scheme == "BF16" and pool.variant not in SLOW
        short = pool.pack_short(plain.data, **_shape(plain)) if shorten else None
        if short is not None:
            packed.append(("BF16_SHORT", short))
        else:
            to_float = scheme != plain.scheme.name
            packed.append((scheme, pool.pack(plain.scheme.name, plain.data, **_shape(plain), to_float=to_float)))
        done += tensor.nbytes
        if done - released >= _RELEASE:
            release(*owners)
            released = done
        if progress is not None:
            progress("weights", done, total)
    return packed


def _shape(tensor: StoredTensor | QuantizedTensor) -> dict[str, int]:
    return {"n": tensor.shape[0], "k": prod(tensor.shape[1:])}

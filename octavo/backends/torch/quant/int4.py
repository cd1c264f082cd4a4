"""4-bit matrices on a device: one form, in which the kernels read them, for every layout that they are stored in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.backends.torch.quant.matrix import view
from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor
from octavo.quant.int4 import SYMMETRIC, unpack_int4

CHUNK = 32
_PIECE = 1 << 24
"""Elements that are quantized at once, in float32."""


@dataclass(frozen=True)
class Int4Matrix:
    """[out, in] of (q - zero) * scale, q from 0 to 15, in groups of consecutive columns.

    words: int32 [in / 32, out, 4]. 32 consecutive elements of a row are a chunk of 16 bytes, which a thread reads at
    once, and chunks of neighbouring rows are neighbours. Bits 4 b to 4 b + 3 of a chunk's word j, with b = p + 4 h,
    p < 4 and h < 2, are its element 8 p + 2 j + h: of a word shifted and masked once, the halves are neighbours.
    scales: float16, bfloat16 or float32 [groups, out].  zeros: uint8 [groups, out], to 16; None: all are 8.
    order: int64 [in], where column i of all this stands in the matrix; None: at i.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        chunks, out, _ = self.words.shape
        return out, CHUNK * chunks

    @property
    def group(self) -> int:
        """Columns that share a scale: 32, 64, a multiple of 128, or all."""
        return self.shape[1] // self.scales.shape[0]

    @property
    def kind(self) -> Hashable:
        """By what kernels are compiled for."""
        return ("int4", self.group, self.scales.dtype, self.zeros is None)

    def tensors(self) -> tuple[Tensor, ...]:
        """All four, as far as they are there."""
        return tuple(t for t in (self.words, self.scales, self.zeros, self.order) if t is not None)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """As QuantizedMatrix."""
        q = unpack(self.words).float()
        zeros = SYMMETRIC if self.zeros is None else self.zeros.T.float().repeat_interleave(self.group, 1)
        values = (q - zeros) * self.scales.T.float().repeat_interleave(self.group, 1)
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(1, self.order, values)
        return values.to(dtype)

    def part(self, begin: int, end: int) -> Tensor:
        """float32: of so many rows, newly made."""
        zeros = None if self.zeros is None else self.zeros[:, begin:end]
        own = replace(self, words=self.words[:, begin:end], scales=self.scales[:, begin:end], zeros=zeros)
        return own.dequantize(torch.float32)


def pack(q: Tensor) -> Tensor:
    """Integers of 0..15 [out, in] -> Int4Matrix.words."""
    out, width = q.shape
    chunks = q.reshape(out, width // CHUNK, 4, 4, 2)  # [out, chunk, p, j, h]
    words = torch.zeros((width // CHUNK, out, 4), dtype=torch.int32, device=q.device)
    for p in range(4):
        for h in range(2):
            words |= chunks[:, :, p, :, h].transpose(0, 1).int() << 4 * (p + 4 * h)
    return words


def unpack(words: Tensor) -> Tensor:
    """Int4Matrix.words -> uint8 [out, in]."""
    chunks, out, _ = words.shape
    q = torch.empty((out, chunks, 4, 4, 2), dtype=torch.uint8, device=words.device)
    for p in range(4):
        for h in range(2):
            q[:, :, p, :, h] = ((words >> 4 * (p + 4 * h)) & 15).transpose(0, 1)
    return q.view(out, CHUNK * chunks)


def join_int4(stored: Sequence[QuantizedTensor], device: torch.device) -> Int4Matrix | None:
    """matrix.Join. Those whose columns are grouped alike go together."""
    parts = [_take(each, device) for each in stored]
    first = parts[0]
    if not all(part.group == first.group and _equal(part.order, first.order) for part in parts):
        return None
    kinds = {part.scales.dtype for part in parts}
    kind = first.scales.dtype if len(kinds) == 1 else torch.float32
    zeros = None
    if any(part.zeros is not None for part in parts):
        full = [torch.full_like(p.scales, SYMMETRIC, dtype=torch.uint8) if p.zeros is None else p.zeros for p in parts]
        zeros = torch.cat(full, 1)
    words = torch.cat([part.words for part in parts], 1)
    return Int4Matrix(words, torch.cat([part.scales.to(kind) for part in parts], 1), zeros, first.order)


def quantize_int4(matrix: Tensor, scheme: MatrixScheme) -> Int4Matrix:
    """To the nearest of 16 equal steps, in groups of the scheme's: the largest of a group is 7 steps from zero."""
    out, width = matrix.shape
    size = scheme.group[1] or width
    if width % CHUNK or width % size:
        message = f"{scheme.layout}: rows of {width} do not split into chunks of {CHUNK}, groups of {size}"
        raise UnsupportedError(message)
    scales = torch.empty((width // size, out), dtype=torch.float16, device=matrix.device)
    q = torch.empty((out, width), dtype=torch.uint8, device=matrix.device)
    step = max(1, _PIECE // width)
    for begin in range(0, out, step):
        piece = matrix[begin : begin + step].float().view(-1, width // size, size)
        scale = (piece.abs().amax(2) / 7).half()
        scales[:, begin : begin + step] = scale.T
        steps = (piece / scale.float().clamp(min=1e-8)[..., None]).round_().clamp_(-8, 7)
        q[begin : begin + step] = (steps + SYMMETRIC).flatten(1)
    zeros = torch.full_like(scales, SYMMETRIC, dtype=torch.uint8) if scheme.zeros else None
    return Int4Matrix(pack(q), scales, zeros)


def _take(stored: QuantizedTensor, device: torch.device) -> Int4Matrix:
    parts = {name: view(part).to(device) for name, part in stored.parts.items()}
    q, scale, zero = unpack_int4(stored.scheme.layout, parts, stored.shape[0], torch.stack)
    order = None
    if "g_idx" in parts:
        order = parts["g_idx"].argsort(stable=True)
        q = q[:, order]
    zeros = None if zero is None or bool((zero == SYMMETRIC).all()) else zero.T.to(torch.uint8).contiguous()
    return Int4Matrix(pack(q), scale.T.contiguous(), zeros, order)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)

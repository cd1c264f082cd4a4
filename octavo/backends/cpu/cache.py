"""One layer's keys, or its values: float32 in and out, kept as float32, as bfloat16, or as int8 with scales."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

CELLS: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "int8_per_token_head": np.dtype(np.int8),
}
"""kv_cache_dtype -> what the cache is an array of."""


def cache_dtype(name: str, *, rounds: bool, stored: str) -> str:
    """A kv_cache_dtype; of auto, bfloat16 where products round activations and the checkpoint is not float32 itself."""
    if name == "auto":
        return "bfloat16" if rounds and stored != "float32" else "float32"
    return name


@dataclass(frozen=True)
class Cells:
    """data: [kv_heads, blocks, ...] of a type of CELLS; the rest as attention.py has it, or as kernel_axes.

    scales: float32 [kv_heads, blocks, block_size], with int8 only: what a token's numbers in a head are multiplied by.
    """

    data: np.ndarray
    scales: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that belongs to a block: each array's second axis is that of the blocks."""
        return (self.data,) if self.scales is None else (self.data, self.scales)


def copy_blocks(caches: Iterable[Cells], copies: list[tuple[int, int]]) -> None:
    """(source, destination) each, at least one; all sources are read before a destination is written."""
    sources, destinations = np.array(copies).T
    for cells in caches:
        for array in cells.arrays:
            array[:, destinations] = array[:, sources]


def make_cells(dtype: str, shape: tuple[int, ...], *, block_size: int) -> Cells:
    """Empty cells of a type of CELLS. shape: [kv_heads, blocks, ...]."""
    scales = small_pages((*shape[:2], block_size), np.dtype(np.float32)) if CELLS[dtype].kind == "i" else None
    return Cells(small_pages(shape, CELLS[dtype]), scales)


def kernel_axes(dtype: str, *, dim: int, block_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes of a block's keys, and of its values, as csrc/program.h draws them."""
    if CELLS[dtype] == np.uint16:
        return ((dim + 1) // 2, block_size, 2), ((block_size + 1) // 2, dim, 2)
    return (dim, block_size), (block_size, dim)


def encode(x: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 [..., D] as what the cache keeps, and with int8 the scales [...].

    bfloat16: rounded to nearest even.  int8: x / scale, so rounded, where scale is the largest of |x| over D, / 127.
    Whatever is not finite makes its scale NaN, so that the row which reads it shows it.
    """
    if dtype == np.float32:
        return x, None
    if dtype == np.uint16:
        bits = np.ascontiguousarray(x).view(np.uint32)
        near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(x), 0x7FC0, near).astype(np.uint16), None
    scales = np.abs(x).max(axis=-1) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 0
    scales[~np.isfinite(scales)] = np.nan
    codes = np.zeros(x.shape, np.float32)
    np.divide(x, scales[..., None], out=codes, where=scales[..., None] > 0)
    return np.rint(codes).astype(np.int8), scales


def decode(data: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """What encode kept, [..., D], as float32; a float32 array itself."""
    if data.dtype == np.float32:
        return data
    if scales is None:
        return (data.astype(np.uint32) << 16).view(np.float32)
    floats = data.astype(np.float32)
    floats *= scales[..., None]
    return floats


def small_pages(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that come to take memory in small pages.

    A block is a few kilobytes in each head of each layer: in huge pages, which np.zeros asks for, the first prompt
    would wait for hundreds of megabytes to be cleared.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    pages = mmap.mmap(-1, dtype.itemsize * prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages does not know the advice
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)

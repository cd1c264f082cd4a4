"""The C ABI of csrc/matmul.h on NumPy arrays, in this process or in one of native_remote.PLACES."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from native_remote import HERE, PLACES, Remote

from octavo.backends.cpu import native as native_library

NAMES = list(native_library.SCHEME_IDS)
REMOTE = ("sanitized", "arm")
TARGETS = [("here", variant) for variant in HERE] + [(place, v) for place in REMOTE for v in PLACES[place].variants]
FEWER_ROWS = (*range(1, 9), 12, 13, 16, 17, 24, 31, 33, 40)
GUARD = 96
POISON = 0xA5


class Address:
    """The type of an argument that is an array's address; None is null."""

    @classmethod
    def from_param(cls, array: np.ndarray | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if array is None else array.ctypes.data)


def typed(lib: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the functions of matmul.h on arrays, as native_remote.Remote has them."""
    size, i64, scheme = ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
    for name, result, arguments in (
        ("oct_packed_bytes", size, [scheme, i64, i64]),
        ("oct_act_bytes", size, [scheme, i64, i64]),
        ("oct_pack", ctypes.c_int, [scheme, Address, Address, i64, i64, i64]),
        ("oct_act_quantize", None, [scheme, Address, i64, Address, i64, i64, i64, i64]),
        ("oct_matmul", None, [scheme, Address, Address, i64, Address, *[i64] * 5, *[Address] * 2]),
        ("oct_dequantize_row", None, [scheme, Address, Address, i64, i64]),
        ("oct_set_variant", ctypes.c_int, [ctypes.c_char_p]),
        ("oct_variant", ctypes.c_char_p, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class RefusedError(Exception):
    """The scheme cannot hold the weights."""


class Native:
    """The compiled kernels on NumPy arrays; every buffer lies unaligned between guard bytes that must not change.

    rows: products of how many rows are worth their time.
    """

    def __init__(self, lib: Any, rows: Iterable[int] = range(1, 65)) -> None:
        self.lib = lib
        self.rows = list(rows)

    def choose(self, variant: str) -> bool:
        return self.lib.oct_set_variant(variant.encode()) == 0

    def pack(self, name: str, stored: np.ndarray, n: int, k: int, cuts: tuple[int, ...] = ()) -> np.ndarray:
        """stored: uint8, any shape -> the packed bytes, in ranges that end at the cuts. Raises RefusedError."""
        scheme = NAMES.index(name)
        packed = guarded(self.lib.oct_packed_bytes(scheme, n, k), 1)
        source = guarded(stored.size, 3)
        source[:] = stored.reshape(-1)
        for begin, end in zip((0, *cuts), (*cuts, n), strict=True):
            refused = self.lib.oct_pack(scheme, source, packed, k, begin, end)
            check_guards(packed)
            if refused:
                raise RefusedError
        return packed

    def quantize(self, name: str, x: np.ndarray, cuts: tuple[int, ...] = ()) -> np.ndarray:
        """x float32 [m, k], rows may be apart -> the converted activations."""
        scheme, (m, k) = NAMES.index(name), x.shape
        act = guarded(self.lib.oct_act_bytes(scheme, m, k), 2)
        for begin, end in zip((0, *cuts), (*cuts, m), strict=True):
            self.lib.oct_act_quantize(scheme, x, x.strides[0] // 4, act, m, k, begin, end)
        check_guards(act)
        return act

    def matmul(
        self,
        name: str,
        packed: np.ndarray,
        x: np.ndarray,
        n: int,
        *,
        cuts: tuple[int, ...] = (),
        bias: np.ndarray | None = None,
    ) -> np.ndarray:
        """x [m, k] times the packed weights -> y float32 [m, n], in n ranges that end at the cuts."""
        scheme, (m, k) = NAMES.index(name), x.shape
        act = self.quantize(name, x)
        width = n + 5
        y = guarded(m * width * 4, 4).view(np.float32).reshape(m, width)
        y[:] = np.nan
        for begin, end in zip((0, *cuts), (*cuts, n), strict=True):
            self.lib.oct_matmul(scheme, packed, act, 0, y, width, m, k, begin, end, bias, None)
        check_guards(y)
        assert np.isnan(y[:, n:]).all()
        return y[:, :n].copy()

    def row(self, name: str, packed: np.ndarray, k: int, row: int) -> np.ndarray:
        out = guarded(k * 4, 4).view(np.float32)
        self.lib.oct_dequantize_row(NAMES.index(name), packed, out, k, row)
        check_guards(out)
        return out


def guarded(size: int, offset: int) -> np.ndarray:
    """uint8 [size], `offset` bytes past a 64-byte border, poisoned, with GUARD poisoned bytes on both sides."""
    whole = np.full(size + 2 * GUARD + 128, POISON, np.uint8)
    start = (-whole.ctypes.data - GUARD) % 64 + GUARD + offset
    return whole[start : start + size]


def check_guards(part: np.ndarray) -> None:
    whole = part
    while whole.base is not None:
        whole = whole.base
    start = part.ctypes.data - whole.ctypes.data
    assert (whole[:start] == POISON).all()
    assert (whole[start + part.nbytes :] == POISON).all()


def kernels(place: str, remotes: Callable[[str], Remote]) -> Native:
    """Those in this process ("here") or elsewhere: with sanitizers, on an emulated processor."""
    if place != "here":
        return Native(remotes(place), FEWER_ROWS)
    if native_library.library() is None:
        pytest.skip("nothing was compiled")
    return Native(typed(ctypes.CDLL(str(native_library.LIBRARY))))

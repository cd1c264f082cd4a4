"""Where packed matrices lie: small ones side by side, so that huge pages hold them."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_tiny import rand

from octavo.backends.cpu.native import PIECE, Pool, Room, library


def test_pieces_lie_side_by_side_and_large_ones_alone() -> None:
    room, sizes = Room(), [1, 64, 100, 1 << 20, PIECE - 1, PIECE, 0, 7]
    taken = [room.take(size) for size in sizes]
    for number, piece in enumerate(taken):
        piece[:] = number
    assert [len(piece) for piece in taken] == sizes
    assert all(piece.ctypes.data % 64 == 0 for piece in taken)
    for number, piece in enumerate(taken):
        assert (piece == number).all()
    starts = [piece.ctypes.data for piece in taken]
    assert [start - starts[0] for start in starts[:4]] == [0, 64, 128, 256]


def test_what_is_given_back_is_taken_again() -> None:
    room = Room()
    first, second = room.take(100), room.take(1000)
    room.give_back(second)
    third = room.take(10)
    assert third.ctypes.data == second.ctypes.data == first.ctypes.data + 128
    room.give_back(room.take(PIECE))
    assert room.take(1).ctypes.data == third.ctypes.data + 64


@pytest.mark.skipif(library() is None, reason="no compiled kernels")
def test_packed_matrices_are_neighbours() -> None:
    loaded = library()
    assert loaded is not None
    pool = Pool(loaded, 1)
    varied = np.exp2(rand(32, 512) * 60).astype(np.float32).view(np.uint32) >> 16
    assert pool.pack_short(memoryview(varied.astype(np.uint16)).cast("B"), n=32, k=512) is None
    one, two = (pool.pack("F32", memoryview(rand(16, 64)).cast("B"), n=16, k=64) for _ in range(2))
    assert two.ctypes.data - one.ctypes.data == -(-len(one) // 64) * 64
    pool.close()

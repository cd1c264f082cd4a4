"""BlockPool: reference counts and the order of reuse."""

from __future__ import annotations

import pytest

from octavo.engine.cache.pool import BlockPool


def test_blocks_are_taken_in_order_and_counted() -> None:
    pool = BlockPool(3)
    assert [pool.allocate() for _ in range(3)] == [0, 1, 2]
    assert pool.num_free == 0
    assert pool.refs == [1, 1, 1]


def test_an_empty_pool_refuses() -> None:
    pool = BlockPool(1)
    pool.allocate()
    with pytest.raises(IndexError, match="no free block"):
        pool.allocate()


def test_a_shared_block_is_free_only_when_the_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.share(block)
    pool.release(block, keep=False)
    assert not pool.is_free(block)
    pool.release(block, keep=False)
    assert pool.is_free(block)
    assert pool.num_free == 2


def test_a_free_block_can_be_revived() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.release(block, keep=True)
    pool.share(block)
    assert pool.refs[block] == 1
    assert not pool.is_free(block)
    assert pool.allocate() != block


def test_double_free_is_refused() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.release(block, keep=False)
    with pytest.raises(ValueError, match=f"block {block} is released"):
        pool.release(block, keep=False)


def test_kept_blocks_are_reused_last_and_in_the_order_of_their_release() -> None:
    pool = BlockPool(5)
    held = [pool.allocate() for _ in range(4)]
    for block in held[:2]:
        pool.release(block, keep=True)
    pool.release(held[2], keep=False)
    pool.release(held[3], keep=True)
    assert [pool.allocate() for _ in range(5)] == [held[2], 4, held[0], held[1], held[3]]

"""CacheManager: tables grow, prefixes are shared, of a shared block that is not full a copy is written."""

from __future__ import annotations

import pytest
from simulation import make_request

from octavo.base.types.plan import BlockUpdate
from octavo.engine.cache.manager import CacheManager
from octavo.engine.sequence import Sequence, make_sequences


def manager(num_blocks: int = 8, *, caching: bool = True) -> CacheManager:
    return CacheManager(num_blocks=num_blocks, block_size=4, enable_prefix_caching=caching)


def sequence(tokens: list[int], *, row: int = 0, salt: str = "") -> Sequence:
    seq = make_sequences(make_request(f"r{row}", tokens, cache_salt=salt), 0)[0]
    seq.row = row
    return seq


def admit(cache: CacheManager, seq: Sequence, count: int | None = None) -> list[int]:
    """As the scheduler does: match, admit, compute; the blocks that were found."""
    shared = cache.match_prefix(seq)
    found = len(shared) * cache.block_size
    rest = seq.num_tokens - found if count is None else count
    assert cache.admit(seq, shared, num_computed=found, count=rest, reserve=0)
    seq.num_computed += rest
    return shared


def test_blocks_for() -> None:
    assert [manager().blocks_for(n) for n in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_a_table_grows_by_what_is_needed_and_says_so() -> None:
    cache = manager()
    seq = sequence([1] * 6)
    admit(cache, seq)
    assert len(seq.blocks) == 2
    cache.take_changes()
    assert cache.grow(seq, 3)
    assert cache.take_changes() == ([BlockUpdate(0, 2, [seq.blocks[2]])], [])
    cache.check([seq])
    assert cache.usage == 3 / 8


def test_no_room_changes_nothing() -> None:
    cache = manager(2)
    seq = sequence([1] * 4)
    admit(cache, seq)
    before = list(seq.blocks)
    assert not cache.grow(seq, 5)
    assert seq.blocks == before
    assert cache.pool.num_free == 1
    assert not cache.admit(other := sequence([2] * 5, row=1), [], num_computed=0, count=5, reserve=0)
    assert other.blocks == []
    cache.check([seq])


def test_the_reserve_is_kept_free_at_admission() -> None:
    cache = manager(4)
    seq = sequence([1] * 12)
    assert not cache.admit(seq, [], num_computed=0, count=12, reserve=2)
    assert cache.admit(seq, [], num_computed=0, count=12, reserve=1)


def test_a_prefix_is_found_only_once_confirmed() -> None:
    cache = manager()
    first, second = sequence([1] * 9), sequence([1] * 9, row=1)
    admit(cache, first)
    assert cache.match_prefix(second) == []
    cache.confirm(first, 4)
    assert cache.match_prefix(second) == first.blocks[:1]
    cache.confirm(first, 9)
    assert cache.match_prefix(second) == first.blocks[:2]


def test_a_hit_leaves_one_token_to_run() -> None:
    cache = manager()
    first = sequence([1] * 8)
    admit(cache, first)
    cache.confirm(first, 8)
    assert len(cache.match_prefix(sequence([1] * 8, row=1))) == 1
    assert len(cache.match_prefix(sequence([1] * 9, row=1))) == 2
    assert cache.match_prefix(sequence([1] * 4, row=1)) == []


def test_prefixes_differ_by_salt_and_by_any_token_before() -> None:
    cache = manager()
    first = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9], salt="a")
    admit(cache, first)
    cache.confirm(first, 8)
    assert len(cache.match_prefix(sequence([1, 2, 3, 4, 5, 6, 7, 8, 0], salt="a"))) == 2
    assert len(cache.match_prefix(sequence([1, 2, 3, 4, 5, 6, 7, 0, 0], salt="a"))) == 1
    assert cache.match_prefix(sequence([0, 2, 3, 4, 5, 6, 7, 8, 9], salt="a")) == []
    assert cache.match_prefix(sequence([1, 2, 3, 4, 5, 6, 7, 8, 9], salt="b")) == []


def test_shared_blocks_outlive_each_holder() -> None:
    cache = manager()
    first, second = sequence([1] * 9), sequence([1] * 9, row=1)
    admit(cache, first)
    cache.confirm(first, 9)
    shared = admit(cache, second)
    assert [cache.pool.refs[block] for block in shared] == [2, 2]
    cache.free(first)
    cache.check([second])
    assert [cache.pool.refs[block] for block in shared] == [1, 1]
    cache.free(second)
    cache.check([])
    assert cache.pool.num_free == 8
    assert len(cache.match_prefix(sequence([1] * 9))) == 2


def test_the_end_of_a_prefix_is_evicted_first() -> None:
    cache = manager(4)
    first = sequence([1] * 13)
    admit(cache, first)
    cache.confirm(first, 13)
    cache.free(first)
    again = sequence([1] * 13)
    cache._allocate()  # the partial block, of no use to anyone
    assert len(cache.match_prefix(again)) == 3
    for kept in (2, 1, 0):
        cache._allocate()
        assert len(cache.match_prefix(again)) == kept
    assert len(cache.prefix) == 0


def test_the_least_recently_freed_prefix_is_evicted_first() -> None:
    cache = manager(4)
    old, new = sequence([1] * 5), sequence([2] * 5, row=1)
    for seq in (old, new):
        admit(cache, seq)
        cache.confirm(seq, 5)
    cache.free(old)
    cache.free(new)
    for _ in range(3):
        cache._allocate()
    assert cache.match_prefix(sequence([1] * 5)) == []
    assert len(cache.match_prefix(sequence([2] * 5))) == 1


def test_a_revived_prefix_counts_as_room_that_is_taken() -> None:
    cache = manager(3)
    first = sequence([1] * 9)
    admit(cache, first)
    cache.confirm(first, 9)
    cache.free(first)
    other = sequence([2] * 4, row=1)
    admit(cache, other)
    again = sequence([1] * 9, row=2)
    shared = cache.match_prefix(again)
    assert len(shared) == 2
    assert not cache.admit(again, shared, num_computed=8, count=1, reserve=0)
    cache.check([other])


def test_blocks_of_a_failed_sequence_are_unlisted_and_reused_first() -> None:
    cache = manager()
    seq = sequence([1] * 9)
    admit(cache, seq)
    cache.confirm(seq, 4)
    blocks = list(seq.blocks)
    cache.free(seq, failed=True)
    assert len(cache.prefix) == 0
    assert {cache._allocate() for _ in blocks} == set(blocks)


def test_a_fork_copies_the_partial_block_and_shares_the_rest() -> None:
    cache = manager()
    parent = sequence([1] * 7)
    admit(cache, parent)
    cache.take_changes()
    children = [sequence([1] * 7, row=row) for row in (1, 2)]
    for child in children:
        assert cache.admit(child, parent.blocks[:2], num_computed=6, count=1, reserve=0)
    tails = [child.blocks[1] for child in children]
    assert len({parent.blocks[1], *tails}) == 3
    assert cache.pool.refs[parent.blocks[0]] == 3
    _, copies = cache.take_changes()
    assert copies == [(parent.blocks[1], tails[0]), (parent.blocks[1], tails[1])]
    cache.check([parent, *children])


def test_a_fork_at_a_block_border_copies_nothing() -> None:
    cache = manager()
    parent = sequence([1] * 9)
    admit(cache, parent)
    cache.take_changes()
    child = sequence([1] * 9, row=1)
    assert cache.admit(child, parent.blocks[:2], num_computed=8, count=1, reserve=0)
    assert cache.take_changes() == ([], [])
    assert child.blocks[2] != parent.blocks[2]


def test_no_room_for_the_copy_refuses_the_fork() -> None:
    cache = manager(2)
    parent = sequence([1] * 7)
    admit(cache, parent)
    child = sequence([1] * 7, row=1)
    assert not cache.admit(child, parent.blocks[:2], num_computed=6, count=1, reserve=0)
    cache.check([parent])


def test_without_caching_nothing_is_listed() -> None:
    cache = manager(caching=False)
    seq = sequence([1] * 9)
    admit(cache, seq)
    cache.confirm(seq, 9)
    assert seq.num_confirmed == 9
    cache.free(seq)
    assert cache.match_prefix(sequence([1] * 9)) == []


def test_reset_leaves_running_sequences_alone() -> None:
    cache = manager()
    seq = sequence([1] * 9)
    admit(cache, seq)
    cache.confirm(seq, 9)
    cache.reset_prefix_cache()
    assert cache.match_prefix(sequence([1] * 9)) == []
    cache.check([seq])
    cache.free(seq)
    cache.check([])


@pytest.mark.parametrize("damage", ["leak", "double", "free"])
def test_check_sees_wrong_accounts(damage: str) -> None:
    cache = manager()
    seq = sequence([1] * 9)
    admit(cache, seq)
    cache.check([seq])
    if damage == "leak":
        seq.blocks.pop()
    elif damage == "double":
        seq.blocks.append(seq.blocks[0])
    else:
        cache.pool._free[seq.blocks[0]] = None
    with pytest.raises(ValueError, match="block"):
        cache.check([seq])

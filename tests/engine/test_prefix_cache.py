"""PrefixCache and BlockHasher: which block holds which prefix."""

from __future__ import annotations

import pytest

from octavo.engine.cache.block import HASH_BYTES, BlockHasher
from octavo.engine.cache.prefix import PrefixCache


def test_find_and_forget() -> None:
    cache = PrefixCache()
    cache.register(b"a", 3)
    assert cache.find(b"a") == 3
    assert 3 in cache
    cache.forget(3)
    cache.forget(3)
    assert cache.find(b"a") is None
    assert 3 not in cache
    assert len(cache) == 0


def test_the_first_of_two_equal_blocks_stays() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.register(b"a", 2)
    cache.register(b"b", 1)
    assert cache.find(b"a") == 1
    assert cache.find(b"b") is None
    assert 2 not in cache
    cache.check()


def test_clear() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.clear()
    assert len(cache) == 0
    assert cache.find(b"a") is None
    cache.check()


def test_check_sees_a_table_that_disagrees() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache._block_of[b"b"] = 1
    with pytest.raises(ValueError, match="disagree"):
        cache.check()


def test_a_hash_depends_on_salt_tokens_order_and_all_before() -> None:
    hasher = BlockHasher()
    roots = [hasher.root(""), hasher.root("a"), hasher.root("b")]
    names = {hasher.extend(root, tokens) for root in roots for tokens in ([1, 2], [2, 1], [1, 3])}
    names |= {hasher.extend(name, [1, 2]) for name in names}
    assert len(names) == 18
    assert {len(name) for name in names} == {HASH_BYTES}
    assert hasher.extend(roots[0], [1, 2]) == hasher.extend(hasher.root(""), (1, 2))


def test_hashes_of_two_engines_differ() -> None:
    assert BlockHasher().root("") != BlockHasher().root("")


def test_any_string_is_a_salt() -> None:
    hasher = BlockHasher()
    assert len({hasher.root(salt) for salt in ("", "\ud800", "\udfff", "\0", "ä", "x" * 10_000)}) == 6

"""CacheManager: the scheduler's only door to blocks. Sequences in, block lists and copies out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from octavo.base.types.plan import BlockUpdate
from octavo.engine.cache.block import BlockHasher
from octavo.engine.cache.pool import BlockPool
from octavo.engine.cache.prefix import PrefixCache
from octavo.engine.sequence import Sequence


class CacheManager:
    """Owns the pool and the prefix cache.

    A sequence writes from num_computed on, in blocks that are its alone: what is shared is full before that.
    """

    def __init__(self, *, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        self.prefix = PrefixCache()
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._hasher = BlockHasher()
        self._updates: list[BlockUpdate] = []
        self._copies: list[tuple[int, int]] = []

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    @property
    def usage(self) -> float:
        """Share of blocks held by sequences, 0..1."""
        return 1.0 - self.pool.num_free / self.pool.num_blocks

    def match_prefix(self, seq: Sequence) -> list[int]:
        """Cached blocks of the sequence's longest known prefix; at least one token is left to run."""
        if not self.enable_prefix_caching or seq.wants_prompt_logprobs:
            return []
        found: list[int] = []
        for i in range((seq.num_tokens - 1) // self.block_size):
            block = self.prefix.find(self._hash(seq, i))
            if block is None:
                break
            found.append(block)
        return found

    def admit(
        self, seq: Sequence, found: list[int], *, num_computed: int, count: int, reserve: int, behind: int = 0
    ) -> bool:
        """Give a waiting sequence `found` blocks and new ones up to num_computed + count tokens; False: no room.

        found: blocks that hold its first num_computed tokens. The last one is copied where they do not fill it: its
        holder (n > 1) goes on writing there.
        There must be room for all its tokens, the `behind` blocks of those that it can preempt counted: a prompt of
        which only the first chunk fits would run that again and again, preempted by its own second, and hold up each
        step of those beside it.
        """
        now, later = self.blocks_for(num_computed + count), self.blocks_for(seq.num_tokens)
        shared = found[: num_computed // self.block_size]
        revived = sum(self.pool.refs[block] == 0 for block in shared)
        room = self.pool.num_free - (revived + reserve) + len(shared)
        if room < now or room + behind < later:
            return False
        for block in shared:
            self.pool.share(block)
        seq.blocks = shared + [self._allocate() for _ in range(now - len(shared))]
        self._copies += [(block, seq.blocks[len(shared)]) for block in found[len(shared) :]]
        seq.num_computed = seq.num_confirmed = num_computed
        seq.num_registered = len(shared)
        return True

    def grow(self, seq: Sequence, count: int) -> bool:
        """New blocks at the end of a running sequence's, for its next `count` tokens. False: no room."""
        num_new = self.blocks_for(seq.num_computed + count) - len(seq.blocks)
        if num_new > self.pool.num_free:
            return False
        new = [self._allocate() for _ in range(num_new)]
        self._updates.append(BlockUpdate(seq.row, len(seq.blocks), new))
        seq.blocks += new
        return True

    def confirm(self, seq: Sequence, num_confirmed: int) -> None:
        """Steps up to here came back clean: the full blocks may be found by others from now on."""
        seq.num_confirmed = num_confirmed
        full = num_confirmed // self.block_size
        if full <= seq.num_registered or not self.enable_prefix_caching:
            return
        for i in range(seq.num_registered, full):
            self.prefix.register(self._hash(seq, i), seq.blocks[i])
        seq.num_registered = full

    def free(self, seq: Sequence, *, failed: bool = False) -> None:
        """Let go of all blocks, the last first, so that beginnings stay cached longest; a failed one's are unlisted."""
        for block in reversed(seq.blocks):
            if failed:
                self.prefix.forget(block)
            self.pool.release(block, keep=block in self.prefix)
        seq.blocks = []

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix; running sequences keep their blocks."""
        self.prefix.clear()

    def take_changes(self) -> tuple[list[BlockUpdate], list[tuple[int, int]]]:
        """What the backend must be told since the last call: blocks appended, and (source, destination) copies."""
        updates, copies = self._updates, self._copies
        self._updates, self._copies = [], []
        return updates, copies

    def check(self, sequences: Iterable[Sequence]) -> None:
        """ValueError unless every block is free or held exactly as often as `sequences` hold it."""
        held = Counter(block for seq in sequences for block in seq.blocks)
        for block, refs in enumerate(self.pool.refs):
            if refs != held[block]:
                raise ValueError(f"block {block}: {refs} references, {held[block]} holders")
            if (refs == 0) != self.pool.is_free(block):
                raise ValueError(f"block {block}: {refs} references, free list says {self.pool.is_free(block)}")
        if self.pool.num_free + len(held) != self.pool.num_blocks:
            raise ValueError(f"{self.pool.num_free} free + {len(held)} held is not {self.pool.num_blocks} blocks")
        self.prefix.check()

    def _allocate(self) -> int:
        block = self.pool.allocate()
        self.prefix.forget(block)
        return block

    def _hash(self, seq: Sequence, i: int) -> bytes:
        hashes = seq.block_hashes
        while len(hashes) <= i:
            previous = hashes[-1] if hashes else self._hasher.root(seq.request.cache_salt)
            start = len(hashes) * self.block_size
            hashes.append(self._hasher.extend(previous, seq.tokens[start : start + self.block_size]))
        return hashes[i]

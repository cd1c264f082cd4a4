"""BlockPool: which blocks are free, and how many sequences hold each of the others."""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Reference counts and a free list in the order of reuse.

    free:  [ never useful again | ... | released longest ago ... released last ]   taken from the left
    A free block may still hold a cached prefix; the PrefixCache knows, this class does not.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.refs = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self) -> int:
        """A free block, now held once. IndexError if there is none: callers ask num_free first."""
        if not self._free:
            raise IndexError("no free block")
        block, _ = self._free.popitem(last=False)
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder, of a held or a free block."""
        if self.refs[block] == 0:
            del self._free[block]
        self.refs[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """One holder less. The last one frees it: with `keep` for reuse as late as possible, else next."""
        if self.refs[block] <= 0:
            raise ValueError(f"block {block} is released but nobody holds it")
        self.refs[block] -= 1
        if self.refs[block] == 0:
            self._free[block] = None
            if not keep:
                self._free.move_to_end(block, last=False)

    def is_free(self, block: int) -> bool:
        """True if it stands in the free list."""
        return block in self._free

"""PrefixCache: hash of a full block -> the block that holds its KV."""

from __future__ import annotations


class PrefixCache:
    """A two-way table. A block is listed from the step that filled it cleanly until the pool hands it out anew."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def find(self, name: bytes) -> int | None:
        """The block with this hash."""
        return self._block_of.get(name)

    def register(self, name: bytes, block: int) -> None:
        """List a block; the first of two equal ones stays."""
        if name not in self._block_of and block not in self._hash_of:
            self._block_of[name] = block
            self._hash_of[block] = name

    def forget(self, block: int) -> None:
        """Unlist a block, if it is listed."""
        name = self._hash_of.pop(block, None)
        if name is not None:
            del self._block_of[name]

    def clear(self) -> None:
        """Unlist all."""
        self._block_of.clear()
        self._hash_of.clear()

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    def __len__(self) -> int:
        return len(self._hash_of)

    def check(self) -> None:
        """ValueError unless both directions agree."""
        if {block: name for name, block in self._block_of.items()} != self._hash_of:
            raise ValueError("prefix cache: hashes and blocks disagree")

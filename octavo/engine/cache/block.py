"""Block hashes: a block's name is a keyed hash of its tokens and of all before it: equal names, equal prefixes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence as Tokens
from hashlib import blake2b

HASH_BYTES = 32


class BlockHasher:
    """Chained BLAKE2b under a key drawn per engine: a client can neither predict nor collide names.

    hash(block i) = BLAKE2b(key, hash(block i - 1) | tokens of block i);  the hash before block 0 is that of the salt.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def root(self, salt: str) -> bytes:
        """What stands before the first block of every sequence of this salt."""
        data = salt.encode(errors="surrogatepass")  # any str at all is a salt
        return blake2b(data, key=self._key, digest_size=HASH_BYTES).digest()

    def extend(self, previous: bytes, tokens: Tokens[int]) -> bytes:
        """The hash of a full block that follows `previous`."""
        return blake2b(previous + array("q", tokens).tobytes(), key=self._key, digest_size=HASH_BYTES).digest()

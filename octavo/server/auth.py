"""Request headers in; nothing, or a 401, out. Every path needs a key unless it is listed here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from octavo.server.errors import HttpError

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz", "/ping", "/version"})
"""What answers without a key: whether the server is there, and which version. A new route is closed until listed."""


class Keys:
    """The accepted API keys, kept as digests. No keys: everything is open. also_open: paths beside OPEN_PATHS."""

    def __init__(self, keys: Iterable[str], *, also_open: Iterable[str] = ()) -> None:
        self._digests = [_digest(key.encode()) for key in keys if key]
        self._open = OPEN_PATHS.union(also_open)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, path: str, authorizations: Sequence[bytes]) -> None:
        """Raise a 401 unless `path` is open or exactly one Authorization header carries an accepted key.

        path: what the router matches on, so that no two readings of a URL can differ.
        """
        if not self._digests or path in self._open:
            return
        if len(authorizations) == 1:
            scheme, _, key = authorizations[0].partition(b" ")
            if scheme.lower() == b"bearer" and self._accepts(_digest(key.strip())):
                return
        raise HttpError(
            401,
            "a valid API key is needed: send the header 'Authorization: Bearer KEY'",
            kind="AuthenticationError",
        )

    def _accepts(self, digest: bytes) -> bool:
        # all are compared, so that the time taken tells nothing
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

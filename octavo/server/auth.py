"""Request headers in; nothing, or a 401, out. Every path needs a key unless it is listed here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from octavo.server.errors import HttpError

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz", "/ping", "/version", "/openapi.json", "/docs"})
"""What answers without a key: whether the server is there, which version, and what any server of it takes. A new route
is closed until listed."""


class Keys:
    """The accepted API keys, kept as digests. No keys: everything is open. also_open: paths beside OPEN_PATHS.

    A header's value has no space around it, so a key has none either: files that keys are read from end with a newline.
    """

    def __init__(self, keys: Iterable[str], *, also_open: Iterable[str] = ()) -> None:
        self._digests = [_digest(key.strip().encode()) for key in keys if key]
        self._open = OPEN_PATHS.union(also_open)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, path: str, authorizations: Sequence[bytes], api_keys: Sequence[bytes] = ()) -> bytes:
        """Raise a 401 unless `path` is open or a known key comes with it; the key's digest, empty where none is due.

        path: what the router matches on, so that no two readings of a URL can differ.  authorizations, api_keys: the
        values of Authorization (Bearer) and of X-Api-Key (Anthropic's clients); two of one name are none.
        """
        if not self._digests or path in self._open:
            return b""
        for key in _keys(authorizations, api_keys):
            digest = _digest(key)
            if key and self._accepts(digest):
                return digest
        raise HttpError(
            401,
            "a valid API key is needed: send the header 'Authorization: Bearer KEY'",
            kind="AuthenticationError",
        )

    def _accepts(self, digest: bytes) -> bool:
        # all are compared, so that the time taken tells nothing
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _keys(authorizations: Sequence[bytes], api_keys: Sequence[bytes]) -> list[bytes]:
    keys = [api_keys[0].strip()] if len(api_keys) == 1 else []
    if len(authorizations) == 1:
        scheme, _, key = authorizations[0].partition(b" ")
        if scheme.lower() == b"bearer":
            keys.append(key.strip())
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

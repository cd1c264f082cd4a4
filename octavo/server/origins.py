"""Host and Origin headers in; a 403, or the CORS headers of the answer, out.

A page on another site can make a browser talk to 127.0.0.1, under a name of its own (DNS rebinding) or directly. So
a server bound to loopback answers only to loopback names, and only to pages from there or from allowed_origins. Pages
from there may read what it answers: who serves them could ask for it, too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from octavo.base.errors import ConfigError
from octavo.server.errors import HttpError

Headers = list[tuple[bytes, bytes]]

_HEADERS = (
    b"authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta, idempotency-key, "
    b"anthropic-dangerous-direct-browser-access, openai-organization, openai-project, "
    # what openai's and Anthropic's own clients tell of themselves
    b"x-stainless-arch, x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, "
    b"x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout, "
    # Firefox and Safari ask for a client's own user-agent; * is all others, but authorization
    b"user-agent, *"
)


def is_loopback(host: str) -> bool:
    """True for localhost, names under .localhost, 127.0.0.0/8 and ::1; brackets and a final dot are allowed."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Origins:
    """Who may call, as far as a browser's own headers can tell."""

    def __init__(self, bound_host: str, allowed: Sequence[str]) -> None:
        self._local = is_loopback(bound_host)
        self._allowed = {_origin(text) for text in allowed}

    def check(self, hosts: Sequence[bytes], origin: bytes | None) -> None:
        """Raise a 403 for a Host or an Origin that a loopback server should not see."""
        if len(hosts) > 1:
            raise HttpError(400, "more than one Host header", kind="BadRequestError")
        if not self._local:
            return
        # no Host at all is HTTP/1.0: no browser sends that
        if hosts and hosts[0] and not _names_loopback(hosts[0]):
            raise _foreign(
                "Host", hosts[0], "call it as 127.0.0.1 or localhost, or start with --host to serve other names"
            )
        if origin is not None and not self._accepts(origin):
            raise _foreign("Origin", origin, "start with --allowed-origins to let that page in")

    def headers(self, origin: bytes | None) -> Headers:
        """CORS headers for every answer to an allowed origin."""
        if origin is None or not self._accepts(origin):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, request-id, retry-after, x-should-retry"),
            (b"vary", b"origin"),
        ]

    def preflight(self, method: str, origin: bytes | None, asked: bytes | None) -> Headers | None:
        """Headers that answer a browser's preflight; None where this is none."""
        if method != "OPTIONS" or asked is None or origin is None or not self._accepts(origin):
            return None
        return [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", b"600"),
        ]

    def _accepts(self, origin: bytes) -> bool:
        if self._local and _names_loopback(origin):
            return True
        return "*" in self._allowed or origin.decode("latin-1").lower() in self._allowed


def _origin(text: str) -> str:
    """As browsers send it; ConfigError for what none would ever match. file:// is what desktop applications send."""
    origin = "file://" if text.lower() in ("file://", "file:///") else text.rstrip("/").lower()
    if origin not in ("*", "null", "file://") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#,]+", origin):
        raise ConfigError(
            f"allowed_origins: {text!r:.200} is no origin; give scheme://host[:port], or * for all, "
            "one after the other with spaces between",
            param="allowed_origins",
        )
    return origin


def _names_loopback(header: bytes) -> bool:
    return _known(header) if len(header) <= 64 else is_loopback(_hostname(header))


@lru_cache(maxsize=64)
def _known(header: bytes) -> bool:
    return is_loopback(_hostname(header))


def _hostname(header: bytes) -> str:
    """`name` of name:port, [::1]:port or scheme://name:port; "" where there is none."""
    text = header.decode("latin-1")
    try:
        return urlsplit(text if "//" in text else "//" + text).hostname or ""
    except ValueError:
        return ""


def _foreign(header: str, value: bytes, remedy: str) -> HttpError:
    shown = repr(value[:100].decode("latin-1"))
    return HttpError(
        403, f"this server listens on loopback and refuses the {header} {shown}; {remedy}", kind="PermissionDeniedError"
    )

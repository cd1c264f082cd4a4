"""Where a call's text ends, found while it comes in pieces: in one pass, each character looked at once.

A scanner's `feed(text, at)` takes text[at:] up to the returned position and says True (the call's text ends there),
False (it is no call: what stands there cannot go on so) or None (more must come).
"""

from __future__ import annotations

import re
import sys
from typing import Protocol

from octavo.text.tools.markers import Markers

MAX_DEPTH = 64
MAX_HEAD = 512  # characters before a call's arguments, or in a message's head

_CLOSING = {"{": "}", "[": "]", "(": ")"}
_INSIDE = {quote: re.compile(rf"[^\\{quote}]*") for quote in "\"'"}
SPACE = re.compile(r"\s*")
ANY_HEAD = re.compile(r"[^{]*")
JSON_PLAIN = re.compile(r"[\s:,0-9+\-.eEtrufalsn]*")
PYTHON_PLAIN = re.compile(r"[\s:,=0-9+\-.\w]*")


Pattern = re.Pattern[str]


class Scanner(Protocol):
    """See the module."""

    def feed(self, text: str, at: int) -> tuple[int, bool | None]: ...

    def finish(self) -> bool:
        """True if the text may end here though nothing said so."""
        ...


class Brackets:
    """Up to the bracket that closes the first one.

    opens: what the first bracket may be.  head: what may stand before it, at most MAX_HEAD characters.
    plain: what may stand outside of strings and brackets.
    """

    def __init__(
        self,
        opens: str = "{",
        *,
        head: Pattern = SPACE,
        plain: Pattern = JSON_PLAIN,
        quotes: str = '"',
        inner: str = "{[",
    ) -> None:
        self._opens, self._head = opens, head
        self._quotes, self._inner, self._plain = quotes, inner, plain
        self._room = MAX_HEAD
        self._expected: list[str] = []
        self._quote = ""
        self._escaped = False

    def feed(self, text: str, at: int) -> tuple[int, bool | None]:
        """See the module."""
        while at < len(text):
            if self._quote:
                at = self._string(text, at)
                continue
            if self._expected:
                at = end_of(self._plain, text, at)
            else:
                start, most = at, at + self._room
                at = end_of(self._head, text, at, most)
                self._room -= at - start
                if not self._room and at < len(text) and text[at] not in self._opens:
                    return at, False
            if at == len(text):
                break
            done = self._structure(text[at])
            if done is False:
                return at, False
            at += 1
            if done:
                return at, True
        return at, None

    def take_head(self, opens: str, *, head: Pattern) -> None:
        """What shall come first, where that was not known from the beginning."""
        self._opens, self._head = opens, head

    def finish(self) -> bool:
        """A call without its end is none."""
        return False

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        at = end_of(_INSIDE[self._quote], text, at)
        if at < len(text):
            self._escaped = text[at] == "\\"
            self._quote = self._quote if self._escaped else ""
            at += 1
        return at

    def _structure(self, char: str) -> bool | None:
        expected = self._expected
        if not expected or char in self._inner:
            if char not in (self._inner if expected else self._opens) or len(expected) == MAX_DEPTH:
                return False
            expected.append(_CLOSING[char])
            return None
        if char in self._quotes:
            self._quote = char
            return None
        if char != expected[-1]:
            return False
        expected.pop()
        return True if not expected else None


class Until:
    """Up to and with `end`, or the text's end. lead: what must stand first, behind white space."""

    def __init__(self, end: Markers, *, lead: str = "", limit: int | None = None) -> None:
        self._end = end
        self._lead, self._lead_seen = lead, 0
        self._room = limit
        self._tail = ""
        self._longest = len(end.all[0])

    def feed(self, text: str, at: int) -> tuple[int, bool | None]:
        """See the module."""
        if not self._lead_seen and self._lead:
            at = end_of(SPACE, text, at)
        while self._lead_seen < len(self._lead):
            if at == len(text):
                return at, None
            if text[at] != self._lead[self._lead_seen]:
                return at, False
            self._lead_seen += 1
            at += 1
        most = len(text) if self._room is None else min(len(text), at + self._room)
        stop = self._search(text, at, most)
        done = True if stop is not None else None
        stop = most if stop is None else stop
        if self._room is not None:
            self._room -= stop - at
            if done is None and not self._room:
                return stop, False
        return stop, done

    def _search(self, text: str, at: int, most: int) -> int | None:
        """Where the end is over, in text[:most]; it may have begun in the text before."""
        length = len(self._tail)
        joined = self._tail + text[at : min(most, at + self._longest)]
        if length and (found := self._end.search(joined, 0)) is not None:
            return at + found.end() - length
        if (found := self._end.search(text, at, most)) is not None:
            return found.end()
        seen = text[max(at, most - self._longest) : most]
        seen = seen if len(seen) == self._longest else self._tail + seen
        self._tail = seen[len(seen) - self._end.held(seen, 0) :]
        return None

    def finish(self) -> bool:
        """What there is may be whole."""
        return self._lead_seen == len(self._lead)


def end_of(pattern: Pattern, text: str, at: int, most: int = sys.maxsize) -> int:
    """Where what the pattern takes at text[at:most] ends; `at` where it takes nothing."""
    found = pattern.match(text, at, most)
    return at if found is None else found.end()

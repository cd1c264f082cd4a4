"""Fixed strings sought in text that comes in pieces: what was found does not depend on where the pieces were cut."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable


class Markers:
    """A set of markers. Of those that begin at one place the longest counts; ValueError for one inside another."""

    def __init__(self, markers: Iterable[str]) -> None:
        self.all = tuple(sorted({marker for marker in markers if marker}, key=len, reverse=True))
        for marker in self.all:
            inner = next((other for other in self.all if marker.find(other, 1) > 0), None)
            if inner is not None:
                raise ValueError(f"the marker {inner!r} stands inside {marker!r}")
        self._pattern = re.compile("|".join(map(re.escape, self.all)) or r"(?!)")
        self._begun = {marker[:length] for marker in self.all for length in range(1, len(marker))}
        self._chars = frozenset("".join(self._begun))
        self._longest = max(map(len, self._begun), default=0)

    def search(self, text: str, at: int, most: int = sys.maxsize) -> re.Match[str] | None:
        """The first marker in text[at:most], unless one that text to come may make longer."""
        return self._settled(self._pattern.search(text, at, most), text)

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """The marker at `at`, unless one that text to come may make longer."""
        return self._settled(self._pattern.match(text, at), text)

    def begun(self, text: str, at: int) -> bool:
        """True if all of text[at:] is the beginning of a marker."""
        return len(text) - at <= self._longest and text[at:] in self._begun

    def held(self, text: str, at: int) -> int:
        """How many of the last characters of text[at:] may still become a marker."""
        if text[-1:] not in self._chars:
            return 0
        end = len(text)
        longest = min(self._longest, end - at)
        return next((length for length in range(longest, 0, -1) if text[end - length :] in self._begun), 0)

    def _settled(self, found: re.Match[str] | None, text: str) -> re.Match[str] | None:
        if found is not None and found.end() == len(text) and found[0] in self._begun:
            return None
        return found

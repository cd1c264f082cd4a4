"""A name that is not known in; the one that it is likely meant for out: of temp, topP, rep_penalty, max_new_tokens."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection

_ENOUGH = 0.55  # 0.5 is one word of two, as of use_cache and cache_salt
_ALIKE = 0.75  # letters of two words
_ABBREVIATED, _LENGTHENED = 0.9, 0.8
_SHORTEST = 3  # letters of an abbreviation
_SURE = 0.75  # of names that are refused


def nearest(name: str, known: Collection[str], *, refused: Collection[str] = ()) -> str | None:
    """The known name that shares the most words with `name`, abbreviated or misspelled ones too; None if none does.

    refused: those of the known that are worth naming where `name` is hardly anything else.
    """
    words = _words(name)
    best, found = (0.0, 0.0), None
    for one in known:
        others = _words(one)
        share = 1.0 if "".join(words) == "".join(others) else _share(words, others)
        if share < (_SURE if one in refused else _ENOUGH) or share < best[0]:
            continue
        score = (share, difflib.SequenceMatcher(None, one, name).ratio())
        if score > best:
            best, found = score, one
    return found


@functools.lru_cache(1024)
def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)]


def _share(words: list[str], others: list[str]) -> float:
    """Of all words of two names, those that they share: 0 to 1."""
    shared = sum(max((_likeness(word, other) for other in others), default=0.0) for word in words if len(word) > 1)
    return 2 * shared / (len(words) + len(others)) if others else 0.0


def _likeness(word: str, other: str) -> float:
    if word == other:
        return 1.0
    if len(word) >= _SHORTEST and other.startswith(word):
        return _ABBREVIATED
    if len(other) > _SHORTEST and word.startswith(other):
        return _LENGTHENED
    if 2 * min(len(word), len(other)) < _ALIKE * (len(word) + len(other)):
        return 0.0
    letters = difflib.SequenceMatcher(None, other, word)
    ratio = letters.ratio() if letters.quick_ratio() >= _ALIKE else 0.0
    return ratio if ratio >= _ALIKE else 0.0

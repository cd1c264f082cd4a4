"""Caller's strings in, strings that cannot become control tokens while a template is rendered out, and back.

A control token's spelling inside a message is replaced by one private-use character before rendering. What the template
then spells is meant; what the characters stand for is plain text (Tokenizer.encode_parts). Where nothing is spelled
nothing is replaced, and the ids are those of the rendered text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from octavo.base.errors import InputError
from octavo.text.tokenizer import Tokenizer

# Unicode's planes 15 and 16: without meaning, without case, never space, not escaped by anything that templates do.
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
_CANDIDATES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of JSON-like data with every string, keys too, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_strings(item, change) for item in value]
    return value


class Placeholders:
    """Private-use characters that occur neither in the data nor in the template's source. Few prompts need one."""

    def __init__(self, data: Any, source: str) -> None:
        self._data, self._source = data, source
        self._free: Iterator[str] | None = None

    def next(self) -> str:
        """One more, not given out before."""
        if self._free is None:
            self._free = self._find_free()
        char = next(self._free, None)
        if char is None:
            raise InputError("messages use up Unicode's private-use characters; remove some", param="messages")
        return char

    def _find_free(self) -> Iterator[str]:
        taken = set(_PRIVATE.findall(self._source))

        def look(text: str) -> str:
            taken.update(_PRIVATE.findall(text))
            return text

        map_strings(self._data, look)
        return (char for char in map(chr, chain(*_CANDIDATES)) if char not in taken)


class Seal:
    """One conversation's replacements."""

    def __init__(self, tokenizer: Tokenizer, placeholders: Placeholders) -> None:
        self._tokenizer = tokenizer
        self._placeholders = placeholders
        self._char_of: dict[str, str] = {}

    def close(self, text: str) -> str:
        """The text with placeholders for control tokens it spells, whole or at its end begun.

        A begun one could be completed by what the template puts behind it: its last character is replaced.
        """
        if (spellings := self._tokenizer.control_spellings) is not None:
            text = spellings.sub(lambda found: self._char(found[0]), text)
        parts, position = [], 0
        for span in self._tokenizer.find_control(text):
            parts += [text[position : span.start], self._char(text[span.start : span.stop])]
            position = span.stop
        rest = text[position:]
        if self._tokenizer.begins_control(rest):
            rest = rest[:-1] + self._char(rest[-1])
        return "".join([*parts, rest]) if parts else rest

    def encode(self, rendered: str) -> list[int]:
        """Token ids of a text rendered from what close() gave."""
        if not self._char_of:
            return self._tokenizer.encode(rendered, add_special_tokens=False)
        opened = {ord(char): text for text, char in self._char_of.items()}
        parts: list[str | int] = []
        position = 0
        for span in self._tokenizer.find_control(rendered):
            parts += [rendered[position : span.start].translate(opened), span.token_id]
            position = span.stop
        parts.append(rendered[position:].translate(opened))
        return self._tokenizer.encode_parts(parts)

    def _char(self, text: str) -> str:
        char = self._char_of.get(text)
        if char is None:
            char = self._char_of[text] = self._placeholders.next()
        return char

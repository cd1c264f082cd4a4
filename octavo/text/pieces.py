"""Token ids in, the bytes they stand for out, and text as soon as its characters are whole.

A text is the bytes of its tokens joined, so decoding token by token, in any grouping, gives what decoding all at once
gives. Broken UTF-8 becomes U+FFFD, one for each maximal broken part (Unicode's recommended practice). The rules are
read off the tokenizer's own decoder, which must be of the byte-level or the SentencePiece kind, or none.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from octavo.base.errors import UnsupportedError


class Pieces:
    """Bytes of each token, remembered. Safe to use from several threads."""

    def __init__(self, backend: Tokenizer) -> None:
        self._token = backend.id_to_token
        self._known: dict[int, bytes] = {}
        self.whole: dict[int, str] = {}  # of those seen, tokens whose characters are whole, as text
        steps = _steps(backend.decoder)
        kinds = {step["type"] for step in steps}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._inner = next((step["prefix"] for step in steps if step["type"] == "WordPiece"), None)
        self._cleaned = any(step.get("cleanup") for step in steps)
        self.joined_by_spaces = not steps or self._inner is not None
        self.leading_spaces = 1 if self.joined_by_spaces else 0
        self._replaced: list[tuple[str, str]] = []
        for step in steps:
            self._read(step)

    def _read(self, step: dict[str, Any]) -> None:
        kind = step["type"]
        if kind == "Replace" and "String" in step["pattern"]:
            self._replaced.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace":
            self._replaced.append((step["replacement"], " "))
            self.leading_spaces = 0 if step["prepend_scheme"] == "never" else 1
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0:
            self.leading_spaces = step["start"]
        elif kind not in ("ByteLevel", "ByteFallback", "Fuse", "WordPiece"):
            raise UnsupportedError(
                f"tokenizer.json has a decoder of type {kind}; supported are ByteLevel, WordPiece and SentencePiece's "
                "(Replace, ByteFallback, Fuse, Strip, Metaspace)",
                param="tokenizer",
            )

    def raw(self, token_id: int) -> bytes:
        """The token's bytes, special tokens spelled out; b"" for an id that is not in the vocabulary."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known_bytes(token_id)
        return known

    def _known_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < 2**32:
            return b""
        token = self._token(token_id)
        if token is None:
            return b""
        data = self._known[token_id] = self._bytes(token)
        with suppress(UnicodeDecodeError):
            self.whole[token_id] = data.decode("utf-8")
        return data

    def _bytes(self, token: str) -> bytes:
        if self._byte_level:
            table = _byte_of_char()
            try:
                return bytes(table[char] for char in token)
            except KeyError:  # an added token, stored as it is
                return token.encode("utf-8")
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for old, new in self._replaced:
            token = token.replace(old, new)
        if self._inner is not None and token.startswith(self._inner):
            return self._clean(token.removeprefix(self._inner)).encode("utf-8")
        return self._clean(" " + token if self.joined_by_spaces else token).encode("utf-8")

    def _clean(self, text: str) -> str:
        """No spaces before punctuation and contractions, where the decoder has it so."""
        if self._cleaned:
            for old, new in _CLEAN:
                text = text.replace(old, new)
        return text

    def join(self, token_ids: Iterable[int]) -> str:
        """The text of these tokens, from a text's beginning."""
        data = b"".join(map(self.raw, token_ids))
        for _ in range(self.leading_spaces):
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")


# What the library's WordPiece decoder replaces within each token and the space before it.
_CLEAN = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
    (" do not", " don't"),
)


_Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Text that grows token by token; what was fed and finished joins to Pieces.join of the same tokens.

    prompt_ids: tokens that the text goes on from. They are not shown, but a text that goes on keeps its leading space,
    and a character that the prompt left half is completed.
    """

    def __init__(
        self, pieces: Pieces, prompt_ids: Sequence[int] = (), *, skipped: frozenset[int] = frozenset()
    ) -> None:
        self._raw = pieces.raw
        self._whole = pieces.whole
        self._skipped = skipped
        self._decoder: Any = _Decoder("replace")
        tail = self._tail(prompt_ids)
        self._leading_spaces = 0 if tail else pieces.leading_spaces
        # Only up to three bytes of an unfinished character stay behind; UTF-8 synchronizes itself.
        self._decoder.decode(tail)

    def _tail(self, prompt_ids: Sequence[int]) -> bytes:
        tail = b""
        for token_id in reversed(prompt_ids):
            if token_id not in self._skipped:
                tail = self._raw(token_id) + tail
                if len(tail) >= 4:
                    break
        return tail

    def feed(self, token_id: int) -> str:
        """The characters that this token completes."""
        if token_id in self._skipped:
            return ""
        if not self._leading_spaces and not self._decoder.buffer and (whole := self._whole.get(token_id)) is not None:
            return whole
        data = self._raw(token_id)
        if self._leading_spaces and data:
            stripped = data.lstrip(b" ")
            count = min(len(data) - len(stripped), self._leading_spaces)
            self._leading_spaces = 0 if stripped else self._leading_spaces - count
            data = data[count:]
        text: str = self._decoder.decode(data)
        return text

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became whole."""
        text: str = self._decoder.decode(b"", final=True)
        return text


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """A decoder's description, flattened. The library gives it as JSON by __getstate__ alone."""
    if decoder is None:
        return []
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    return list(_flat(state))


def _flat(state: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if state["type"] == "Sequence":
        for step in state["decoders"]:
            yield from _flat(step)
    else:
        yield state


@cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes in order for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table

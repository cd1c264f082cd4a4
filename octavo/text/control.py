"""Which parts of a text are control tokens: found by the tokenizer's own rules, and kept apart from plain text.

The `tokenizers` library cuts control tokens out of any text it encodes. Here the same model gets a second face that
knows none of them but one marker, a string nobody can guess: plain text is encoded by it as it is spelled, and control
tokens that are meant as such stand in the text as markers. So everything is encoded in one piece, and cut, merged and
prefixed with spaces exactly as the library would.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import AddedToken, Encoding, Tokenizer, models

_ROUNDS = 8  # of encoding where a model's merges spell control tokens; the last one is of single characters


@dataclass(frozen=True)
class Span:
    """text[start:stop] would be encoded as the control token."""

    start: int
    stop: int
    token_id: int


class ControlTokens:
    """The control tokens of a backend tokenizer, which is not changed. Safe to use from several threads.

    spellings: of those that find() tells in some places only, which a text around this one may make of others; None
    where there are none.
    """

    def __init__(self, backend: Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.ids = {token.content: token_id for token_id, token in sorted(added.items()) if token.special}
        self._added = added
        self._begun = {content[:length] for content in self.ids for length in range(1, len(content))}
        self._longest = max(map(len, self._begun), default=0)
        self._first = tuple({content[0] for content in self.ids if content})
        # No vocabulary at all: what it finds in a text are the added tokens and nothing else.
        self._finder = Tokenizer(models.BPE())
        if backend.normalizer is not None:
            self._finder.normalizer = backend.normalizer
        self._finder.add_tokens([token for _, token in sorted(added.items())])
        self._found = {self._finder.token_to_id(content): token_id for content, token_id in self.ids.items()}
        # Where normalized text has one depends on what stands before it.
        moved = [token.content for token in added.values() if token.special and token.normalized and backend.normalizer]
        spelled = "|".join(map(re.escape, sorted(moved, key=len, reverse=True)))
        self.spellings = re.compile(spelled) if spelled else None
        others = {token.content: token_id for token_id, token in sorted(added.items()) if not token.special}
        self._plain = self._face(backend, [added[token_id] for token_id in others.values()])
        # The library gives the second face's added tokens ids of its own, which tokens of a vocabulary with gaps may
        # have too: id there -> id here, and the model's own token of that id.
        own = {self._plain.token_to_id(content): token_id for content, token_id in others.items()}
        self._others = {plain: (token_id, backend.model.id_to_token(plain)) for plain, token_id in own.items()}
        # All but the one that the model itself gives, to text that it has no token for.
        self._forbidden = self.ids.keys() - {getattr(backend.model, "unk_token", None)}

    def _face(self, backend: Tokenizer, others: list[AddedToken]) -> Tokenizer:
        plain = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(plain, part, getattr(backend, part))
        plain.add_tokens(others)
        # A control token that the library looks for in normalized text has a marker that is looked for there.
        self._markers = {normalized: _unguessable() for normalized in (False, True)}
        plain.add_special_tokens(
            [AddedToken(marker, normalized=normalized, special=True) for normalized, marker in self._markers.items()]
        )
        # As they stand in an encoding: normalized, too.
        added = plain.get_added_tokens_decoder().items()
        self._marker_tokens = {plain.id_to_token(token_id) for token_id, token in added if token.special}
        self._characters = re.compile("|".join([*self._markers.values(), "."]), re.DOTALL)  # a marker stays whole
        return plain

    def find(self, text: str) -> list[Span]:
        """Where the tokenizer would see control tokens, in order."""
        if not any(char in text for char in self._first):
            return []
        found = self._finder.encode(text, add_special_tokens=False)
        # The library gives white space to a token that swallows it, and to one behind that is spelled with it.
        following = [*(start for start, _ in found.offsets), len(text)][1:]
        return [
            self._span(text, start, min(stop, end), self._found[token_id])
            for token_id, (start, stop), end in zip(found.ids, found.offsets, following, strict=True)
            if token_id in self._found
        ]

    def _span(self, text: str, start: int, stop: int, token_id: int) -> Span:
        """Without a space that only a normalizer makes a part of the token (SentencePiece's, before each word)."""
        token = self._added[token_id]
        at = text.find(token.content, start, stop) if token.normalized and not token.lstrip else -1
        return Span(max(start, at), stop, token_id)

    def begun(self, text: str) -> bool:
        """True if the text ends with the beginning of a control token."""
        end = text[-self._longest :] if self._longest else ""
        if not any(char in end for char in self._first):
            return False
        return any(end[-length:] in self._begun for length in range(1, len(end) + 1))

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        """Token ids of a text given as plain text (str) and control tokens (int), in order.

        Plain text never becomes a control token, whatever it spells.
        """
        meant = [part for part in parts if isinstance(part, int)]
        for normalized in (True, False):
            text = "".join(part if isinstance(part, str) else self._marker(part, normalized) for part in parts)
            encodings = self._encode(text)
            if sum(token in self._marker_tokens for encoding in encodings for token in encoding.tokens) == len(meant):
                break  # else normalized text has no such place, as inside of a word: it is made one
        controls = iter(meant)
        return [
            next(controls) if token in self._marker_tokens else self._true_id(token, token_id)
            for encoding in encodings
            for token, token_id in zip(encoding.tokens, encoding.ids, strict=True)
        ]

    def _marker(self, token_id: int, normalized: bool) -> str:
        added = self._added.get(token_id)
        return self._markers[normalized and added is not None and added.normalized]

    def _true_id(self, token: str, token_id: int) -> int:
        known, models_own = self._others.get(token_id, (token_id, None))
        return token_id if token == models_own else known

    def _encode(self, text: str) -> list[Encoding]:
        """The text in pieces: a model whose merges spell out a control token is kept from it by cutting inside."""
        parts: list[str | Encoding] = [text]
        for left in reversed(range(_ROUNDS)):
            texts = [part for part in parts if isinstance(part, str)]
            if not texts:
                break
            encodings = iter(self._plain.encode_batch(texts, add_special_tokens=False))
            cut: list[str | Encoding] = []
            for part in parts:
                cut += self._cut(part, next(encodings), finely=left < 2) if isinstance(part, str) else [part]
            parts = cut
        return [part for part in parts if isinstance(part, Encoding)]

    def _cut(self, text: str, encoding: Encoding, *, finely: bool) -> Sequence[str | Encoding]:
        """The encoding, or the text cut inside every control token in it; finely: between all characters."""
        if self._forbidden.isdisjoint(encoding.tokens):
            return [encoding]
        tokens = zip(encoding.tokens, encoding.offsets, strict=True)
        cuts = {start + 1 for token, (start, stop) in tokens if token in self._forbidden and stop - start > 1}
        if not cuts:
            return [encoding]
        if finely:
            characters: list[str] = self._characters.findall(text)
            return characters
        return [text[start:stop] for start, stop in pairwise([0, *sorted(cuts), len(text)])]


def _unguessable() -> str:
    """Private-use characters, since no added token is spelled with them."""
    return "".join(chr(0xE000 + secrets.randbelow(0x1900)) for _ in range(16))

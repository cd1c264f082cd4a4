"""Log probabilities by token id in; the protocol's three forms of them out. JSON has no infinities: -9999 it is."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from octavo.base.types.output import Logprob
from octavo.server.openai.replies import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)

LOWEST = -9999.0

Entry = dict[int, Logprob]
TokenBytes = Callable[[int], bytes]
_PART = "\ufffd"  # what a token's text is where it is part of a character


class TextEnd:
    """Where a choice's next token stands in its text. token_bytes: a token's, None where there is no tokenizer."""

    def __init__(self, token_bytes: TokenBytes | None = None, offset: int = 0) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = offset

    def take(self, token: int, text: str) -> int:
        """Where this token stands, in characters: a part of one where the character does. The end goes behind it."""
        data = _bytes(token, text, self._token_bytes)
        start = self._offset if b"\x80" <= data[:1] <= b"\xbf" else self.close()
        self._offset += len(self._decoder.decode(data))
        return max(0, start)

    def close(self) -> int:
        """The end, where a character that was left half is one of its own."""
        self._offset += len(self._decoder.decode(b"", True))
        return self._offset


def echoed_end(
    token_ids: Sequence[int], entries: Sequence[Entry | None], *, shown: str, first: str, token_bytes: TokenBytes | None
) -> TextEnd:
    """For a text that begins with a prompt's tokens, which it shows like this: one that only begins texts is not seen,
    nor the space before a first word.
    """
    end = TextEnd(token_bytes)
    for token, entry in zip(token_ids, entries, strict=True):
        end.take(token, first if entry is None else _text(token, entry[token]))
    return TextEnd(token_bytes, len(shown) - end.close())


def completion_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[Entry | None],
    *,
    most: int,
    end: TextEnd,
    first: str = "",
    as_ids: bool = False,
) -> CompletionLogprobs:
    """token_ids and entries run parallel; an entry None (a prompt's first token, `first`) has no probability.

    most: alternatives shown a token, besides the token itself.  end: of the choice's text until now; it goes on.
    as_ids: tokens are named by their ids.
    """
    offsets: list[int] = []
    tokens: list[str] = []
    chosen: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token, entry in zip(token_ids, entries, strict=True):
        text = first if entry is None else _text(token, entry[token])
        offsets.append(end.take(token, text))
        tokens.append(_by_id(token) if as_ids else text)
        chosen.append(None if entry is None else _finite(entry[token].logprob))
        tops.append(None if entry is None else _by_name(token, entry, most, as_ids))
    return CompletionLogprobs(offsets, chosen, tokens, tops)


def _by_name(token: int, entry: Entry, most: int, as_ids: bool) -> dict[str, float]:
    shown = _likeliest(entry, most)
    if token not in dict(shown):
        shown.append((token, entry[token]))
    names: dict[str, float] = {}
    for one, logprob in shown:  # tokens may share a text (pieces of one character); the likeliest gets it
        names.setdefault(_by_id(one) if as_ids else _text(one, logprob), _finite(logprob.logprob))
    return names


def chat_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[Entry],
    *,
    most: int,
    token_bytes: TokenBytes | None = None,
    as_ids: bool = False,
) -> ChatLogprobs:
    """token_ids and entries run parallel; most: alternatives shown a token; token_bytes: as of a TextEnd; as_ids:
    tokens are named by their ids.
    """
    content = []
    for token, entry in zip(token_ids, entries, strict=True):
        text = _text(token, entry[token])
        tops = [
            TopLogprob(
                _by_id(one) if as_ids else other, _finite(logprob.logprob), list(_bytes(one, other, token_bytes))
            )
            for one, other, logprob in ((one, _text(one, found), found) for one, found in _likeliest(entry, most))
        ]
        told = list(_bytes(token, text, token_bytes))
        content.append(TokenLogprob(_by_id(token) if as_ids else text, _finite(entry[token].logprob), told, tops))
    return ChatLogprobs(content)


def that_make(told: Sequence[TokenLogprob], text: str) -> list[TokenLogprob]:
    """The first of these tokens, of which the text is made but for white space: beside calls some is not shown."""
    left, count = len(_solid(text.encode())), 0
    while left > 0 and count < len(told):
        left -= len(_solid(bytes(told[count].bytes)))
        count += 1
    return list(told[:count])


def _solid(text: bytes) -> bytes:
    return text.translate(None, b" \t\r\n")


def prompt_logprobs(entries: Sequence[Entry | None]) -> PromptLogprobs:
    """One entry a prompt token; the first has none."""
    return [
        None
        if entry is None
        else {token: PromptLogprob(_finite(one.logprob), one.rank, one.decoded_token) for token, one in entry.items()}
        for entry in entries
    ]


def _likeliest(entry: Entry, most: int) -> list[tuple[int, Logprob]]:
    ranked = sorted(entry.items(), key=lambda item: -item[1].logprob)
    return ranked if most < 0 else ranked[:most]


def _text(token: int, logprob: Logprob) -> str:
    return _by_id(token) if logprob.decoded_token is None else logprob.decoded_token


def _by_id(token: int) -> str:
    return f"token_id:{token}"


def _bytes(token: int, text: str, token_bytes: TokenBytes | None) -> bytes:
    """The token's, which together make the text: those of its own text, unless it is part of a character."""
    return token_bytes(token) if token_bytes is not None and _PART in text else text.encode()


def _finite(value: float) -> float:
    return max(value, LOWEST)

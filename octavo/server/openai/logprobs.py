"""Log probabilities by token id in; the protocol's three forms of them out. JSON has no infinities: -9999 it is."""

from __future__ import annotations

from collections.abc import Sequence

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


def completion_logprobs(
    token_ids: Sequence[int], entries: Sequence[Entry | None], *, most: int, offset: int = 0, first: str = ""
) -> CompletionLogprobs:
    """token_ids and entries run parallel; an entry None (a prompt's first token, `first`) has no probability.

    most: alternatives shown a token, besides the token itself.  offset: of the first token in the choice's text.
    """
    offsets: list[int] = []
    tokens: list[str] = []
    chosen: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token, entry in zip(token_ids, entries, strict=True):
        text = first if entry is None else _text(token, entry[token])
        offsets.append(offset)
        tokens.append(text)
        chosen.append(None if entry is None else _finite(entry[token].logprob))
        tops.append(None if entry is None else _by_text(token, entry, most))
        offset += len(text)
    return CompletionLogprobs(offsets, chosen, tokens, tops)


def _by_text(token: int, entry: Entry, most: int) -> dict[str, float]:
    shown = _likeliest(entry, most)
    if token not in dict(shown):
        shown.append((token, entry[token]))
    texts: dict[str, float] = {}
    for one, logprob in shown:  # tokens may share a text (pieces of one character); the likeliest gets it
        texts.setdefault(_text(one, logprob), _finite(logprob.logprob))
    return texts


def chat_logprobs(token_ids: Sequence[int], entries: Sequence[Entry], *, most: int) -> ChatLogprobs:
    """token_ids and entries run parallel; most: alternatives shown a token."""
    content = []
    for token, entry in zip(token_ids, entries, strict=True):
        text = _text(token, entry[token])
        tops = [
            TopLogprob(other, _finite(logprob.logprob), list(other.encode()))
            for other, logprob in ((_text(one, logprob), logprob) for one, logprob in _likeliest(entry, most))
        ]
        content.append(TokenLogprob(text, _finite(entry[token].logprob), list(text.encode()), tops))
    return ChatLogprobs(content)


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
    return f"token_id:{token}" if logprob.decoded_token is None else logprob.decoded_token


def _finite(value: float) -> float:
    return max(value, LOWEST)

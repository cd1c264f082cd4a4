"""Request: what was submitted, checked and tokenized; immutable from the api down to the engine."""

from __future__ import annotations

import msgspec

from octavo.base.types.pooling import RowPooling
from octavo.base.types.sampling import SamplingParams


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with everything the engine needs; text has become token ids.

    params.n sequences are made of it.  eos_token_ids end a sequence unless params.ignore_eos.
    bad_words_ids: params.bad_words as token id sequences.  seed: never None, drawn where params.seed is None.
    max_tokens: resolved against the context length.  priority: lower runs first (policy "priority").
    arrival: time.monotonic() seconds.  cache_salt: prefixes are shared only between equal salts.
    pooling: a vector is wanted and nothing is sampled; max_tokens is 0 then and params tell nothing.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    seed: int
    eos_token_ids: list[int] = []
    bad_words_ids: list[list[int]] = []
    priority: int = 0
    arrival: float = 0.0
    cache_salt: str = ""
    pooling: RowPooling | None = None

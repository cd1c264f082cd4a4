"""Sequence: the mutable life of one completion in the engine, made from a Request and its index among n."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from octavo.base.types.output import RequestTimes
from octavo.base.types.plan import RowSampling, TokenLogprobs
from octavo.base.types.request import Request
from octavo.engine.grammar.grammar import Grammar

_SEED_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: far apart for neighbouring indices
ALL = -1  # every bit is set


class Status(Enum):
    """WAITING holds no row and no blocks; RUNNING holds both; FINISHED is final."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False)
class Sequence:
    """One completion.

    tokens:    [ prompt ........ | outputs read so far ]          len = num_tokens
    on device:                                          [ up to 2 sampled, not yet read ] = num_pending
    KV:        [ num_confirmed: steps read | steps begun ]        = num_computed <= num_tokens + num_pending

    `life` counts preemptions, so that a result of an earlier life is told apart.  preempted_at: since when it has had
    no token because of one (time.monotonic(); 0: that is over).  tells_times: the next output is to carry `times`.
    let_in_before: it goes on from another engine, or with a search that is under way (messages.Add.emitted).
    parent: the sequence of the same prompt whose blocks this one shares once that has run the prompt (n > 1); None for
    index 0 and after admission.
    ending: tokens that may end it.  grammar: where it stands in the one it is constrained by; None until that is
    compiled, and without one.  allowed, ignored: of a constrained one, allowed_token_ids and the ends of the text that
    do not end it, as the bits of a number.
    """

    request: Request
    index: int
    order: int
    sampling: RowSampling
    tokens: list[int]
    parent: Sequence | None = None
    status: Status = Status.WAITING
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    num_computed: int = 0
    num_confirmed: int = 0
    num_pending: int = 0
    num_cached: int = 0
    grammar: Grammar | None = None
    allowed: int = ALL
    ignored: int = 0
    life: int = 0
    preempted_at: float = 0.0
    tells_times: bool = False
    let_in_before: bool = False
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    times: RequestTimes = field(default_factory=RequestTimes)
    num_prompt: int = field(init=False)
    max_length: int = field(init=False)
    ending: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        """What is fixed for its life, and asked for at each step."""
        request = self.request
        self.num_prompt = len(request.prompt_token_ids)
        self.max_length = self.num_prompt + request.max_tokens
        self.ending = frozenset(request.eos_token_ids).union(request.params.stop_token_ids or ())

    @property
    def num_tokens(self) -> int:
        """Tokens known to the engine: the prompt and the outputs read."""
        return len(self.tokens)

    @property
    def num_remaining(self) -> int:
        """Tokens to run until the next one can be sampled; 0 where all outputs allowed are already under way."""
        known = len(self.tokens) + self.num_pending
        return known - self.num_computed if known < self.max_length else 0

    @property
    def waits_for_grammar(self) -> bool:
        """True while its grammar is being compiled."""
        return self.sampling.masked and self.grammar is None

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True while prompt log probabilities are asked for and not complete: then no prefix may be skipped."""
        return any(e is None for e in self.prompt_logprobs[1:])

    @property
    def row_sampling(self) -> RowSampling:
        """`sampling` for a row that begins now: log probabilities of the prompt that have come are not made again."""
        if self.sampling.prompt_logprobs is None or self.wants_prompt_logprobs:
            return self.sampling
        return msgspec.structs.replace(self.sampling, prompt_logprobs=None)


def make_sequences(request: Request, order: int, emitted: list[list[int] | None] | None = None) -> list[Sequence]:
    """The n sequences of a request; those after the first name it as parent.

    emitted: as in messages.Add. Such sequences have no parent: equal prompts find each other in the prefix cache. Log
    probabilities of the prompt went out with sequence 0's first token, and are not made again after that.
    """
    sequences: list[Sequence] = []
    params = request.params
    constrained = params.structured_outputs is not None
    allowed = _bits(params.allowed_token_ids) if constrained and params.allowed_token_ids else ALL
    ends = set(request.eos_token_ids).difference(params.stop_token_ids or ())
    ignored = _bits(ends) if constrained and params.ignore_eos else 0
    for index in range(params.n):
        known = emitted[index] if emitted is not None else []
        if known is None:
            continue
        sampling = _row_sampling(request, index)
        if known:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        asked = sampling.prompt_logprobs is not None
        sequences.append(
            Sequence(
                request=request,
                index=index,
                order=order,
                sampling=sampling,
                tokens=request.prompt_token_ids + known,
                parent=sequences[0] if index and emitted is None else None,
                let_in_before=emitted is not None,
                allowed=allowed,
                ignored=ignored,
                prompt_logprobs=[None] * len(request.prompt_token_ids) if asked else [],
                times=RequestTimes(arrival=request.arrival or time.monotonic()),
            )
        )
    return sequences


def _row_sampling(request: Request, index: int) -> RowSampling:
    p = request.params
    masked = p.structured_outputs is not None
    stops = list(p.stop_token_ids or ()) + ([] if p.ignore_eos else request.eos_token_ids)
    return RowSampling(
        temperature=0.0 if p.greedy else p.temperature,
        top_p=p.top_p,
        top_k=max(p.top_k, 0),
        min_p=p.min_p,
        presence_penalty=p.presence_penalty,
        frequency_penalty=p.frequency_penalty,
        repetition_penalty=p.repetition_penalty,
        seed=(request.seed + index * _SEED_STRIDE) % 2**63,
        min_tokens=p.min_tokens,
        stop_token_ids=stops if p.min_tokens else [],
        logit_bias=p.logit_bias or {},
        allowed_token_ids=None if masked else p.allowed_token_ids,
        bad_words_ids=request.bad_words_ids,
        logprobs=p.logprobs,
        prompt_logprobs=p.prompt_logprobs if index == 0 else None,
        masked=masked,
    )


def _bits(ids: Collection[int]) -> int:
    """Bit i for token i."""
    bits = bytearray(max(ids, default=0) // 8 + 1)
    for token in ids:
        bits[token // 8] |= 1 << token % 8
    return int.from_bytes(bits, "little")

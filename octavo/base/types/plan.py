"""The waist. StepPlan goes down to a backend, StepResult comes back; above are no arrays, below no Requests.

Rows are a sequence's fixed place in the backend. A plan is a difference: a decode step of 256 rows is 256
RowStep entries of four small integers and nothing else.
"""

from __future__ import annotations

import msgspec

from octavo.base.types.pooling import RowPooling


class RowSampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a row's sampler needs, fixed for the row's life; meanings as in SamplingParams.

    temperature 0 is greedy; top_k 0 keeps all.  seed is the sequence's own: the token at a position is a function
    of (logits, seed, position) alone.  stop_token_ids (end-of-text ids included) are not sampled before
    min_tokens outputs.  bad_words_ids: token sequences whose last token is not sampled after the others.
    logprobs: None, or alternatives per sampled token (0: the sampled one alone, -1: all);
    prompt_logprobs: the same for prompt tokens.  masked: each sampled token is chosen under a mask of its own
    (StepPlan.masked), which allowed_token_ids are part of.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words_ids: list[list[int]] = []
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    masked: bool = False

    @property
    def has_penalties(self) -> bool:
        """True if earlier tokens change the row's logits."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0


class RowBegin(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a row: all its known tokens, of which the first num_prompt are the prompt, and its blocks.

    pooling: the row is for a vector, in a model that pools; it runs whole in one step.
    """

    row: int
    token_ids: list[int]
    num_prompt: int
    blocks: list[int]
    sampling: RowSampling
    pooling: RowPooling | None = None


class BlockUpdate(msgspec.Struct, frozen=True, array_like=True):
    """block_table[row][index : index + len(blocks)] = blocks; what the engine sends is appended."""

    row: int
    index: int
    blocks: list[int]


class RowStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Run `count` tokens of the row from position `start`; with `sample`, append one token after them.

    The row's token at `start` may be one that the backend sampled in the step before and the engine has not seen.
    """

    row: int
    start: int
    count: int
    sample: bool


class StepPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step. Carried out in this order: ended, begins, updates, copies (source, destination block), rows.

    All sources of `copies` are read before any destination is written; destinations are distinct.
    masked: those of the rows that sample which wait for a mask (ports.Backend.mask).
    """

    step: int
    rows: list[RowStep]
    begins: list[RowBegin] = []
    updates: list[BlockUpdate] = []
    ended: list[int] = []
    copies: list[tuple[int, int]] = []
    masked: list[int] = []

    @property
    def num_tokens(self) -> int:
        """Tokens run in this step, over all rows."""
        return sum([row.count for row in self.rows])


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the token itself first, then the most likely ones in order.

    rank: 1 if the token itself was the most likely.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class StepResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a step. `tokens`, `logprobs` run parallel to the plan's rows that sample, in plan order.

    logprobs: None for a row that did not ask; may be empty where none did.
    prompt_logprobs: row -> (position of the first, entries), for rows that asked and ran prompt tokens; the
    entry at position p describes the prompt's token p, so the first possible position is 1.
    failed: row -> reason (errors.NOT_FINITE where its numbers are not); its token (if any) is meaningless and its
    blocks must not be cached.
    pooled: row -> float32, little-endian, one vector or one a token; its token is meaningless.
    """

    step: int
    tokens: list[int] = []
    logprobs: list[TokenLogprobs | None] = []
    prompt_logprobs: dict[int, tuple[int, list[TokenLogprobs]]] = {}
    failed: dict[int, str] = {}
    pooled: dict[int, bytes] = {}

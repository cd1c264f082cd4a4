"""What comes out: Output per sequence and step (engine -> client), RequestOutput for callers (vLLM's names)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from octavo.base.types.plan import TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]
ToolCallStatus = Literal["in_progress", "completed", "incomplete"]


class RequestTimes(msgspec.Struct, array_like=True):
    """One sequence's life in time.monotonic() seconds; 0 where it did not come to that.

    Durations in seconds: grammar, from arrival until its grammar was compiled; preempted, from
    preemptions to the next token, computing again included; prefill_preempted, of that, before the first token.
    """

    arrival: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    num_preemptions: int = 0
    grammar: float = 0.0
    preempted: float = 0.0
    prefill_preempted: float = 0.0

    def parts(self, end: float | None = None) -> dict[str, float]:
        """Where the seconds from arrival to the last token, or to `end`, went; they add up to them.

        ValueError before the first token.
        """
        if not self.first_token:
            raise ValueError("there are no parts of a time before the first token")
        end = self.last_token if end is None else end
        return {
            "grammar": self.grammar,
            "queue": self.scheduled - self.arrival - self.grammar,
            "prefill": self.first_token - self.scheduled - self.prefill_preempted,
            "decode": end - self.first_token - (self.preempted - self.prefill_preempted),
            "preempted": self.preempted,
        }


class Output(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What one step brought one sequence. finish_reason is set exactly once, on its last Output.

    token_ids, logprobs: new ones only.  prompt_logprobs: all of them (entry 0 is None), once, on the first output
    of sequence 0.  stop_reason: the stop token id, None for end-of-text.  error: message for finish_reason "error",
    error_kind: its class in base.errors, retry_after: seconds, where the engine was full.
    num_cached_tokens: prompt tokens found in the prefix cache.  pooled: as plan.StepResult has it.
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    error_kind: str | None = None
    retry_after: int = 0
    num_cached_tokens: int = 0
    times: RequestTimes | None = None
    pooled: bytes | None = None


@dataclass
class Logprob:
    """One alternative at one position; rank 1 is the most likely token."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A function that the model calls; with output_kind DELTA what came to one.

    name: "" in a delta to a call that an earlier one began.  arguments: a JSON object as text, in deltas a piece of it.
    id: where the model gives one itself that no earlier call has.  index: which of the answer's calls.  status:
    in_progress until it is whole; incomplete where its arguments broke off or went on as no JSON does: they end with
    the last certain value, closed.  text_offset: characters of the answer's text that stand before it.
    """

    name: str
    arguments: str
    id: str | None = None
    index: int = 0
    status: ToolCallStatus = "completed"
    text_offset: int = 0


@dataclass
class CompletionOutput:
    """One completion of a request. finish_reason: stop, length, abort, error, or None while it goes on.

    reasoning, tool_calls: what the text held of them, where it was parsed; then text is the rest.
    text_logprobs: with logprobs, tokens and theirs of those that `text` is made of: no markers, calls or reasoning.
    num_reasoning_tokens: of token_ids.  structured_outputs_valid: of an ended one that was asked for leniently (of its
    text, not of calls): whether it is valid by the schema; False also where that takes more than 2 s or 64 MB.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    num_reasoning_tokens: int = 0
    structured_outputs_valid: bool | None = None
    text_logprobs: list[tuple[int, dict[int, Logprob]]] | None = None

    def finished(self) -> bool:
        """True once nothing more will come."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """What a request has produced so far (or since the last one, with output_kind DELTA)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestTimes | None = None
    num_cached_tokens: int = 0
    error: str | None = field(default=None)

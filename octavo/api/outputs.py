"""Outputs of the engine in, RequestOutputs out: text, stop strings, log probabilities by token, deltas or the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from octavo.base.types.output import CompletionOutput, Logprob, Output, RequestOutput, RequestTimes
from octavo.base.types.plan import TokenLogprobs
from octavo.base.types.ports import TextTokenizer
from octavo.base.types.request import Request
from octavo.base.types.sampling import RequestOutputKind
from octavo.text.detokenizer import Detokenizer
from octavo.text.tools.calls import JoinedCalls

if TYPE_CHECKING:
    from octavo.api.judging import Judge
    from octavo.text.tools.parser import OutputParser, Parsing

OnOutput = Callable[[RequestOutput], None] | None


class TokenTexts:
    """Token id -> its text alone, remembered: log probabilities ask for the same few again and again."""

    def __init__(self, tokenizer: TextTokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token: int) -> str | None:
        if self._tokenizer is None:
            return None
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._tokenizer.token_strings([token])[0]
        return text


@dataclass
class _Completion:
    """One sequence's output, as far as it has come and has not been handed out.

    handed_out: the tokens before token_ids.  said: as CompletionOutput.text_logprobs.  unsaid: the same of tokens that
    may become text.
    """

    index: int
    detokenizer: Detokenizer | None
    parser: OutputParser | None = None
    handed_out: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: JoinedCalls = field(default_factory=JoinedCalls)
    num_reasoning_tokens: int = 0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    said: list[tuple[int, dict[int, Logprob]]] = field(default_factory=list)
    unsaid: list[tuple[int, dict[int, Logprob]]] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    changed: bool = False

    def take_text(self, text: str, *, last: bool = False) -> None:
        """Add visible text; last: the sequence has ended with it."""
        if self.parser is None:
            self.pieces.append(text)
            if self.unsaid:
                self._tell_logprobs(text, drop=False)
            return
        deltas = [self.parser.feed(text)]
        if last:
            deltas.append(self.parser.finish())
        for delta in deltas:
            self.pieces.append(delta.content)
            self.reasoning.append(delta.reasoning)
            if delta.calls:
                self.calls.add(delta.calls)
            if self.unsaid:
                self._tell_logprobs(delta.content, drop=bool(delta.calls) or self.parser.silent)

    def _tell_logprobs(self, content: str, *, drop: bool) -> None:
        """Tokens that have come are text with the text that they bring; drop: none of the others will be."""
        if content:
            self.said += self.unsaid
            self.unsaid = []
        elif drop:
            self.unsaid = []


class RequestProgress:
    """One request's way from Outputs to RequestOutputs.

    `push` is called with every Output at once, so a stop string ends its sequence without waiting for a reader;
    `take` hands out what came since the last `take`, so a slow reader finds deltas merged and nothing piles up.
    judge: sees what is handed out, where nothing else has to wait for it.  ended_at: time.monotonic() when its last
    sequence ended, None before.
    """

    def __init__(
        self,
        request: Request,
        *,
        request_id: str,
        prompt: str | None,
        tokenizer: TextTokenizer | None,
        texts: TokenTexts,
        parsing: Parsing | None = None,
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.error: Output | None = None
        self.judge: Judge | None = None
        self.ended_at: float | None = None
        self._prompt = prompt
        self._texts = texts if request.params.detokenize else TokenTexts(None)
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._times: RequestTimes | None = None
        self._begun: RequestTimes | None = None  # by an engine that is gone
        self._num_cached_tokens = 0
        self._completions = [
            _Completion(
                index,
                _detokenizer(tokenizer, request, parsing.kept_tokens if parsing else frozenset()),
                parsing.parser() if parsing else None,
            )
            for index in range(request.params.n)
        ]
        self._num_going_on = len(self._completions)
        self._delta = request.params.output_kind is RequestOutputKind.DELTA
        self._final_only = request.params.output_kind is RequestOutputKind.FINAL_ONLY
        self._whole: RequestOutput | None = None
        self._with_logprobs = request.params.logprobs is not None

    @property
    def finished(self) -> bool:
        """True once every sequence has ended."""
        return self._num_going_on == 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens handed in and not yet taken, over all sequences (with CUMULATIVE and FINAL_ONLY: all)."""
        return sum(len(completion.token_ids) for completion in self._completions)

    def push(self, output: Output) -> list[str]:
        """Take one Output in; returns the names ("id" or "id:index") that the engine must abort because of it."""
        if not 0 <= output.index < len(self._completions):
            return []
        completion = self._completions[output.index]
        if completion.finish_reason is not None:  # ended by a stop string: the engine was told, and is late
            return []
        completion.changed = True
        self._take_request_fields(output)
        stop = self._append(completion, output)
        if stop is not None:
            self._end(completion, "stop", stop)
            return [] if output.finish_reason else [self._name(output.index)]
        if output.finish_reason is not None:
            self._end(completion, output.finish_reason, output.stop_reason)
        return []

    def take(self) -> RequestOutput | None:
        """What came since the last call, in the form that params.output_kind asks for; None if there is nothing.

        With FINAL_ONLY, the whole, as often as it is called.
        """
        if self._final_only and (self._num_going_on or self._whole is not None):
            return self._whole
        changed = [completion for completion in self._completions if completion.changed]
        if not changed:
            return None
        delta, prompt_logprobs = self._delta, self._prompt_logprobs
        shown = changed if delta else self._completions
        outputs = [_show(completion, self._with_logprobs, delta=delta) for completion in shown]
        if self.judge is not None:
            self.judge.see(outputs)
        if delta:
            self._prompt_logprobs = None
        output = RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            outputs=outputs,
            finished=self._num_going_on == 0,
            metrics=self._times,
            num_cached_tokens=self._num_cached_tokens,
            error=self.error.error if self.error else None,
        )
        if self._final_only:
            self._whole = output
        return output

    def resume(self) -> list[list[int] | None]:
        """Another engine is to go on with it: output tokens by sequence, None where it has ended (messages.Add)."""
        self._begun = self._times
        return [None if c.finish_reason is not None else c.handed_out + c.token_ids for c in self._completions]

    def _end(self, completion: _Completion, finish: str, stop: int | str | None) -> None:
        completion.finish_reason, completion.stop_reason = finish, stop
        self._num_going_on -= 1
        if not self._num_going_on:
            self.ended_at = time.monotonic()

    def _name(self, index: int) -> str:
        alone = self.request.params.n == 1
        return self.request.request_id if alone else f"{self.request.request_id}:{index}"

    def _take_request_fields(self, output: Output) -> None:
        if output.error is not None:
            self.error = self.error or output
        if output.index == 0 and self._begun is None:
            self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        if output.times is not None:
            self._times = _joined(self._begun, output.times)
        if output.prompt_logprobs is not None:
            ids = self.request.prompt_token_ids
            self._prompt_logprobs = [
                None if entry is None else self._by_token(entry) for entry in output.prompt_logprobs[: len(ids)]
            ]

    def _append(self, completion: _Completion, output: Output) -> str | None:
        """Append tokens one by one: the result is the same however they were grouped. The stop string, or None."""
        parser, detokenizer = completion.parser, completion.detokenizer
        ids, finished = output.token_ids, output.finish_reason
        silent = len(ids) - 1 if finished == "stop" and not self.request.params.include_stop_str_in_output else -1
        for position, token in enumerate(ids):
            completion.token_ids.append(token)
            if output.logprobs is not None and position < len(output.logprobs):
                entry = output.logprobs[position]
                table = self._by_token(entry)
                completion.logprobs.append(table)
                if detokenizer is not None and position != silent:
                    completion.unsaid.append((token, table))
                completion.cumulative_logprob += entry.logprobs[0]
            if parser is not None:
                completion.num_reasoning_tokens += parser.in_reasoning
            if detokenizer is None or position == silent:
                continue
            text = detokenizer.feed(token)
            stop = detokenizer.stopped
            completion.take_text(text, last=stop is not None)
            if stop is not None:
                return stop
        if finished is not None and detokenizer is not None:
            completion.take_text(detokenizer.finish(), last=True)
            return detokenizer.stopped  # text that was held back may complete a stop string
        return None

    def _by_token(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        # the token itself first; the most likely ones follow in order, and may hold it again
        table = {entry.token_ids[0]: Logprob(entry.logprobs[0], entry.rank, self._texts(entry.token_ids[0]))}
        for rank, (token, logprob) in enumerate(zip(entry.token_ids[1:], entry.logprobs[1:], strict=True), start=1):
            if token not in table:
                table[token] = Logprob(logprob, rank, self._texts(token))
        return table


def _detokenizer(tokenizer: TextTokenizer | None, request: Request, kept_tokens: Set[int]) -> Detokenizer | None:
    """None where the request or the engine wants no text."""
    if tokenizer is None or not request.params.detokenize:
        return None
    return Detokenizer(tokenizer, request.params, request.prompt_token_ids, kept_tokens=kept_tokens)


def _joined(begun: RequestTimes | None, times: RequestTimes) -> RequestTimes:
    """Times told by an engine that went on with what another one had begun."""
    if begun is None:
        return times
    return msgspec.structs.replace(
        times,
        scheduled=begun.scheduled,
        first_token=begun.first_token,
        num_preemptions=begun.num_preemptions + times.num_preemptions,
        grammar=begun.grammar,
        preempted=begun.preempted + times.preempted,
        prefill_preempted=begun.prefill_preempted,
    )


def _show(completion: _Completion, with_logprobs: bool, *, delta: bool) -> CompletionOutput:
    completion.changed = False
    pieces, ids = completion.pieces, completion.token_ids
    shown = CompletionOutput(
        index=completion.index,
        text=pieces[0] if len(pieces) == 1 else "".join(pieces),
        token_ids=ids if delta else list(ids),
        cumulative_logprob=completion.cumulative_logprob if with_logprobs else None,
        logprobs=(completion.logprobs if delta else list(completion.logprobs)) if with_logprobs else None,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        reasoning="".join(completion.reasoning) if completion.reasoning else "",
        tool_calls=completion.calls.take(delta=delta) if completion.parser is not None else [],
        num_reasoning_tokens=completion.num_reasoning_tokens,
        text_logprobs=(completion.said if delta else list(completion.said)) if with_logprobs else None,
    )
    if not delta:
        completion.pieces, completion.reasoning = [shown.text], [shown.reasoning]
        return shown
    completion.handed_out += ids
    completion.pieces, completion.token_ids, completion.num_reasoning_tokens = [], [], 0
    if with_logprobs:
        completion.logprobs, completion.said = [], []
    if completion.parser is not None:
        completion.reasoning = []
    return shown

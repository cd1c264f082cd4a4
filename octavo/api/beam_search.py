"""One prompt's beam search, step by step: each step is one request a beam, which the prefix cache makes a short one.

The caller runs the rows of a step, of many searches at once where it has many, and hands over what came of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec

from octavo.api.outputs import RequestProgress, TokenTexts
from octavo.api.requests import Limits, make_request
from octavo.base.errors import InputError
from octavo.base.types.beam_search import BeamSearchOutput, BeamSearchSequence
from octavo.base.types.output import Logprob, Output, RequestOutput, RequestTimes
from octavo.base.types.plan import TokenLogprobs
from octavo.base.types.ports import TextTokenizer
from octavo.base.types.sampling import RequestOutputKind, SamplingParams


class BeamSearch:
    """progress: of the whole request, whose n is the beam width; it gets the best beams when all is over.

    Raises InputError where the engine's max_logprobs is too small for the beam width.
    """

    def __init__(
        self, progress: RequestProgress, *, length_penalty: float, limits: Limits, texts: TokenTexts, width_name: str
    ) -> None:
        request = progress.request
        params, self._width = request.params, request.params.n
        self.progress = progress
        self.finished = False
        self._limits, self._texts = limits, texts
        self._penalty = length_penalty
        self._ends = frozenset() if params.ignore_eos else frozenset(request.eos_token_ids)
        self._longest = len(request.prompt_token_ids) + request.max_tokens
        self._live = [BeamSearchSequence(list(request.prompt_token_ids))]
        self._ended: list[BeamSearchSequence] = []
        self._error: str | None = None
        self._times: RequestTimes | None = None
        self._num_cached = 0
        count = 2 * self._width
        most = limits.vocab_size if limits.max_logprobs == -1 else min(limits.max_logprobs, limits.vocab_size)
        if count > most:
            raise InputError(
                f"{width_name}={self._width} needs {count} log probabilities a token and there are at most {most}: "
                f"search with fewer beams, or start with a higher max_logprobs",
                param=width_name,
            )
        self._step = SamplingParams(
            max_tokens=1,
            temperature=params.temperature,
            ignore_eos=True,
            logprobs=max(count, params.logprobs or 0),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def rows(self, numbers: Iterator[int]) -> list[RequestProgress]:
        """The next step: a request for one token of each beam. numbers: where their ids come from."""
        whole, found = self.progress.request, []
        for beam in self._live:
            number = str(next(numbers))
            request = make_request(
                beam.tokens,
                self._step,
                limits=self._limits,
                request_id=number,
                priority=whole.priority,
                cache_salt=whole.cache_salt,
            )
            found.append(RequestProgress(request, request_id=number, prompt=None, tokenizer=None, texts=self._texts))
        return found

    def push(self, outputs: Sequence[RequestOutput]) -> None:
        """Take in what came of a step's rows, in their order."""
        self._note(outputs)
        if self._error is not None:
            self.finished = True
            return
        going_on: list[BeamSearchSequence] = []
        for beam, output in zip(self._live, outputs, strict=True):
            for longer in self._extended(beam, (output.outputs[0].logprobs or [{}])[0]):
                (going_on if longer.finish_reason is None else self._ended).append(longer)
        going_on.sort(key=self._score, reverse=True)
        self._live = going_on[: self._width]
        self._ended = sorted(self._ended, key=self._score, reverse=True)[: self._width]
        length = len(self._live[0].tokens) if self._live else self._longest
        self.finished = length >= self._longest or self._settled(length)

    def best(self) -> list[BeamSearchSequence]:
        """The best sequences, once it is over."""
        for beam in self._live:
            beam.finish_reason = "length"
        return sorted([*self._ended, *self._live], key=self._score, reverse=True)[: self._width]

    def request_output(self) -> RequestOutput | None:
        """The best sequences as a request's completions."""
        request = self.progress.request
        begin = len(request.prompt_token_ids)
        if self._error is not None:
            failed = Output(request_id=request.request_id, finish_reason="error", error=self._error, times=self._times)
            for index in range(self._width):
                self.progress.push(msgspec.structs.replace(failed, index=index))
        for index, beam in enumerate(self.best() if self._error is None else ()):
            ids = beam.tokens[begin:]
            chosen = [
                _entry(token, table, request.params.logprobs) for token, table in zip(ids, beam.logprobs, strict=True)
            ]
            self.progress.push(
                Output(
                    request_id=request.request_id,
                    index=index,
                    token_ids=ids,
                    logprobs=chosen,
                    finish_reason="stop" if beam.finish_reason == "stop" else "length",
                    stop_reason=beam.stop_reason,
                    num_cached_tokens=self._num_cached,
                    times=self._times,
                )
            )
        return self.progress.take()

    def output(self, tokenizer: TextTokenizer | None) -> BeamSearchOutput:
        """The best sequences, with their texts."""
        if self._error is not None:
            return BeamSearchOutput([], self._error)
        best = self.best()
        hides = not self.progress.request.params.include_stop_str_in_output
        if tokenizer is not None:
            for beam in best:
                ids = beam.tokens[:-1] if hides and beam.finish_reason == "stop" else beam.tokens
                beam.text = tokenizer.decode(ids, skip_special_tokens=False)
        return BeamSearchOutput(best)

    def _score(self, beam: BeamSearchSequence) -> float:
        return beam.score(self._penalty)

    def _extended(self, beam: BeamSearchSequence, table: dict[int, Logprob]) -> Iterator[BeamSearchSequence]:
        for place, (token, found) in enumerate(table.items()):
            if place and (found.rank or 0) > 2 * self._width:  # asked for to be shown; the first is the one drawn
                continue
            ended = token in self._ends
            yield BeamSearchSequence(
                tokens=[*beam.tokens, token],
                logprobs=[*beam.logprobs, table],
                cum_logprob=beam.cum_logprob + found.logprob,
                finish_reason="stop" if ended else None,
                stop_reason=token if ended else None,
            )

    def _settled(self, length: int) -> bool:
        """Whether no live beam can come to rank among the best any more: log probabilities only fall.

        A beam ranks highest with what it has and either the least length to come or the greatest.
        """
        if len(self._ended) < self._width:
            return False
        best = max(self._live, key=lambda beam: beam.cum_logprob).cum_logprob if self._live else float("-inf")
        most: float = max(best / at**self._penalty for at in (length, self._longest))
        return self._score(self._ended[-1]) >= most

    def _note(self, outputs: Sequence[RequestOutput]) -> None:
        """Keep what is told of the whole: its first failure, its times, the prompt's cached tokens."""
        first = self._times is None
        for output in outputs:
            self._error = self._error or output.error
        if first:
            self._num_cached = outputs[0].num_cached_tokens
        told = [output.metrics for output in outputs if output.metrics is not None]
        if not told:
            return
        last = max(told, key=lambda times: times.last_token)
        preempted = max(times.preempted for times in told)
        if self._times is None:
            self._times = last
            return
        self._times = msgspec.structs.replace(
            self._times,
            last_token=last.last_token,
            num_preemptions=self._times.num_preemptions + sum(times.num_preemptions for times in told),
            preempted=self._times.preempted + preempted,
        )


def run_searches(
    searches: Sequence[BeamSearch],
    run: Callable[[list[RequestProgress]], list[RequestOutput]],
    numbers: Iterator[int],
) -> Iterator[BeamSearch]:
    """Run searches to their ends, a step of all that go on at a time; each one as it ends."""
    while going_on := [search for search in searches if not search.finished]:
        rows = [search.rows(numbers) for search in going_on]
        outputs = iter(run([row for beams in rows for row in beams]))
        for search, beams in zip(going_on, rows, strict=True):
            search.push(list(islice(outputs, len(beams))))
            if search.finished:
                yield search


def _entry(token: int, table: dict[int, Logprob], count: int | None) -> TokenLogprobs:
    """The token and the `count` likeliest, as the engine tells them."""
    shown = sorted((found.rank or 0, other) for other, found in table.items() if (found.rank or 0) <= (count or 0))
    ids = [token, *(other for _, other in shown)]
    return TokenLogprobs(ids, [table[one].logprob for one in ids], table[token].rank or 0)

"""One step: a StepPlan in; work on the device, then a StepResult out. What goes wrong with one row is that row's alone.

`StepRunner.launch` runs on the worker, `collect` on the caller: between them stands `Launched`, results on their way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch, make_batch, with_ends
from octavo.backends.torch.device.memory import MOST_APART, PROMPT_TILE_ELEMENTS
from octavo.backends.torch.device.transfer import Download, upload
from octavo.backends.torch.layers.decoder import Decoder, Passed, finite_tokens
from octavo.backends.torch.layers.encoder import Encoder
from octavo.backends.torch.ops.port import Stream
from octavo.backends.torch.pooling import Span, Vectors, pool
from octavo.backends.torch.rows import Rows
from octavo.backends.torch.sampling.group import Group
from octavo.backends.torch.sampling.logprobs import Logprobs, PackedLogprobs, is_finite, token_logprobs
from octavo.backends.torch.sampling.sampler import choose_tokens
from octavo.base.errors import NOT_FINITE, NOTHING_TO_SAMPLE
from octavo.base.types.plan import RowStep, StepPlan, StepResult, TokenLogprobs
from octavo.base.types.pooling import RowPooling
from octavo.models.spec import Pooling

if TYPE_CHECKING:
    from octavo.backends.torch.forward_graphs import ForwardGraphs
    from octavo.backends.torch.graphs import DecodeSteps

logger = logging.getLogger(__name__)

_NO_SECOND = 2**62  # no position reaches it
NO_MASK = "the row's mask is missing"


@dataclass(frozen=True)
class Sampled:
    """Rows sampled together; host tensors [m]. logprobs: (which of the m, their log probabilities)."""

    rows: list[int]
    tokens: Tensor
    finite: Tensor
    empty: Tensor
    logprobs: Sequence[tuple[list[int], Logprobs | PackedLogprobs]]


class End(NamedTuple):
    """A row that samples. place: of its last token in the stream."""

    step: RowStep
    place: int


@dataclass
class Launched:
    """A step under way. finite: bool, parallel to `ran`.  prompt: row -> (first position, log probabilities).

    decoded: of a step of single tokens alone, gives the result after `download`.  rest: what is to be launched when the
    step's masks have come.  pooled: of a model that pools.
    """

    plan: StepPlan
    download: Download
    ran: list[int] = field(default_factory=list)
    finite: Tensor | None = None
    sampled: list[Sampled] = field(default_factory=list)
    prompt: dict[int, tuple[int, list[Logprobs]]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    decoded: Callable[[], StepResult] | None = None
    pooled: Vectors = field(default_factory=Vectors)
    rest: Callable[[], None] | None = None


class StepRunner:
    """Runs steps over the model, its rows and its cache; decode steps by `decodes` where that takes them, the layers of
    others by `forwards` where that does."""

    def __init__(
        self,
        decoder: Decoder | Encoder,
        rows: Rows,
        cache: KVCache,
        attention: PagedAttention,
        decodes: DecodeSteps | None = None,
        forwards: ForwardGraphs | None = None,
    ) -> None:
        self._model, self._rows, self._cache, self._attention = decoder, rows, cache, attention
        self._decodes, self._forwards = decodes, forwards

    def launch(self, plan: StepPlan) -> Launched:
        """Carry the plan out, of a masked one as much as needs no masks. Raises only what concerns the whole step."""
        launched = Launched(plan, Download(self._rows.device))
        self._rows.apply(plan)
        self._cache.copy_blocks(plan.copies)
        if plan.masked:
            launched.rest = self._start(plan, launched)
            return launched
        if self._decodes is not None:
            launched.decoded = self._decodes.run(plan, launched.download)
        if launched.decoded is None and (rest := self._start_eager(plan, launched)):
            rest()
        launched.download.seal()
        return launched

    def mask(self, launched: Launched, masks: dict[int, bytes]) -> Launched:
        """Carry out the rest of a step that was launched last."""
        launched.failed.update((row, NO_MASK) for row in launched.plan.masked if row not in masks)
        self._rows.set_masks(masks)
        if launched.rest is not None:
            launched.rest()
            launched.rest = None
        launched.download.seal()
        return launched

    def _start(self, plan: StepPlan, launched: Launched) -> Callable[[], None] | None:
        """Run the layers; what is to be done with the masks."""
        draw = None if self._decodes is None else self._decodes.start(plan)
        if draw is None:
            return self._start_eager(plan, launched)

        def rest() -> None:
            launched.decoded = draw(launched.download)

        return rest

    def _start_eager(self, plan: StepPlan, launched: Launched) -> Callable[[], None] | None:
        steps: list[RowStep] = []
        for step in plan.rows:
            refusal = self._rows.refusal(step)
            if refusal is None:
                steps.append(step)
            else:
                launched.failed[step.row] = refusal
        if not steps:
            return None
        batch = make_batch(steps, self._rows)
        if self._model.spec.pooling is not None:
            self._pool(batch, self._model.spec.pooling, launched)
            return None
        if self._ends_alone(steps):
            batch = with_ends(batch, partial(self._room, len(batch.token_ids)))
        return partial(self._finish, batch, self._forward(batch), launched)

    def _ends_alone(self, steps: list[RowStep]) -> bool:
        """Whether there are tokens of which nothing is asked."""
        every = all(step.sample and step.count == 1 for step in steps)
        return not every and all(self._prompt_end(step) == step.start for step in steps)

    def _prompt_end(self, step: RowStep) -> int:
        """Behind the last of the step's tokens that the next one's log probability is asked of; its start: of none."""
        state = self._rows.state(step.row)
        if state.sampling.prompt_logprobs is None:
            return step.start
        return max(step.start, min(step.start + step.count, state.num_prompt - 1))

    def _room(self, tokens: int, ends: int) -> int:
        size = self._size(ends)
        return size if self._forwards is None else self._forwards.room(tokens, size)

    def _size(self, count: int) -> int:
        """What so many rows are padded to, a number that decode steps have: the product of another may be by a kernel
        that was not needed yet, and to load one takes 20 ms, which a step with prompts would take longer."""
        return self._decodes.size(count) if count and self._decodes is not None else count

    def _pool(self, batch: Batch, pooling: Pooling, launched: Launched) -> None:
        asked = [self._rows.state(step.row).pooling for step in batch.steps]
        types = None
        if any(one is not None and one.second for one in asked):
            seconds = [one.second if one is not None and one.second else _NO_SECOND for one in asked]
            begins = upload(seconds, torch.int64, self._rows.device)[batch.row_index]
            types = (batch.positions >= begins).long()
        states = self._model.states(batch, self._cache, self._attention, types)
        alike: dict[RowPooling, list[Span]] = {}
        first = 0
        for step, one in zip(batch.steps, asked, strict=True):
            if one is None or step.start or not step.sample:
                launched.failed[step.row] = "this model makes a vector of a whole prompt at once, and nothing else"
            else:
                alike.setdefault(msgspec.structs.replace(one, second=0), []).append(Span(step.row, first, step.count))
            first += step.count
        for row_pooling, spans in alike.items():
            self._pool_isolated(states, spans, pooling, row_pooling, launched)
        launched.pooled.send(launched.download)

    def _pool_isolated(
        self, states: Tensor, spans: list[Span], pooling: Pooling, asked: RowPooling, launched: Launched
    ) -> None:
        """Rows that ask for the same, together; one by one where that fails."""
        try:
            launched.pooled.add(spans, asked, pool(states, spans, pooling, self._model.weights.more, asked))
        except Exception as error:
            if len(spans) == 1:
                _fail(launched, spans[0].row, "pooling", error)
                return
            for span in spans:
                self._pool_isolated(states, [span], pooling, asked, launched)

    def _finish(self, batch: Batch, passed: Passed, launched: Launched) -> None:
        stream = passed.stream
        launched.ran = [step.row for step in batch.steps]
        launched.finite = launched.download.add(_finite_rows(passed, batch))
        for ends in self._sampling(batch):
            self._sample_isolated(ends, stream, launched)
        for i, step in enumerate(batch.steps):
            count = self._rows.state(step.row).sampling.prompt_logprobs
            if count is None or self._prompt_end(step) == step.start:
                continue
            try:
                self._prompt_logprobs(i, count, batch, stream, launched)
            except Exception as error:
                _fail(launched, step.row, "prompt log probabilities", error)

    def _forward(self, batch: Batch) -> Passed:
        passed = None if self._forwards is None else self._forwards.run(batch)
        return self._decoder.forward(batch, self._cache, self._attention) if passed is None else passed

    @property
    def _decoder(self) -> Decoder:
        if not isinstance(self._model, Decoder):
            raise RuntimeError("an encoder samples nothing")
        return self._model

    def _sampling(self, batch: Batch) -> list[list[End]]:
        """Rows that sample; where there are kernels, those beyond them apart, a part at a time."""
        sampling: list[End] = []
        first = 0
        for step in batch.steps:
            first += step.count
            if step.sample:
                sampling.append(End(step, first - 1 if batch.ends is None else len(sampling)))
        beyond = self._rows.kinds.beyond if self._decodes is not None else set[int]()
        apart = [end for end in sampling if end.step.row in beyond]
        groups = (apart[first : first + MOST_APART] for first in range(0, len(apart), MOST_APART))
        return [group for group in ([end for end in sampling if end.step.row not in beyond], *groups) if group]

    def _sample_isolated(self, ends: list[End], stream: Stream, launched: Launched) -> None:
        """All rows at once; where that fails one by one, so that the one at fault fails alone."""
        try:
            launched.sampled.append(self._sample(ends, stream, launched.download))
        except Exception as error:
            if len(ends) == 1:
                _fail(launched, ends[0].step.row, "sampling", error)
                return
            for end in ends:
                self._sample_isolated([end], stream, launched)

    def _sample(self, ends: list[End], stream: Stream, download: Download) -> Sampled:
        """Sample for these rows and write the tokens behind the rows' own."""
        rows = [end.step.row for end in ends]
        positions = [end.step.start + end.step.count for end in ends]
        places = [end.place for end in ends]
        places += places[:1] * (self._size(len(places)) - len(places))
        logits, finite = self._logits(stream, upload(places, torch.int64, self._rows.device))
        logits, finite = logits[: len(ends)], finite[: len(ends)] != 0
        if self._decodes is not None and self._rows.kinds.beyond.isdisjoint(rows):
            return self._decodes.draw(logits, finite, rows, positions, download)
        row_ids, behind = upload([rows, positions], torch.int64, self._rows.device)
        finite &= logits.isfinite().all(-1)
        group = self._group(rows, row_ids, positions)
        raw = _raw_logits(logits, group)
        tokens, empty = choose_tokens(logits, group)
        tokens = torch.where(finite & ~empty, tokens, 0)
        logprobs = [
            (which, token_logprobs(kept, tokens[upload(which, torch.int64, tokens.device)], count).download(download))
            for count, which, kept in raw
        ]
        self._rows.tokens[row_ids, behind] = tokens.int()
        return Sampled(rows, download.add(tokens), download.add(finite), download.add(empty), logprobs)

    def _logits(self, stream: Stream, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of the tokens there, and as of Decoder.finish whether the stream is finite."""
        h, finite = self._decoder.finish(stream, places)
        return self._decoder.logits(h), finite

    def _group(self, rows: list[int], row_ids: Tensor, positions: list[int]) -> Group:
        states = [self._rows.state(row) for row in rows]
        integers = self._rows.integers[row_ids]
        return Group(
            sampling=[state.sampling for state in states],
            tables=[state.tables for state in states],
            num_prompts=[state.num_prompt for state in states],
            positions=positions,
            rows=rows,
            row_ids=row_ids,
            tokens=self._rows.tokens,
            floats=self._rows.floats[row_ids],
            seeds=integers[:, 0],
            top_k=integers[:, 1],
            allowed=self._rows.edits.allowed,
        )

    def _prompt_logprobs(self, index: int, count: int, batch: Batch, stream: Stream, launched: Launched) -> None:
        """Entries for the prompt's positions after each of the row's tokens: p's comes from the state at p - 1."""
        step = batch.steps[index]
        end = self._prompt_end(step)
        first = sum(before.count for before in batch.steps[:index])
        tile = max(1, PROMPT_TILE_ELEMENTS // self._model.spec.vocab_size)
        parts: list[Logprobs] = []
        for low in range(step.start, end, tile):
            high = min(low + tile, end)
            places = torch.arange(first + low - step.start, first + high - step.start, device=self._rows.device)
            logits, _ = self._logits(stream, places)
            tokens = self._rows.tokens[step.row, low + 1 : high + 1].long()
            parts.append(token_logprobs(logits, tokens, count).download(launched.download))
        launched.prompt[step.row] = (step.start + 1, parts)


def collect(launched: Launched) -> StepResult:
    """Wait for the results of a step."""
    launched.download.wait()
    if launched.decoded is not None:
        return _with_failed(launched.decoded(), launched.failed)
    failed = dict(launched.failed)
    pooled: dict[int, bytes] = {}
    for row, vector in launched.pooled.read():
        if np.isfinite(vector).all():
            pooled[row] = vector.astype("<f4").tobytes()
        else:
            failed.setdefault(row, NOT_FINITE)
    if launched.finite is not None:
        for row, finite in zip(launched.ran, launched.finite.tolist(), strict=True):
            if not finite:
                failed.setdefault(row, NOT_FINITE)
    tokens: dict[int, int] = {}
    logprobs: dict[int, TokenLogprobs | None] = {}
    for part in launched.sampled:
        tokens.update(zip(part.rows, part.tokens.tolist(), strict=True))
        for row, finite, empty in zip(part.rows, part.finite.tolist(), part.empty.tolist(), strict=True):
            if not finite:
                failed.setdefault(row, NOT_FINITE)
            elif empty:
                failed.setdefault(row, NOTHING_TO_SAMPLE)
        for which, block in part.logprobs:
            entries: Sequence[TokenLogprobs | None] = block.entries()
            logprobs.update(zip([part.rows[i] for i in which], entries, strict=True))
    prompt: dict[int, tuple[int, list[TokenLogprobs]]] = {}
    for row, (position, blocks) in launched.prompt.items():
        found = [entry for block in blocks for entry in block.entries()]
        if not all(map(is_finite, found)):
            failed.setdefault(row, NOT_FINITE)
        prompt[row] = (position, found)
    rows = [step.row for step in launched.plan.rows if step.sample]
    return StepResult(
        step=launched.plan.step,
        tokens=[tokens.get(row, 0) for row in rows],
        logprobs=[None if row in failed else logprobs.get(row) for row in rows],
        prompt_logprobs={row: entries for row, entries in prompt.items() if row not in failed},
        failed=failed,
        pooled=pooled,
    )


def _with_failed(result: StepResult, failed: dict[int, str]) -> StepResult:
    """failed: what went wrong on the host; it comes first."""
    return msgspec.structs.replace(result, failed=result.failed | failed) if failed else result


def _finite_rows(passed: Passed, batch: Batch) -> Tensor:
    """bool [n]: no token of the row has a value that is not finite; of ends, `_sample` looks at what comes behind."""
    finite = finite_tokens(passed.stream.total()) if passed.finite is None else passed.finite
    bad = (~finite).int()
    return torch.zeros_like(batch.rows).index_add_(0, batch.row_index, bad) == 0


def _raw_logits(logits: Tensor, group: Group) -> list[tuple[int, list[int], Tensor]]:
    """(alternatives, which rows, a copy of their logits) for rows that ask for log probabilities."""
    asked: dict[int, list[int]] = {}
    for i, sampling in enumerate(group.sampling):
        if sampling.logprobs is not None:
            asked.setdefault(sampling.logprobs, []).append(i)
    return [(n, which, logits[upload(which, torch.int64, logits.device)]) for n, which in asked.items()]


def _fail(launched: Launched, row: int, what: str, error: Exception) -> None:
    logger.exception("step %d, row %d: %s failed", launched.plan.step, row, what)
    launched.failed.setdefault(row, f"{what} failed ({type(error).__name__}: {error})")

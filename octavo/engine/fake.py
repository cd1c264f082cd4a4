"""ScriptedExecutor: an executor without a model. It keeps a pretend KV cache, so wrong blocks show as wrong tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.base.errors import NOTHING_TO_SAMPLE, RequestFailedError, UnsupportedError
from octavo.base.types.plan import RowSampling, RowStep, StepPlan, StepResult, TokenLogprobs

_MIX = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_EMPTY = -1
_SPOILED = -2  # the pretend NaN: whatever is computed from it is one too

NextToken = Callable[[list[int], int], int]
"""next_token(tokens so far, state of the last position) -> token"""


def mix(state: int, token: int) -> int:
    """The pretend KV of a position: a 64-bit hash of the KV before it and its token."""
    x = (state ^ (token + 1)) * _MIX & _MASK
    return (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9 & _MASK


def score(state: int) -> float:
    """The pretend log probability of whatever follows a position."""
    return -(state % 1000) / 100


def continue_tokens(tokens: list[int], count: int, *, vocab_size: int, seed: int | None = None) -> list[int]:
    """What ScriptedExecutor must produce after `tokens`: its definition, without blocks, rows or steps.

    seed: the row's (RowSampling.seed), for an executor with `seeded` and a request that is not greedy.
    """
    state = 0
    for token in tokens:
        state = mix(state, token)
    out: list[int] = []
    for _ in range(count):
        out.append((state if seed is None else mix(state, seed)) % vocab_size)
        state = mix(state, out[-1])
    return out


def next_allowed(mask: bytes, token: int) -> int:
    """The first token from `token` on, past the end from 0, whose bit is set."""
    size = 8 * len(mask)
    while not mask[token // 8] >> token % 8 & 1:
        token = (token + 1) % size
    return token


@dataclass(frozen=True)
class Replay:
    """A next_token that gives scripted answers, token by token, and `end` behind them and where it knows none.

    A prompt ends with `question`, the tokens that name a script, and `answer`, after which the answer stands. Neither
    mark may occur in a script.
    """

    scripts: Mapping[tuple[int, ...], list[int]]
    question: int
    answer: int
    end: int

    def __call__(self, tokens: list[int], state: int) -> int:
        """See NextToken."""
        done = tokens[::-1].index(self.answer) if self.answer in tokens else 0
        begin = len(tokens) - done - 1
        asked = tokens[:begin]
        length = asked[::-1].index(self.question) if self.question in asked else 0
        script = self.scripts.get(tuple(asked[len(asked) - length :]), [])
        return script[done] if done < len(script) else self.end


@dataclass
class _Row:
    tokens: list[int]
    num_prompt: int
    sampling: RowSampling
    blocks: list[int] = field(default_factory=list)


class ScriptedExecutor:
    """The next token is a function of the whole KV before it, read through the block table as a backend would.

    Anything the engine gets wrong (a block freed too early, a stale row, a missed copy, a step out of order) changes
    the tokens or fails the row.  seeded: rows that are not greedy mix their seed in.
    fail_row(plan, row) -> reason makes a row fail; fail_step(plan) makes `finish` of a step raise. Either spoils the
    KV that was to be written: who reads it fails as well, as with NaN.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        next_token: NextToken | None = None,
        seeded: bool = False,
        fail_row: Callable[[StepPlan, RowStep], str | None] | None = None,
        fail_step: Callable[[StepPlan], bool] | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.plans: list[StepPlan] = []
        self._kv = [[_EMPTY] * block_size for _ in range(num_blocks)]
        self._rows: dict[int, _Row] = {}
        self._results: deque[StepResult | Exception] = deque()
        self._unmasked: StepPlan | None = None
        self._masks: dict[int, bytes] = {}
        self._next_token = next_token or (lambda _, state: state % vocab_size)
        self._seeded = seeded
        self._fail_row = fail_row
        self._fail_step = fail_step

    def begin(self, plan: StepPlan) -> None:
        """Carry the plan out at once, or when its masks come; the result waits for `finish`."""
        self._settle({})
        if len(self._results) >= 2:
            raise RequestFailedError("more than two steps are unfinished")
        self.plans.append(plan)
        for row in plan.ended:
            self._rows.pop(row, None)
        for begin in plan.begins:
            self._rows[begin.row] = _Row(list(begin.token_ids), begin.num_prompt, begin.sampling, list(begin.blocks))
        for update in plan.updates:
            blocks = self._rows[update.row].blocks
            blocks[update.index : update.index + len(update.blocks)] = update.blocks
        sources = [list(self._kv[source]) for source, _ in plan.copies]
        for (_, to), content in zip(plan.copies, sources, strict=True):
            self._kv[to] = content
        self._unmasked, self._masks = plan, {}
        if not plan.masked:
            self._settle({})

    def mask(self, masks: dict[int, bytes]) -> None:
        """What the plan's masked rows may sample."""
        if self._unmasked is None or not masks.keys() <= set(self._unmasked.masked):
            raise RequestFailedError(f"no step waits for masks of rows {sorted(masks)}")
        self._settle(masks)

    def _settle(self, masks: dict[int, bytes]) -> None:
        plan, self._unmasked, self._masks = self._unmasked, None, masks
        if plan is not None:
            self._results.append(self._run(plan))

    def finish(self) -> StepResult:
        """The oldest result."""
        if not self._results:
            self._settle({})
        result = self._results.popleft()
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, name: str, **arguments: Any) -> Any:
        """Knows nothing."""
        raise UnsupportedError(f"no such call: {name}", param="name")

    def close(self) -> None:
        """Nothing to free."""

    def _run(self, plan: StepPlan) -> StepResult | Exception:
        failed: dict[int, str] = {}
        # all reads before all writes: in a backend the rows of one step run side by side
        states = {step.row: self._start(step, failed) for step in plan.rows}
        if self._fail_step is not None and self._fail_step(plan):
            for step in plan.rows:
                self._spoil(step)
            return RequestFailedError("scripted failure of a step")
        for step in plan.rows:
            reason = self._fail_row(plan, step) if self._fail_row else None
            if step.row in plan.masked and not any(self._masks.get(step.row, b"")):
                reason = NOTHING_TO_SAMPLE if step.row in self._masks else "its mask is missing"
            if reason:
                failed[step.row] = reason
            if step.row in failed:
                self._spoil(step)
            else:
                states[step.row] = self._write(step, states[step.row])
        return self._result(plan, states, failed)

    def _result(self, plan: StepPlan, states: dict[int, int], failed: dict[int, str]) -> StepResult:
        tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        prompts: dict[int, tuple[int, list[TokenLogprobs]]] = {}
        for step in plan.rows:
            clean = step.row not in failed
            if clean and self._rows[step.row].sampling.prompt_logprobs is not None:
                prompts[step.row] = (step.start + 1, self._prompt_logprobs(step))
            if step.sample:
                token, entry = self._sample(step, states[step.row]) if clean else (0, None)
                tokens.append(token)
                logprobs.append(entry)
        return StepResult(step=plan.step, tokens=tokens, logprobs=logprobs, prompt_logprobs=prompts, failed=failed)

    def _sample(self, step: RowStep, state: int) -> tuple[int, TokenLogprobs | None]:
        row = self._rows[step.row]
        seeded = self._seeded and row.sampling.temperature > 0
        token = self._next_token(row.tokens, mix(state, row.sampling.seed) if seeded else state)
        if step.row in self._masks:
            token = next_allowed(self._masks[step.row], token)
        row.tokens[step.start + step.count :] = [token]
        if row.sampling.logprobs is None:
            return token, None
        return token, TokenLogprobs([token], [score(state)], 1)

    def _prompt_logprobs(self, step: RowStep) -> list[TokenLogprobs]:
        row = self._rows[step.row]
        positions = range(step.start + 1, min(step.start + step.count + 1, row.num_prompt))
        return [TokenLogprobs([row.tokens[p]], [score(self._read(row, p - 1))], 1) for p in positions]

    def _start(self, step: RowStep, failed: dict[int, str]) -> int:
        """The state before the step's first position; 0 and an entry in `failed` where it cannot run."""
        row = self._rows.get(step.row)
        end = step.start + step.count
        if row is None or len(row.tokens) < end or len(row.blocks) * self.block_size < end:
            failed[step.row] = f"row {step.row} lacks tokens or blocks up to position {end}"
            return 0
        state = self._read(row, step.start - 1) if step.start else 0
        if state < 0:
            what = "spoiled" if state == _SPOILED else "never written"
            failed[step.row] = f"position {step.start - 1} is read but {what}"
        return state

    def _write(self, step: RowStep, state: int) -> int:
        """Run the row's tokens; the state at the last of them."""
        row = self._rows[step.row]
        for position in range(step.start, step.start + step.count):
            state = mix(state, row.tokens[position])
            block, slot = divmod(position, self.block_size)
            self._kv[row.blocks[block]][slot] = state
        return state

    def _spoil(self, step: RowStep) -> None:
        row = self._rows.get(step.row)
        for position in range(step.start, step.start + step.count):
            block, slot = divmod(position, self.block_size)
            if row is not None and block < len(row.blocks):
                self._kv[row.blocks[block]][slot] = _SPOILED

    def _read(self, row: _Row, position: int) -> int:
        block, slot = divmod(position, self.block_size)
        return self._kv[row.blocks[block]][slot]

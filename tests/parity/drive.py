"""A tiny harness over any backend: prompts and shares of tokens in, StepPlans built by hand, tokens and logprobs out.

It stands in for the engine: hands out rows and blocks, counts tokens, and keeps what each step brings.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import VOCAB_SIZE

from octavo.base.types.plan import BlockUpdate, RowBegin, RowSampling, RowStep, StepPlan, StepResult, TokenLogprobs
from octavo.models.registry import build_spec, find_family
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.names import map_names

GPUS = ["cuda"] if importlib.util.find_spec("torch") and importlib.import_module("torch").cuda.is_available() else []
BACKENDS = ["cpu", "torch", *GPUS]
PROGRAMS = [*BACKENDS, "numpy"]
"""The backends as they run by default, and the cpu backend as it runs where nothing was compiled."""
EVERYTHING = RowSampling(logprobs=-1, prompt_logprobs=-1)
"""Greedy, with the log probabilities of the whole vocabulary at every position."""


def make_backend(name: str, **sizes: Any) -> Any:
    """A backend by name; skips where it is not installed."""
    if name in ("cpu", "numpy"):
        from octavo.backends.cpu.runner import CpuBackend

        return CpuBackend(**sizes, native=name == "cpu", activation_dtype="float32")
    runner = pytest.importorskip("octavo.backends.torch.runner")
    return runner.TorchBackend(device="cuda" if name == "cuda" else "cpu", **sizes)


def load_checkpoint(backend: Any, folder: Path) -> None:
    """Read a checkpoint into a backend."""
    checkpoint = open_checkpoint(folder)
    spec = build_spec(checkpoint.config)
    names = find_family(checkpoint.config).names(spec)
    shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
    backend.load(spec, map_names(checkpoint, names, shapes))


@dataclass(eq=False)
class Seq:
    """A sequence in its row. tokens: known ids; None for one sampled by a step that was not collected yet."""

    row: int
    tokens: list[int | None]
    num_prompt: int
    sampling: RowSampling
    blocks: list[int]
    computed: int = 0
    begun: bool = False
    failed: str | None = None
    sampled: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt: dict[int, TokenLogprobs] = field(default_factory=dict)

    @property
    def outputs(self) -> list[int | None]:
        """Tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def left(self) -> int:
        """Known tokens that were not run yet."""
        return len(self.tokens) - self.computed


class Drive:
    """Sequences over a backend that was loaded and allocated with num_blocks of block_size."""

    def __init__(self, backend: Any, *, num_blocks: int, block_size: int, num_rows: int) -> None:
        self.backend, self.block_size = backend, block_size
        self.free_blocks = list(range(num_blocks))
        self.free_rows = list(range(num_rows))
        self.step_number = 0
        self.ended: list[int] = []
        self.copies: list[tuple[int, int]] = []
        self.updates: list[BlockUpdate] = []
        self.launched: list[list[tuple[Seq, int]]] = []

    def shuffle(self, seed: int) -> None:
        """Hand out blocks and rows in another order from now on."""
        random.Random(seed).shuffle(self.free_blocks)
        random.Random(seed).shuffle(self.free_rows)

    def add(self, prompt: list[int], sampling: RowSampling = EVERYTHING) -> Seq:
        """A sequence in a free row; it begins with the first step that runs it."""
        return Seq(self.free_rows.pop(0), list(prompt), len(prompt), sampling, [])

    def fork(self, seq: Seq, sampling: RowSampling) -> Seq:
        """A second sequence with the known tokens of the first: whole blocks shared, the last one copied."""
        other = Seq(self.free_rows.pop(0), list(seq.tokens), seq.num_prompt, sampling, list(seq.blocks))
        other.computed = seq.computed
        if seq.computed % self.block_size:
            other.blocks[-1] = self.free_blocks.pop(0)
            self.copies.append((seq.blocks[-1], other.blocks[-1]))
        return other

    def move(self, seq: Seq, index: int) -> None:
        """Replace one of a sequence's blocks by a copy of it."""
        old, new = seq.blocks[index], self.free_blocks.pop(0)
        self.copies.append((old, new))
        self.updates.append(BlockUpdate(seq.row, index, [new]))
        seq.blocks[index] = new
        self.free_blocks.append(old)

    def end(self, seq: Seq, *, shared: int = 0) -> None:
        """Give row and blocks back (not the first `shared` blocks); the backend hears of it with the next step."""
        self.ended.append(seq.row)
        self.free_rows.insert(0, seq.row)
        self.free_blocks[:0] = seq.blocks[shared:]

    def launch(self, shares: list[tuple[Seq, int]], masks: dict[Seq, list[int]] | None = None) -> None:
        """Begin a step that runs so many tokens of each sequence, and samples where all known ones are run then.

        masks: tokens that masked sequences may sample.
        """
        rows, begins, updates, work = [], [], self.updates, []
        for seq, count in shares:
            needed = -(-(seq.computed + count) // self.block_size) - len(seq.blocks)
            new = [self.free_blocks.pop(0) for _ in range(needed)]
            if not seq.begun:
                seq.blocks += new
                begins.append(RowBegin(seq.row, list(seq.tokens), seq.num_prompt, list(seq.blocks), seq.sampling))
                seq.begun = True
            elif new:
                updates.append(BlockUpdate(seq.row, len(seq.blocks), new))
                seq.blocks += new
            sample = count == seq.left
            rows.append(RowStep(seq.row, seq.computed, count, sample))
            seq.computed += count
            if sample:
                work.append((seq, len(seq.tokens)))
                seq.tokens.append(None)
        self.step_number += 1
        plan = StepPlan(
            step=self.step_number,
            rows=rows,
            begins=begins,
            updates=updates,
            ended=self.ended,
            copies=self.copies,
            masked=[seq.row for seq, _ in work if seq.sampling.masked],
        )
        self.ended, self.copies, self.updates = [], [], []
        self.backend.begin(plan)
        if masks is not None:
            self.backend.mask({seq.row: mask_bytes(ids) for seq, ids in masks.items()})
        self.launched.append(work)
        self.of_row = {seq.row: seq for seq, _ in shares}

    def collect(self) -> StepResult:
        """Finish the oldest step and keep what it brought."""
        result = self.backend.finish()
        work = self.launched.pop(0)
        logprobs = result.logprobs or [None] * len(work)
        for (seq, position), token, entry in zip(work, result.tokens, logprobs, strict=True):
            seq.tokens[position] = token
            if entry is not None:
                assert entry.token_ids[0] == token
                seq.sampled[position] = entry
        for row, (first, entries) in result.prompt_logprobs.items():
            self.of_row[row].prompt.update(enumerate(entries, first))
        for row, reason in result.failed.items():
            if row in self.of_row:
                self.of_row[row].failed = reason
        return result

    def step(self, shares: list[tuple[Seq, int]]) -> StepResult:
        """launch and collect."""
        self.launch(shares)
        return self.collect()

    def prefill(self, *seqs: Seq, chunk: int | None = None) -> None:
        """Run the prompts, together, `chunk` tokens of each a step; each samples its first token."""
        while any(seq.computed < seq.num_prompt for seq in seqs):
            todo = [seq for seq in seqs if seq.computed < seq.num_prompt]
            self.step([(seq, min(chunk or seq.left, seq.left)) for seq in todo])

    def decode(self, *seqs: Seq, steps: int) -> None:
        """One token of each sequence a step."""
        for _ in range(steps):
            self.step([(seq, 1) for seq in seqs])


def mask_bytes(ids: list[int], vocab_size: int = VOCAB_SIZE) -> bytes:
    """A bit a token, as Backend.mask takes them."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[ids] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def as_table(entry: TokenLogprobs, vocab_size: int) -> np.ndarray:
    """The log probabilities of a whole vocabulary, by token id."""
    table = np.full(vocab_size, np.nan)
    table[entry.token_ids] = entry.logprobs
    assert not np.isnan(table).any()
    return table


def check_against(seq: Seq, logits: np.ndarray, *, tolerance: float = 1e-4) -> None:
    """Every position whose log probabilities were asked for, of the whole vocabulary, against reference logits.

    logits: [tokens - 1 or more, vocab].
    """
    assert seq.failed is None
    logits = logits.astype(np.float64)
    peak = logits.max(axis=-1, keepdims=True)
    expected = logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
    found = {**seq.prompt, **seq.sampled}
    first = 1 if seq.prompt or seq.sampling.prompt_logprobs is not None else seq.num_prompt
    assert sorted(found) == list(range(first, len(seq.tokens)))
    for position, entry in found.items():
        table = as_table(entry, logits.shape[-1])
        difference = np.abs(table - expected[position - 1]).max()
        assert difference < tolerance, f"position {position}: off by {difference:.2e}"
        token = seq.tokens[position]
        assert entry.token_ids[0] == token
        if position >= seq.num_prompt:
            assert expected[position - 1].max() - expected[position - 1][token] < 2 * tolerance

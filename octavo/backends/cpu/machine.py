"""In: a program, its weights, a batch. Out: hidden states and logits. Owns the registers and the layer caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.backends.cpu import ops
from octavo.backends.cpu.attention import SCORES, AttentionPlan
from octavo.backends.cpu.cache import Cells, copy_blocks, make_cells
from octavo.backends.cpu.program import Instruction, Program
from octavo.backends.cpu.rows import Batch, Span, tail_spans
from octavo.backends.cpu.sampler import Draw, choose
from octavo.backends.cpu.team import Team

LOGIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Heads:
    """Of N tokens: logits [N, vocab], whether all of a row is finite [N], and where its largest comes first [N].

    Good until the next call. logits: nothing where best_only.
    """

    logits: np.ndarray
    finite: np.ndarray
    best: np.ndarray


NO_HEADS = Heads(np.empty((0, 1), np.float32), np.empty(0, np.bool_), np.empty(0, np.int64))


def tail_rows(program: Program, max_tokens: int) -> int:
    """Tokens whose logits are made at once, no more than a step has; 0 in a program without logits."""
    if not program.tail:
        return 0
    return min(max_tokens, max(1, LOGIT_BYTES // (4 * program.tail_registers["tail.logits"][0])))


class Machine:
    """Walks a program with a team. Arrays are made at once but take memory only where they are used."""

    def __init__(
        self,
        program: Program,
        weights: dict[str, np.ndarray],
        *,
        team: Team,
        max_tokens: int,
        max_model_len: int,
        block_size: int,
        kv_cache_dtype: str = "float32",
    ) -> None:
        self.program = program
        self.block_size = block_size
        self.kv_cache_dtype = kv_cache_dtype
        self._team = team
        self.max_tokens = max_tokens
        self.tail_rows = tail_rows(program, max_tokens)
        self._weights = weights
        self._registers = {n: np.empty((max_tokens, *s), np.float32) for n, s in program.registers.items()}
        self._tail = {n: np.empty((self.tail_rows, *s), np.float32) for n, s in program.tail_registers.items()}
        self._scratch = np.empty((team.size, max(SCORES, program.heads * (max_model_len + 1))), np.float32)
        self._inv_freq = [np.array(rope.inv_freq, np.float64) for rope in program.ropes]
        self._caches: dict[str, Cells] = {}
        self._spans: list[Span] = []

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(array.nbytes for array in self._weights.values())

    @property
    def mapped_bytes(self) -> int:
        """Those of them that the system counts as free: all are the process's own."""
        return 0

    @property
    def work_bytes(self) -> int:
        """Bytes that registers may come to take."""
        arrays = (*self._registers.values(), *self._tail.values(), self._scratch)
        return sum(array.nbytes for array in arrays)

    def allocate(self, num_blocks: int) -> None:
        """Make the layer caches: keys.{i} and values.{i}, laid out as attention.py draws them."""
        for i, (kv_heads, dim) in enumerate(self.program.caches):
            shape = (kv_heads, num_blocks, self.block_size, dim)
            for name in (f"keys.{i}", f"values.{i}"):
                self._caches[name] = make_cells(self.kv_cache_dtype, shape, block_size=self.block_size)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """In every layer, as cache.copy_blocks."""
        copy_blocks(self._caches.values(), copies)

    def forward(self, batch: Batch) -> tuple[np.ndarray | None, Heads]:
        """Write the batch's K and V into the cache. Returns which of the states that the last layer reads are finite
        (bool [T]; None where all are) and the heads of its tails; as many as tail_rows."""
        self._spans = batch.spans
        arrays, finite = batch.arrays(), np.ones(batch.num_tokens, np.bool_)
        names = self._names(len(finite)) | {"tokens": arrays.tokens, "slots": arrays.slots, "finite": finite}
        names["plan"] = self._plan(batch.spans)
        for i, rope in enumerate(self.program.ropes):
            names[f"cos.{i}"], names[f"sin.{i}"] = ops.rope_tables(
                arrays.positions, self._inv_freq[i], attention_factor=rope.attention_factor
            )
        names |= {"positions": arrays.positions, "types": arrays.types}
        self._walk(self.program.body, names)
        return (None if finite.all() else finite), self.heads(batch.tails)

    def states(self, count: int) -> np.ndarray:
        """Final states [count, hidden] of the last batch, in a program that pools. Good until the next one."""
        return self._registers[self.program.states][:count]

    def heads(self, tails: list[int], *, best_only: bool = False) -> Heads:
        """The heads of further tokens of the last batch, as many as tail_rows. tails, best_only: as in Batch."""
        if not self.program.tail:
            return NO_HEADS
        names = self._names(self.max_tokens)
        names |= {name: array[: len(tails)] for name, array in self._tail.items()}
        names["plan"] = self._plan(tail_spans(self._spans, tails))
        heads = Heads(names["tail.logits"], np.empty(len(tails), np.bool_), np.empty(len(tails), np.int64))
        if tails:
            self._walk(self.program.tail, names | {"tails": tails, "tails_finite": heads.finite, "best": heads.best})
        return heads

    def draw(self, draws: list[Draw]) -> list[int]:
        """The token of each draw; -1 where none may be drawn."""
        return [choose(draw) for draw in draws]

    def describe(self) -> dict[str, Any]:
        """What runs the model."""
        about = {"threads": self._team.size, "kv_cache_dtype": self.kv_cache_dtype}
        return {"native": False, "variant": "numpy", **about}

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def _plan(self, spans: list[Span]) -> AttentionPlan:
        return AttentionPlan(spans, self.block_size, self.program.heads, self._scratch, self._team)

    def _names(self, tokens: int) -> dict[str, Any]:
        return {name: array[:tokens] for name, array in self._registers.items()} | self._weights | self._caches

    def _walk(self, instructions: tuple[Instruction, ...], names: dict[str, Any]) -> None:
        for instruction in instructions:
            arguments: list[Any] = [None if name is None else names[name] for name in instruction.arguments]
            if instruction.op in ops.BY_OUTPUT:
                self._share(ops.OPS[instruction.op], arguments, instruction.options)
            else:
                ops.OPS[instruction.op](*arguments, **instruction.options)

    def _share(self, op: ops.Op, arguments: list[Any], options: dict[str, Any]) -> None:
        """Run an op of ops.BY_OUTPUT in parts of its outputs."""
        out, x, weight, *bias = arguments
        flat = out.reshape(len(out), -1)

        def part(outputs: slice, _member: int) -> None:
            rest = [None if array is None else array[outputs] for array in bias]
            op(flat[:, outputs], x, weight[:, outputs], *rest, **options)

        self._team.each(part, self._team.parts(weight.shape[1], work=len(x) * weight.size))

"""In: a program, packed weights, a batch. Out: what Machine gives, by one native call a step and one for its draws."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from octavo.backends.cpu import native
from octavo.backends.cpu.cache import Cells, copy_blocks, kernel_axes, make_cells
from octavo.backends.cpu.lower import JOINED, Lowering, short_registers
from octavo.backends.cpu.machine import NO_HEADS, Heads, tail_rows
from octavo.backends.cpu.native import BatchArrays, Lowered, Pool, pointer
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Program
from octavo.backends.cpu.rows import Batch
from octavo.backends.cpu.sampler import Draw


class NativeMachine:
    """Owns the registers and the layer caches, `keys.{i}` and `values.{i}`, as csrc/program.h draws them."""

    def __init__(
        self,
        program: Program,
        packed: Packed,
        *,
        pool: Pool,
        max_tokens: int,
        block_size: int,
        kv_cache_dtype: str = "float32",
    ) -> None:
        self.program = program
        self.block_size = block_size
        self.kv_cache_dtype = kv_cache_dtype
        self.max_tokens = max_tokens
        self.tail_rows = tail_rows(program, max_tokens)
        self._pool = pool
        self._packed = packed
        steps = program.body + program.tail
        short, self._arrays = short_registers(steps, packed), {}
        for rows, registers in ((max_tokens, program.registers), (self.tail_rows, program.tail_registers)):
            for name, shape in registers.items():
                self._arrays[name] = _floats(min(rows, JOINED) if name in short else rows, *shape)
        for i, rope in enumerate(program.ropes):
            self._arrays[f"inv_freq.{i}"] = np.array(rope.inv_freq, np.float64)
            for name in ("cos", "sin"):
                self._arrays[f"{name}.{i}"] = _floats(max_tokens, len(rope.inv_freq))
        self._acts: dict[str, np.ndarray] = {}
        self._caches: dict[str, Cells] = {}
        self._lowered: Lowered | None = None
        # what a step is told and tells; made once, as is its description for native code
        self._known: np.ndarray | None = None
        self._table: np.ndarray | None = None
        self._spans = np.empty((max_tokens, 5), np.int64)
        self._tails = np.empty(self.tail_rows, np.int64)
        self._finite = np.empty(max_tokens, np.bool_)
        self._tails_finite = np.empty(self.tail_rows, np.bool_)
        self._best = np.empty(self.tail_rows, np.int64)
        self._types = np.zeros(max_tokens, np.int64)
        self._typed = any("types" in step.arguments for step in steps)
        self._batch = BatchArrays(
            block_size=block_size,
            spans=pointer(self._spans),
            tails=pointer(self._tails),
            finite=pointer(self._finite),
            tails_finite=pointer(self._tails_finite),
            best=pointer(self._best),
            types=pointer(self._types),
        )
        # what products work in belongs to work_bytes before there is a cache
        body, tail = (
            tuple(step for step in some if step.op in ("linear", "experts", "head"))
            for some in (program.body, program.tail)
        )
        Lowering(self._arrays, packed, self._act, self._room).lower(body, tail)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    @property
    def mapped_bytes(self) -> int:
        """Those of them that the system counts as free."""
        return self._packed.mapped

    @property
    def work_bytes(self) -> int:
        """Bytes that registers may come to take."""
        return sum(array.nbytes for array in (*self._arrays.values(), *self._acts.values()))

    def describe(self) -> dict[str, Any]:
        """What runs the model."""
        about = {"threads": self._pool.size, "kv_cache_dtype": self.kv_cache_dtype}
        return {"native": True, "variant": self._pool.variant, **about}

    def allocate(self, num_blocks: int) -> None:
        """Make the layer caches."""
        for i, (kv_heads, dim) in enumerate(self.program.caches):
            both = kernel_axes(self.kv_cache_dtype, dim=dim, block_size=self.block_size)
            for name, axes in zip((f"keys.{i}", f"values.{i}"), both, strict=True):
                shape = (kv_heads, num_blocks, *axes)
                self._caches[name] = make_cells(self.kv_cache_dtype, shape, block_size=self.block_size)
        factors = tuple(rope.attention_factor for rope in self.program.ropes)
        self._batch.num_blocks = num_blocks
        lowering = Lowering(self._arrays, self._packed, self._act, self._room, self._caches)
        self._lowered = lowering.lower(self.program.body, self.program.tail, factors=factors)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """In every layer, as cache.copy_blocks."""
        copy_blocks(self._caches.values(), copies)

    def forward(self, batch: Batch) -> tuple[np.ndarray | None, Heads]:
        """Write the batch's K and V into the cache. Returns which of the states that the last layer reads are finite
        (bool [T]; None where all are) and the heads of its tails; as many as tail_rows."""
        arrays, width, known = self._batch, batch.blocks.shape[1], batch.tokens.shape[1]
        if batch.tokens is not self._known or batch.blocks is not self._table:  # once, when the rows are new
            self._known, self._table = batch.tokens, batch.blocks
            arrays.known, arrays.table = pointer(batch.tokens), pointer(batch.blocks)
        self._spans[: len(batch.spans)] = [
            (span.first, span.start, span.count, span.row * width, span.row * known) for span in batch.spans
        ]
        arrays.tokens, arrays.num_spans = batch.num_tokens, len(batch.spans)
        if self._typed:
            self._types[: batch.num_tokens] = batch.types()
        heads = self._run(batch.tails, best_only=batch.best_only, body=True)
        return (self._finite[: batch.num_tokens] if arrays.not_finite else None), heads

    def heads(self, tails: list[int], *, best_only: bool = False) -> Heads:
        """The heads of further tokens of the last batch, as many as tail_rows. tails, best_only: as in Batch."""
        return self._run(tails, best_only=best_only, body=False)

    def _run(self, tails: list[int], *, best_only: bool, body: bool) -> Heads:
        if self._lowered is None:
            raise RuntimeError("allocate comes first")
        count = self._batch.num_tails = len(tails)
        self._tails[:count] = tails
        self._batch.best_only = best_only
        self._pool.run(self._lowered, self._batch, body=body)
        if not self.program.tail:
            return NO_HEADS
        return Heads(self._arrays["tail.logits"][:count], self._tails_finite[:count], self._best[:count])

    def states(self, count: int) -> np.ndarray:
        """Final states [count, hidden] of the last batch, in a program that pools. Good until the next one."""
        return self._arrays[self.program.states][:count]

    def draw(self, draws: list[Draw]) -> list[int]:
        """The token of each draw; -1 where none may be drawn."""
        return self._pool.draw(draws)

    def close(self) -> None:
        """End the threads."""
        self._packed.close()
        self._pool.close()

    def _act(self, scheme: str, k: int, tails: bool) -> np.ndarray:
        tokens = self.tail_rows if tails else self.max_tokens
        key = f"{scheme} {k} {tokens}"
        if key not in self._acts:
            size = self._pool.library.oct_act_bytes(native.SCHEME_IDS[scheme], tokens, k)
            self._acts[key] = native.aligned(size)
        return self._acts[key]

    def _room(self, experts: native.Experts) -> np.ndarray:
        """Layers run one after the other: those of one size share it."""
        size = self._pool.library.oct_experts_room(ctypes.byref(experts), self.max_tokens, self._pool.size)
        key = f"experts {size}"
        if key not in self._acts:
            self._acts[key] = native.aligned(size)
        return self._acts[key]


def _floats(*shape: int) -> np.ndarray:
    """float32, not cleared. Aligned: panels that two threads write beside each other share no cache line."""
    return native.aligned(4 * math.prod(shape)).view(np.float32).reshape(shape)

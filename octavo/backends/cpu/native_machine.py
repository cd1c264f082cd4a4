"""In: a program, packed weights, a batch. Out: what Machine gives, by one native call a step and one for its draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.backends.cpu import native
from octavo.backends.cpu.lower import Lowering
from octavo.backends.cpu.machine import LOGIT_BYTES, Heads, small_pages
from octavo.backends.cpu.native import BatchArrays, Lowered, Pool, pointer
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Program
from octavo.backends.cpu.rows import Batch
from octavo.backends.cpu.sampler import Draw


class NativeMachine:
    """Owns the registers and the layer caches: `keys.{i}` [kv_heads, blocks, D, block_size] and
    `values.{i}` [kv_heads, blocks, block_size, D], as csrc/program.h draws them."""

    def __init__(self, program: Program, packed: Packed, *, pool: Pool, max_tokens: int, block_size: int) -> None:
        self.program = program
        self.block_size = block_size
        self.max_tokens = max_tokens
        vocab = program.tail_registers["logits"][0]
        self.tail_rows = max(1, LOGIT_BYTES // (4 * vocab))
        self._pool = pool
        self._packed = packed
        self._arrays = {n: np.empty((max_tokens, *s), np.float32) for n, s in program.registers.items()}
        self._arrays |= {n: np.empty((self.tail_rows, *s), np.float32) for n, s in program.tail_registers.items()}
        for i, rope in enumerate(program.ropes):
            self._arrays[f"inv_freq.{i}"] = np.array(rope.inv_freq, np.float64)
            for name in ("cos", "sin"):
                self._arrays[f"{name}.{i}"] = np.empty((max_tokens, len(rope.inv_freq)), np.float32)
        self._acts: dict[str, np.ndarray] = {}
        self._caches: dict[str, np.ndarray] = {}
        self._lowered: Lowered | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    @property
    def work_bytes(self) -> int:
        """Bytes that registers may come to take."""
        return sum(array.nbytes for array in (*self._arrays.values(), *self._acts.values()))

    def describe(self) -> dict[str, Any]:
        """What runs the model."""
        return {"native": True, "variant": self._pool.variant, "threads": self._pool.size, "kv_dtype": "float32"}

    def allocate(self, num_blocks: int) -> None:
        """Make the layer caches."""
        for i, (kv_heads, dim) in enumerate(self.program.caches):
            self._caches[f"keys.{i}"] = small_pages((kv_heads, num_blocks, dim, self.block_size))
            self._caches[f"values.{i}"] = small_pages((kv_heads, num_blocks, self.block_size, dim))
        factors = tuple(rope.attention_factor for rope in self.program.ropes)
        self._num_blocks = num_blocks
        lowering = Lowering(self._arrays | self._caches, self._packed, self._act)
        self._lowered = lowering.lower(self.program.body, self.program.tail, factors=factors)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy blocks in every layer; all sources are read before a destination is written."""
        sources, destinations = (list(side) for side in zip(*copies, strict=True))
        for cache in self._caches.values():
            cache[:, destinations] = cache[:, sources]

    def forward(self, batch: Batch) -> tuple[np.ndarray, Heads]:
        """Write the batch's K and V into the cache. Returns which of its hidden states are finite, bool [T], and the
        heads of its tails; as many as tail_rows."""
        tokens, blocks = batch.tokens, batch.blocks
        spans = np.array(
            [(s.first, s.start, s.count, s.row * blocks.shape[1], s.row * tokens.shape[1]) for s in batch.spans],
            np.int64,
        )
        finite = np.empty(batch.num_tokens, np.bool_)
        arrays = BatchArrays(
            tokens=len(finite),
            num_spans=len(spans),
            block_size=self.block_size,
            num_blocks=self._num_blocks,
            spans=pointer(spans),
            table=pointer(blocks),
            known=pointer(tokens),
            finite=pointer(finite),
        )
        return finite, self._run(arrays, batch.tails, body=True)

    def heads(self, tails: list[int]) -> Heads:
        """The heads of further tokens of the last batch, as many as tail_rows."""
        return self._run(BatchArrays(), tails, body=False)

    def _run(self, arrays: BatchArrays, tails: list[int], *, body: bool) -> Heads:
        if self._lowered is None:
            raise RuntimeError("allocate comes first")
        logits = self._arrays["logits"][: len(tails)]
        heads = Heads(logits, np.empty(len(tails), np.bool_), np.empty(len(tails), np.int64))
        at = np.array(tails, np.int64)
        arrays.num_tails, arrays.tails = len(tails), pointer(at)
        arrays.tails_finite, arrays.best = pointer(heads.finite), pointer(heads.best)
        self._pool.run(self._lowered, arrays, body=body)
        return heads

    def draw(self, draws: list[Draw]) -> list[int]:
        """The token of each draw; -1 where none may be drawn."""
        return self._pool.draw(draws)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _act(self, scheme: str, k: int, tails: bool) -> np.ndarray:
        tokens = self.tail_rows if tails else self.max_tokens
        key = f"{scheme} {k} {tokens}"
        if key not in self._acts:
            size = self._pool.library.oct_act_bytes(native.SCHEME_IDS[scheme], tokens, k)
            self._acts[key] = native.aligned(size)
        return self._acts[key]

"""In: a program, packed weights, a batch. Out: hidden states and logits, by one native call each; as Machine does."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.backends.cpu import native
from octavo.backends.cpu.cache import Cells, make_cells
from octavo.backends.cpu.lower import Lowered, Lowering
from octavo.backends.cpu.machine import LOGIT_BYTES
from octavo.backends.cpu.native import BatchArrays, Pool, pointer
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Program
from octavo.backends.cpu.rows import Batch


class NativeMachine:
    """Owns the registers and the layer caches: `keys.{i}` [kv_heads, blocks, D, block_size] and
    `values.{i}` [kv_heads, blocks, block_size, D], as csrc/program.h draws them."""

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
        self._caches: dict[str, Cells] = {}
        self._body: Lowered | None = None
        self._tail = self._lowering(self.tail_rows).lower(program.tail)

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
        about = {"threads": self._pool.size, "kv_cache_dtype": self.kv_cache_dtype}
        return {"native": True, "variant": self._pool.variant, **about}

    def allocate(self, num_blocks: int) -> None:
        """Make the layer caches."""
        for i, (kv_heads, dim) in enumerate(self.program.caches):
            for name, axes in ((f"keys.{i}", (dim, self.block_size)), (f"values.{i}", (self.block_size, dim))):
                shape = (kv_heads, num_blocks, *axes)
                self._caches[name] = make_cells(self.kv_cache_dtype, shape, block_size=self.block_size)
        factors = tuple(rope.attention_factor for rope in self.program.ropes)
        self._num_blocks = num_blocks
        self._body = self._lowering(self.max_tokens).lower(self.program.body, factors=factors)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy blocks in every layer; all sources are read before a destination is written."""
        sources, destinations = (list(side) for side in zip(*copies, strict=True))
        for cache in self._caches.values():
            cache.copy_blocks(sources, destinations)

    def forward(self, batch: Batch) -> np.ndarray:
        """Write the batch's K and V into the cache; returns its hidden states [T, hidden], good until the next call."""
        if self._body is None:
            raise RuntimeError("allocate comes first")
        ids, positions, slots = (
            np.ascontiguousarray(array, np.int64) for array in (batch.tokens, batch.positions, batch.slots)
        )
        lengths = [len(span.blocks) for span in batch.spans]
        places = np.cumsum([0, *lengths[:-1]]).tolist()
        spans = np.array(
            [(s.first, s.start, s.count, place) for s, place in zip(batch.spans, places, strict=True)], np.int64
        )
        table = np.concatenate([span.blocks for span in batch.spans]).astype(np.int64, copy=False)
        arrays = BatchArrays(
            tokens=len(ids),
            num_spans=len(spans),
            block_size=self.block_size,
            num_blocks=self._num_blocks,
            ids=pointer(ids),
            positions=pointer(positions),
            slots=pointer(slots),
            spans=pointer(spans),
            table=pointer(table),
        )
        self._pool.run(self._body.groups, self._body.instructions, arrays)
        return self._arrays["x"][: len(ids)]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits [N, vocab] of hidden states [N, hidden], N <= tail_rows; good until the next call."""
        self._arrays["last"][: len(hidden)] = hidden
        self._pool.run(self._tail.groups, self._tail.instructions, BatchArrays(tokens=len(hidden)))
        return self._arrays["logits"][: len(hidden)]

    def scan(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row: whether all is finite, and where its largest value comes first."""
        return self._pool.scan(logits)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _lowering(self, tokens: int) -> Lowering:
        def act(scheme: str, k: int) -> np.ndarray:
            size = self._pool.library.oct_act_bytes(native.SCHEME_IDS[scheme], tokens, k)
            key = f"{scheme} {k} {tokens}"
            if key not in self._acts:
                self._acts[key] = native.aligned(size)
            return self._acts[key]

        return Lowering(self._arrays, self._packed, act, self._caches)

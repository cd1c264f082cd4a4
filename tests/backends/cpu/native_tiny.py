"""For tests of the native kernels: one step of a program run by them, and the instruction sets that run here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from native_remote import HERE, Remote, RemotePool

from octavo.backends.cpu import native
from octavo.backends.cpu.lower import Lowering
from octavo.backends.cpu.native import BatchArrays, Pool, pointer
from octavo.backends.cpu.packed import Matrix, Packed
from octavo.backends.cpu.program import Instruction
from octavo.backends.cpu.rows import Span

VARIANTS = HERE
# ARM has one set of row operations and attention, whatever the variant of the products
TARGETS = [(place, name) for place in ("here", "sanitized") for name in HERE] + [("arm", "scalar")]


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Kernels of one instruction set; skips where this machine has none."""
    if native.library() is None:
        pytest.skip("nothing was compiled")
    if not native.set_variant(name):
        pytest.skip(f"no {name} here")
    yield
    native.set_variant("auto")


@contextmanager
def target(place: str, name: str, remotes: Callable[[str], Remote]) -> Iterator[Pool]:
    """Two threads that run a variant's operations, in this process ("here") or elsewhere; skips where they cannot."""
    if place == "here":
        with variant(name):
            made = Pool(native.library(), 2)
            yield made
            made.close()
        return
    far = remotes(place)
    if far.oct_set_variant(name.encode()) != 0:
        pytest.skip(f"this processor does not run {name}")
    made = RemotePool(far, 2)
    yield made
    made.close()


def pack(pool: Pool, array: np.ndarray) -> tuple[Matrix, ...]:
    """A float32 [n, k] as the only matrix of a pack."""
    n, k = array.shape
    data = pool.pack("F32", memoryview(np.ascontiguousarray(array)).cast("B"), n=n, k=k)
    return (Matrix("F32", n, k, data),)


def run(
    pool: Pool,
    step: Instruction,
    arrays: dict[str, np.ndarray],
    *,
    packed: Packed | None = None,
    tokens: int,
    factors: tuple[float, ...] = (),
    block_size: int = 1,
    **given: Any,
) -> None:
    """One step over named arrays; given: ids, positions, slots, spans, num_blocks."""
    acts: list[np.ndarray] = []

    def act(scheme: str, k: int) -> np.ndarray:
        acts.append(native.aligned(pool.library.oct_act_bytes(native.SCHEME_IDS[scheme], tokens, k)))
        return acts[-1]

    lowered = Lowering(arrays, packed or Packed({}, {}), act).lower((step,), factors=factors)
    spans: list[Span] = given.pop("spans", [])
    places = np.cumsum([0, *[len(span.blocks) for span in spans]]).tolist()
    rows = [(s.first, s.start, s.count, place) for s, place in zip(spans, places, strict=False)]
    table = np.concatenate([span.blocks for span in spans]).astype(np.int64) if spans else None
    kept = {
        name: np.ascontiguousarray(given[name], np.int64) for name in ("ids", "positions", "slots") if name in given
    }
    kept["spans"] = np.array(rows, np.int64)
    if table is not None:
        kept["table"] = table
    batch = BatchArrays(
        tokens=tokens, num_spans=len(spans), block_size=block_size, num_blocks=given.get("num_blocks", 0)
    )
    for name, array in kept.items():
        setattr(batch, name, pointer(array))
    if isinstance(pool, RemotePool):
        given_arrays = [*arrays.values(), *acts, *kept.values()]
        matrices = [matrix.data for pack in packed.matrices.values() for matrix in pack] if packed else []
        pool.reach = [*given_arrays, *matrices, *(packed.vectors.values() if packed else ())]
    pool.run(lowered.groups, lowered.instructions, batch)
    assert ctypes.sizeof(native.Instruction) == pool.library.oct_instruction_bytes()

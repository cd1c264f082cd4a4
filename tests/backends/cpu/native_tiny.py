"""For tests of the native kernels: one step of a program run by them, and the instruction sets that run here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from native_remote import HERE, PLACES, Remote, RemotePool

from octavo.backends.cpu import native
from octavo.backends.cpu.cache import Cells
from octavo.backends.cpu.lower import Lowering
from octavo.backends.cpu.native import BatchArrays, Pool, pointer
from octavo.backends.cpu.packed import Matrix, Packed
from octavo.backends.cpu.program import Instruction
from octavo.backends.cpu.rows import Span

VARIANTS = HERE
# ARM has one set of row operations and attention, whatever the variant of the products
TARGETS = [*(("here", name) for name in HERE), *(("sanitized", name) for name in PLACES["sanitized"].variants)]
TARGETS += [("arm", "scalar")]


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
def here(threads: int) -> Iterator[Pool]:
    """The library that was built, with the kernels of its own choice; skips where nothing was compiled."""
    library = native.library()
    if library is None:
        pytest.skip("nothing was compiled")
    made = Pool(library, threads)
    yield made
    made.close()


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
    step: Instruction | tuple[Instruction, ...],
    arrays: dict[str, np.ndarray],
    *,
    packed: Packed | None = None,
    caches: dict[str, Cells] | None = None,
    tokens: int,
    factors: tuple[float, ...] = (),
    block_size: int = 1,
    **given: Any,
) -> None:
    """One step, or some in turn, over named arrays; given: ids, positions, slots, types, spans, num_blocks, finite.

    With tails, the step is of a program's tail, and tails_finite and best are given, best_only where that is all.
    """
    acts: list[np.ndarray] = []

    def act(scheme: str, k: int, _tails: bool) -> np.ndarray:
        acts.append(native.aligned(pool.library.oct_act_bytes(native.SCHEME_IDS[scheme], tokens, k)))
        return acts[-1]

    def room(experts: native.Experts) -> np.ndarray:
        acts.append(native.aligned(pool.library.oct_experts_room(ctypes.byref(experts), tokens, pool.size)))
        acts[-1].fill(0xFF)  # NaN, wherever it is read before it was written
        return acts[-1]

    lowering, tails = Lowering(arrays, packed or Packed({}, {}), act, room, caches or {}), given.get("tails")
    steps = step if isinstance(step, tuple) else (step,)
    body, tail = (steps, ()) if tails is None else ((), steps)
    lowered = lowering.lower(body, tail, factors=factors)
    spans: list[Span] = given.pop("spans", [])
    places = np.cumsum([0, *[len(span.blocks) for span in spans]]).tolist()
    rows = [(s.first, s.start, s.count, place, 0) for s, place in zip(spans, places, strict=False)]
    table = np.concatenate([span.blocks for span in spans]).astype(np.int64) if spans else None
    names = ("ids", "positions", "slots", "tails", "types")
    kept = {name: np.ascontiguousarray(given[name], np.int64) for name in names if name in given}
    kept |= {name: given[name] for name in ("finite", "tails_finite", "best") if name in given}
    kept["spans"] = np.array(rows, np.int64)
    if table is not None:
        kept["table"] = table
    batch = BatchArrays(
        tokens=tokens,
        num_spans=len(spans),
        num_tails=len(kept.get("tails", ())),
        block_size=block_size,
        num_blocks=given.get("num_blocks", 0),
        best_only=given.get("best_only", False),
    )
    for name, array in kept.items():
        setattr(batch, name, pointer(array))
    if isinstance(pool, RemotePool):
        cells = [array for one in (caches or {}).values() for array in one.arrays]
        matrices = [matrix.data for pack in packed.matrices.values() for matrix in pack] if packed else []
        vectors = packed.vectors.values() if packed else ()
        pool.reach = [*arrays.values(), *acts, *kept.values(), *cells, *matrices, *vectors]
    pool.run(lowered, batch)
    assert ctypes.sizeof(native.Instruction) == pool.library.oct_instruction_bytes()

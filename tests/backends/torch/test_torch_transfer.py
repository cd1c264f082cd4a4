"""Staging memory: pieces apart within a step, the same again after TURNS steps, more than there is from elsewhere."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from octavo.backends.torch.device import transfer
from octavo.backends.torch.device.transfer import ARENA_BYTES, TURNS, Staging, take


def spans(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]


def test_pieces_do_not_overlap_until_their_turn_comes_again() -> None:
    staging = Staging(pinned=False)
    steps = []
    for _ in range(TURNS + 1):
        staging.next_step()
        pieces = [
            staging.take((3, 5), torch.int32),
            staging.take((7,), torch.bool),
            staging.take((0,), torch.int64),
            staging.take((2, 4), torch.int64),
            staging.take((), torch.float32),
        ]
        assert [tuple(piece.shape) for piece in pieces] == [(3, 5), (7,), (0,), (2, 4), ()]
        assert [piece.dtype for piece in pieces[:2]] == [torch.int32, torch.bool]
        steps.append(spans(pieces))
    flat = sorted(span for step in steps[:TURNS] for span in step if span[0] != span[1])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(flat))
    assert steps[TURNS] == steps[0]


def test_what_does_not_fit_has_memory_of_its_own() -> None:
    staging = Staging(pinned=False)
    staging.next_step()
    inside = staging.take((ARENA_BYTES - 64,), torch.uint8)
    beyond = staging.take((1024,), torch.int64)
    beyond.fill_(3)
    last = staging.take((8,), torch.int64)  # the rest of the arena is still there
    assert inside.data_ptr() < last.data_ptr() < inside.data_ptr() + ARENA_BYTES
    assert not inside.data_ptr() <= beyond.data_ptr() < inside.data_ptr() + ARENA_BYTES


def test_the_current_one_is_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is current, memory is of its own."""
    monkeypatch.setattr(transfer, "_empty", lambda shape, dtype, *, pinned: torch.empty(tuple(shape), dtype=dtype))
    outer, inner, other = (Staging(pinned=False) for _ in range(3))
    taken = {}

    def elsewhere() -> None:
        taken["nobody's"] = take((8,), torch.uint8)
        with other.current():
            taken["other"] = take((8,), torch.uint8)

    with outer.current():
        with inner.current():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            taken["inner"] = take((8,), torch.uint8)
        taken["outer"] = take((8,), torch.uint8)
    taken["nobody's after"] = take((8,), torch.uint8)
    of = {
        staging.take((8,), torch.uint8).untyped_storage().data_ptr(): i
        for i, staging in enumerate((outer, inner, other))
    }
    found = {name: of.get(tensor.untyped_storage().data_ptr()) for name, tensor in taken.items()}
    assert found == {"outer": 0, "inner": 1, "other": 2, "nobody's": None, "nobody's after": None}

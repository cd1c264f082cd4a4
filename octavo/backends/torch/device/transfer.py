"""Small host lists up to the device, results back down, neither waiting for the device's work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

TURNS = 3
"""Steps whose transfers may be pending: two that are under way, and the one that is being launched."""

ARENA_BYTES, ALIGNMENT = 4 << 20, 64


class Staging:
    """Page-locked memory for the transfers of one backend's steps, handed out piece by piece: to get some from the
    system may wait for the device. What a step took is handed out again TURNS steps later, when that step was read."""

    def __init__(self, *, pinned: bool = True) -> None:
        self._pinned = pinned
        self._arenas: list[Tensor] = []
        self._turn = self._used = 0

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within, this thread's transfers go through it."""
        before = _current.set(self)
        try:
            yield
        finally:
            _current.reset(before)

    def next_step(self) -> None:
        """A step begins."""
        self._turn, self._used = (self._turn + 1) % TURNS, 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialized host tensor; one of its own where the step's share is used up."""
        if not self._arenas:  # a backend on a CPU needs none
            self._arenas = [_empty((ARENA_BYTES,), torch.uint8, pinned=self._pinned) for _ in range(TURNS)]
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        end = begin + torch.Size(shape).numel() * dtype.itemsize
        if end > ARENA_BYTES:
            return _empty(shape, dtype, pinned=self._pinned)
        self._used = end
        return self._arenas[self._turn][begin:end].view(dtype).view(tuple(shape))


_current: ContextVar[Staging | None] = ContextVar("octavo_staging", default=None)


def take(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As Staging.take of the current one; page-locked memory of its own where none is."""
    staging = _current.get()
    return _empty(shape, dtype, pinned=True) if staging is None else staging.take(shape, dtype)


def _empty(shape: Sequence[int], dtype: torch.dtype, *, pinned: bool) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new device tensor of (nested) host numbers."""
    return _up(torch.tensor(values, dtype=dtype), device)


def upload_array(values: np.ndarray, device: torch.device) -> Tensor:
    """As upload; on a CPU it shares the array's memory."""
    return _up(torch.from_numpy(values), device)


def upload_into(target: Tensor, values: np.ndarray) -> None:
    """target, contiguous, becomes `values` of its shape and type: one copy, when the stream comes to it."""
    host = torch.from_numpy(values)
    if target.device.type != "cpu":
        host = take(host.shape, host.dtype).copy_(host)
    target.copy_(host, non_blocking=True)


def _up(host: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return host
    return take(host.shape, host.dtype).copy_(host).to(device, non_blocking=True)


class Download:
    """Copies of one step's results. `add` all, then `seal`; the host tensors hold numbers after `wait`."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.Event("cuda") if device.type == "cuda" else None

    def add(self, tensor: Tensor) -> Tensor:
        """The host tensor that will hold `tensor`'s numbers; on a CPU `tensor` itself, which nobody may write to."""
        if self._event is None:
            return tensor
        return take(tensor.shape, tensor.dtype).copy_(tensor, non_blocking=True)

    def seal(self) -> None:
        """No more copies follow."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Return once all copies are here."""
        if self._event is not None:
            self._event.synchronize()

"""Small host lists up to the device, results back down, neither waiting for the device's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new device tensor of (nested) host numbers."""
    return _up(torch.tensor(values, dtype=dtype), device)


def upload_array(values: np.ndarray, device: torch.device) -> Tensor:
    """As upload; on a CPU it shares the array's memory."""
    return _up(torch.from_numpy(values), device)


def _up(host: Tensor, device: torch.device) -> Tensor:
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class Download:
    """Copies of one step's results. `add` all, then `seal`; the host tensors hold numbers after `wait`."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.Event("cuda") if device.type == "cuda" else None

    def add(self, tensor: Tensor) -> Tensor:
        """The host tensor that will hold `tensor`'s numbers; on a CPU `tensor` itself, which nobody may write to."""
        if self._event is None:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def seal(self) -> None:
        """No more copies follow."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Return once all copies are here."""
        if self._event is not None:
            self._event.synchronize()

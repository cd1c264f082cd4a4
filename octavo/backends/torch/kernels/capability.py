"""What the GPU can, by its compute capability."""

from __future__ import annotations

from functools import cache

import torch


@cache
def capable(major: int, minor: int) -> bool:
    """Whether it is NVIDIA's and of this compute capability or a later one. Without a GPU, for the interpreter: yes."""
    if not torch.cuda.is_available():
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability() >= (major, minor)

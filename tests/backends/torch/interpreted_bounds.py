"""What Triton's interpreter does not notice: a kernel that reads or writes outside of the tensors it was given.

On a GPU such a read finds a neighbour's bytes, or ends the process where memory ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from triton.runtime import interpreter

_given: list[tuple[int, int]] = []
"""First byte and the one past the last, of each tensor's storage, of the launch under way."""


def install() -> None:
    """From now on it is an IndexError."""
    launch, builder = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder

    def checked_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        _given[:] = set(_storages((*args, *kwargs.values())))
        launch(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = checked_launch
    # of each the pointers, and which argument is the mask
    for name, mask in (("create_masked_load", 1), ("create_masked_store", 2), ("create_atomic_rmw", 3)):
        setattr(builder, name, _checked(getattr(builder, name), name, mask))


def _checked(access: Any, name: str, mask: int) -> Any:
    pointers = 1 if name == "create_atomic_rmw" else 0

    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        at = args[pointers]
        _check(at.data, args[mask].data, at.get_element_ty().primitive_bitwidth // 8, name)
        return access(self, *args, **kwargs)

    return checked


def _check(pointers: np.ndarray, mask: Any, size: int, name: str) -> None:
    used = pointers[np.broadcast_to(np.asarray(mask, bool), pointers.shape)].astype(np.int64)
    outside = np.ones(used.shape, bool)
    for first, end in _given:
        outside &= (used < first) | (used + size > end)
    if outside.any():
        raise IndexError(f"{name}: {outside.sum()} of {used.size} elements lie outside of the kernel's tensors")


def _storages(values: Iterable[Any]) -> Iterable[tuple[int, int]]:
    """Of tensors, and of what descriptors describe."""
    for value in values:
        held = getattr(value, "base", value)
        if hasattr(held, "untyped_storage"):
            storage = held.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()

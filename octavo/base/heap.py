"""In: nothing. Out: memory that this process has freed, handed back to the system where its C library can do that."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Worth it after much was made and freed: what comes later takes over the free memory, pages and all, unused."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if release is not None:
        release(ctypes.c_size_t(0))

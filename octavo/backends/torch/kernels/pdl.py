"""Programmatic dependent launch: a kernel starts while the one before it on the stream ends, and waits for it inside.

What a launch passes in, and the wait inside a kernel. Every program of a kernel waits, before it reads what another
kernel writes and before it writes at all; so that when a kernel has ended, all before it have. Only what no kernel
writes while serving may be read sooner: weights (whose last writer is further back than the kernel just before).
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch
import triton
import triton.language as tl

ON, EARLY, PREFETCH = 1, 2, 4
"""What PDL, a kernel's compile-time number, is the sum of; 0: nothing of this.

ON: wait, and let the next kernel start after that. EARLY: let it start before the wait already, so that several
kernels may stand in line. PREFETCH: kernels that read weights in a loop ask for the first of them before the wait.
"""

MODE = ON
"""What kernels are launched with where the GPU can; 0 turns it off."""


def options() -> Mapping[str, int | bool]:
    """Keyword arguments of a launch: the kernel's PDL, and the launch's own option, which it must go with."""
    return _options(MODE)


@cache
def _options(mode: int) -> Mapping[str, int | bool]:
    if not mode or not _supported():
        return MappingProxyType({"PDL": 0})
    return MappingProxyType({"PDL": mode, "launch_pdl": True})


@cache
def _supported() -> bool:
    """Compute capability 9.0 or above, and kernels that are compiled."""
    if triton.knobs.runtime.interpret or not torch.cuda.is_available():
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


@triton.jit
def wait(PDL: tl.constexpr):
    """Until the kernel before this one has ended and what it wrote is seen; the next one may start."""
    if PDL & 2:
        tl.extra.cuda.gdc_launch_dependents()
    if PDL:
        tl.extra.cuda.gdc_wait()
        if not PDL & 2:
            tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(at):
    """Asks for the 128 bytes at each of these addresses to be brought to the L2 cache; all must be inside a tensor."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )

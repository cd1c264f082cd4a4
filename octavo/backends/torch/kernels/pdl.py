"""Programmatic dependent launch: a kernel starts while the one before it on the stream ends, and waits for it inside.

What a launch passes in, and the wait inside a kernel. Every program of a kernel waits before it writes at all, and
before it reads what the kernel just before may have written; so that when a kernel has ended, all before it have. What
was written by others, three kernels before or more, may be read sooner: weights, a step's plan. (A kernel starts when
the one before it waits no more. With EARLY it may start sooner; of two kernels in a row one may let it.)
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch
import triton
import triton.language as tl

from octavo.backends.torch.kernels.capability import capable

ENABLED = True
"""Whether kernels are launched so where the GPU can."""


def options() -> Mapping[str, bool]:
    """Keyword arguments of a launch: the kernel's PDL, and the launch's own option, which it must go with."""
    return _options(ENABLED)


@cache
def _options(enabled: bool) -> Mapping[str, bool]:
    compiled = torch.cuda.is_available() and not triton.knobs.runtime.interpret
    able = enabled and compiled and capable(9, 0)
    return MappingProxyType({"PDL": True, "launch_pdl": True} if able else {"PDL": False})


@triton.jit
def wait(PDL: tl.constexpr, EARLY: tl.constexpr = False):
    """Until the kernel before this one has ended and what it wrote is seen; the next one may start (EARLY: before)."""
    if PDL:
        if EARLY:
            tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
        if not EARLY:
            tl.extra.cuda.gdc_launch_dependents()

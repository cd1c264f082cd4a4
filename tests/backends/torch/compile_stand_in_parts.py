"""Two kernels that call one function, which has a constant: Triton's key of the second depends on the first's.

As a program it is a worker that never answers.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import triton
import triton.language as tl
from compile_stand_in_called import marked
from torch import Tensor

SHIFT = tl.constexpr(3)
WITH_TORCH = tl.constexpr(torch.version.hip is None)
"""A constant that is another one where torch is absent; ABSENT is then in both kernels."""
ABSENT = tl.constexpr(987654)


def launch_both(out: Tensor, value: float) -> None:
    """Each value is another variant."""
    first[(1,)](out, VALUE=value)
    second[(1,)](out, VALUE=value)


def living(group: int) -> list[str]:
    """Processes of the group, but for those that ended and that nobody waits for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


@triton.jit
def shifted(value):
    return value + SHIFT


@triton.jit
def first(out, VALUE: tl.constexpr):  # noqa: N803
    tl.store(out, marked(shifted(VALUE), ABSENT))


@triton.jit
def second(out, VALUE: tl.constexpr):  # noqa: N803
    tl.store(out + 1, shifted(VALUE) * 2)
    if not WITH_TORCH:
        tl.store(out + 1, ABSENT)


if __name__ == "__main__":
    time.sleep(60)

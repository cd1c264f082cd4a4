"""Python's cyclic garbage collector in a process that serves: what lives as long as it does is not walked again."""

from __future__ import annotations

import gc

_YOUNG = 20_000  # objects made and not freed between two walks; a step of 256 sequences makes about a thousand


def settle_collector() -> None:
    """Call once a process has started: a walk over a tokenizer's tables would hold every stream up for tens of ms.

    What came since is walked whole every tenth time: a cancelled request leaves its frames in cycles, which by Python's
    own hundredth would add up to a hundred megabytes first.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 5, 2)

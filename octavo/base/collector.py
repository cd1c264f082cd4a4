"""Python's cyclic garbage collector in a process that serves: what lives as long as it does is not walked again."""

from __future__ import annotations

import gc

_YOUNG = 100_000  # objects made and not freed between two walks; a request that comes makes a hundred


def settle_collector() -> None:
    """Call once a process has started: a walk over a tokenizer's tables would hold every stream up for tens of ms.

    Requests leave no cycles (tests/server/test_real_engine.py); what else may is found at every tenth walk, not at
    Python's own hundredth, by which it would have added up to hundreds of megabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 5, 2)

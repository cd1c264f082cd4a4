"""Requests that two crashes of the engine ended, known again when a client brings them again: bounded, for a while."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from octavo.base.errors import RequestFailedError
from octavo.base.types.request import Request
from octavo.base.types.sampling import RequestOutputKind

MAX_KNOWN = 1024  # the oldest are forgotten for new ones
KEEP_S = 600.0


class Poison:
    """Two requests are alike in what they ask of the model: token ids, sampling but for the seed, pooling."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, float] = OrderedDict()  # key -> when it is forgotten, the earliest first

    def add(self, request: Request) -> None:
        """Two crashes ended it."""
        key = _key(request)
        self._known[key] = self._clock() + KEEP_S
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def check(self, request: Request) -> None:
        """RequestFailedError for one like those."""
        now = self._clock()
        while self._known and next(iter(self._known.values())) <= now:
            self._known.popitem(last=False)
        if self._known and (until := self._known.get(_key(request))) is not None:
            raise RequestFailedError(
                "the engine process ended twice while a request like this one was under way; it is not tried again "
                f"for {math.ceil(until - now)} s"
            )


def _key(request: Request) -> bytes:
    params = msgspec.structs.replace(request.params, seed=None, output_kind=RequestOutputKind.CUMULATIVE)
    asked = [request.prompt_token_ids, params, request.max_tokens, request.pooling]
    return hashlib.sha256(msgspec.msgpack.encode(asked)).digest()

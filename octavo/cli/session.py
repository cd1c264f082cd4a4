"""What the commands that run a model in this process share: an LLM made from flags, an answer written as it comes."""

from __future__ import annotations

import secrets
import sys
import time
from typing import Any

import msgspec

from octavo.api.llm import LLM
from octavo.api.log import set_up_logging
from octavo.base.config.config import EngineConfig
from octavo.base.errors import RequestFailedError
from octavo.base.types.sampling import RequestOutputKind, SamplingParams
from octavo.cli.flags import take_engine
from octavo.cli.interrupt import second_interrupt_exits


@second_interrupt_exits()
def open_llm(config: EngineConfig) -> LLM:
    """The model; its warnings go to stderr."""
    set_up_logging("WARNING")
    return LLM(config)


def take_varied(values: dict[str, Any]) -> EngineConfig:
    """The EngineConfig of the flags; without --seed, every run draws other answers."""
    values.setdefault("seed", secrets.randbits(31))
    return take_engine(values)


class Speed:
    """Counts one answer's tokens."""

    def __init__(self) -> None:
        self.tokens = 0
        self._start = time.monotonic()
        self._first = 0.0
        self._last = 0.0

    def count(self, tokens: int) -> None:
        """So many more have come."""
        self._last = time.monotonic()
        self._first = self._first or self._last
        self.tokens += tokens

    def line(self, finish_reason: str | None) -> str:
        """For people: tokens, their rate after the first, the time to the first, why it ended."""
        rate = (self.tokens - 1) / (self._last - self._first) if self._last > self._first else 0.0
        speed = f", {rate:.1f} tokens/s" if rate else ""
        first = f", first after {self._first - self._start:.2f} s" if self._first else ""
        why = {"length": ", cut off by the length limit", None: ", stopped"}.get(finish_reason, "")
        return f"[{self.tokens} tokens{speed}{first}{why}]"


@second_interrupt_exits()
def write_answer(llm: LLM, prompt: str | list[int], params: SamplingParams, *, speed: bool, once: bool = True) -> str:
    """Stream one answer to stdout and return it; Ctrl-C ends it and keeps what has come.

    speed: tokens a second go to stderr afterwards.  once: after Ctrl-C, KeyboardInterrupt ends the command, too.
    """
    params = msgspec.structs.replace(params, output_kind=RequestOutputKind.DELTA)
    meter, pieces = Speed(), []
    reason: str | None = None
    interrupted = False
    stream = llm.stream(prompt, params, use_tqdm=True)
    try:
        for output in stream:
            if output.error is not None:
                raise RequestFailedError(output.error)
            for completion in output.outputs:
                meter.count(len(completion.token_ids))
                pieces.append(completion.text)
                sys.stdout.write(completion.text)
                reason = completion.finish_reason
            sys.stdout.flush()
    except KeyboardInterrupt:
        reason, interrupted = None, True
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if speed:
        print(meter.line(reason), file=sys.stderr)
    if interrupted and once:
        raise KeyboardInterrupt
    return "".join(pieces)

"""Progress in, bars out: LoadingBar while a model is read, PromptBar while a prompt is, GenerationBar while a batch
runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from octavo.api.outputs import RequestProgress
from octavo.api.pooling import PoolingProgress

Bar = bool | Callable[..., Any]
"""Whether to show a bar, or what makes one in place of tqdm: called with total, desc and dynamic_ncols."""
QUICK = 128  # tokens of a prompt that are read before anybody wonders


class LoadingBar:
    """A base.types.ports.Progress: one tqdm bar for the bytes of each thing; silent where stderr is no terminal.

    draws: whether it shows bars; what calls it then shows none of its own.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._what = ""
        self.draws = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`."""
        if not self.draws:
            return
        if what != self._what or self._bar is None:
            self._close()
            self._what, self._bar = what, _tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class PromptBar:
    """How much of a prompt has been read, until there is an answer; silent where stderr is no terminal."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._bar: Any = None
        self._total = total
        self._shown = shown and sys.stderr is not None and sys.stderr.isatty()

    def update(self, done: int) -> None:
        """So many of its tokens have been read, or were found in the cache."""
        left = self._total - done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self._shown and left > QUICK:
            name, unit = "Reading the prompt", " tokens"
            self._bar = _tqdm(total=self._total, initial=done, desc=name, unit=unit, leave=False, dynamic_ncols=True)

    def close(self) -> None:
        """There is an answer: take it off the terminal, for good."""
        self._shown = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class GenerationBar:
    """Requests done, with tokens a second of input and output."""

    def __init__(self, count: int, *, shown: Bar) -> None:
        make = shown if callable(shown) else _tqdm
        shows = bool(shown) and count > 0 and sys.stderr is not None  # a process may have none: a daemon, pythonw
        self._bar = make(total=count, desc="Processed prompts", dynamic_ncols=True) if shows else None
        self._start = time.monotonic()
        self._inputs = 0
        self._outputs = 0

    def update(self, row: RequestProgress | PoolingProgress) -> None:
        """Count a row that has ended."""
        if self._bar is None:
            return
        self._inputs += len(row.request.prompt_token_ids)
        self._outputs += row.num_output_tokens
        seconds = max(time.monotonic() - self._start, 1e-6)
        speed = f"input: {self._inputs / seconds:.2f} toks/s, output: {self._outputs / seconds:.2f} toks/s"
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(1)

    def __enter__(self) -> GenerationBar:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _tqdm(**options: Any) -> Any:
    from tqdm import tqdm  # only where a bar is shown

    return tqdm(**options)

"""A batch's RequestOutputs in, as they end; their texts or JSON lines out, in the order of the prompts and at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from io import FileIO
from typing import Any, TextIO

from octavo.base.files import write_whole
from octavo.base.types.output import RequestOutput
from octavo.cli.output import as_path, naming

RANGES = 8  # of numbers that a person reads


class Answers:
    """Writes what `add` is given as soon as all before it are there; `stop` writes the others when no more come.

    path: of a file, emptied when there is a first answer; None: stdout.
    """

    def __init__(self, prompts: Sequence[Any], path: str | None, *, jsonl: bool) -> None:
        self.failed = False
        self._prompts = prompts
        self._path = path
        self._jsonl = jsonl
        self._file: FileIO | None = None
        self._waiting: dict[int, RequestOutput] = {}
        self._next = 0
        self._broken = False
        self._answered: set[int] = set()

    def add(self, output: RequestOutput) -> None:
        """A prompt's output; request ids are the prompts' numbers. OSErrors name the path, which holds whole lines."""
        self._waiting[int(output.request_id)] = output
        while self._next in self._waiting and not self._broken:
            self._write(self._next)
            self._next += 1

    def stop(self) -> str:
        """Write the answers that wait for others; where some prompts have one and some have none, a line that says so.

        In JSON lines a prompt without one, before one that has one, is told as one that failed: places tell prompts.
        """
        with suppress(OSError):  # as told as what ended it
            for number in [] if self._broken else range(self._next, max(self._waiting, default=-1) + 1):
                self._write(number)
        total, done = len(self._prompts), len(self._answered)
        if done in (0, total):
            return ""
        others = _ranges([number + 1 for number in range(total) if number not in self._answered])
        where, again = (f"in {self._path}", " and another --output") if self._path else ("on stdout", "")
        return f"{done} of {total} prompts are answered, {where}; to go on, give it the others ({others}){again}"

    def _write(self, number: int) -> None:
        output = self._waiting.pop(number, None)
        error = "not answered: the run was ended" if output is None else output.error
        if output is not None and error is not None:
            self.failed = True
            with _above_bars(sys.stderr):
                print(f"prompt {number + 1} failed: {error}", file=sys.stderr)
        if not self._jsonl:
            completions = [] if output is None else output.outputs
            self._put("".join(f"{completion.text}\n" for completion in completions))
        else:
            self._put(json.dumps(self._row(number, output, error), ensure_ascii=False) + "\n")
        if error is None:
            self._answered.add(number)

    def _row(self, number: int, output: RequestOutput | None, error: str | None) -> dict[str, Any]:
        given = self._prompts[number]
        text = given.get("prompt") if isinstance(given, dict) else given
        return {
            "prompt": text if output is None else output.prompt,
            "num_prompt_tokens": None if output is None else len(output.prompt_token_ids),
            "error": error,
            "outputs": [
                {
                    "index": completion.index,
                    "text": completion.text,
                    "token_ids": completion.token_ids,
                    "finish_reason": completion.finish_reason,
                    "stop_reason": completion.stop_reason,
                }
                for completion in ([] if output is None else output.outputs)
            ],
        }

    def _put(self, text: str) -> None:
        self._broken = True  # what failed is not tried again: part of it may be there
        if self._path is None:
            with _above_bars(sys.stdout):
                sys.stdout.write(text)
                sys.stdout.flush()
        else:
            with naming(self._path):
                if self._file is None:
                    self._file = as_path(self._path).open("wb", buffering=0)
                write_whole(self._file, text.encode(errors="backslashreplace"))
        self._broken = False

    def close(self) -> None:
        """Of the file, which holds all that was written."""
        if self._file is not None:
            self._file.close()


def _above_bars(stream: TextIO) -> AbstractContextManager[None]:
    """On a terminal, progress bars go on below what is written."""
    if not stream.isatty():
        return nullcontext()
    from tqdm import tqdm

    mode: AbstractContextManager[None] = tqdm.external_write_mode(stream)
    return mode


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 3, 7-9."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found]
    return ", ".join([*shown[:RANGES], *(["..."] if shown[RANGES:] else [])])

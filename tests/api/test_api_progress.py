"""How much of a prompt has been read is shown on a terminal while nothing has come, and on nothing else."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.api import progress
from octavo.api.llm import LLM
from octavo.base.types.sampling import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
STEP = 64


class Bar:
    """tqdm's part that is used."""

    def __init__(self, **options: Any) -> None:
        self.total, self.n, self.seen, self.open = options["total"], options["initial"], [options["initial"]], True

    def update(self, more: int) -> None:
        assert self.open
        self.n += more
        self.seen.append(self.n)

    def close(self) -> None:
        self.open = False


@pytest.fixture(scope="module")
def stepping(llama: str) -> Iterator[LLM]:
    options = {"max_num_batched_tokens": STEP, "max_num_seqs": 8, "kv_cache_memory_bytes": 4 << 20, "threads": 1}
    with LLM(llama, device="cpu", **options) as llm:
        yield llm


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """The bars that are made from now on; stderr is a terminal."""
    made: list[Bar] = []

    def make(**options: Any) -> Bar:
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr(progress, "_tqdm", make)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return made


def prompt(length: int, first: int) -> list[int]:
    return [first] + [5 + number % 50 for number in range(length - 1)]


def test_a_prompt_is_shown_step_by_step_until_its_answer(stepping: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = watch(monkeypatch)
    stream = stepping.stream(prompt(200, 5), PARAMS, use_tqdm=True)
    next(stream)
    (bar,) = bars
    assert (bar.total, bar.open, list(dict.fromkeys(bar.seen))) == (200, False, [0, 64, 128, 192, 200])
    assert len(list(stream)) == 3
    assert len(bars) == 1
    list(stepping.stream([*prompt(200, 5)[:32], *prompt(200, 9)], PARAMS, use_tqdm=True))
    assert bars[1].seen[0] == 32  # found in the cache


def test_what_is_read_at_once_and_what_no_terminal_shows(stepping: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = watch(monkeypatch)
    list(stepping.stream(prompt(progress.QUICK, 6), PARAMS, use_tqdm=True))
    list(stepping.stream(prompt(200, 7), PARAMS))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    list(stepping.stream(prompt(200, 8), PARAMS, use_tqdm=True))
    assert not bars


def test_what_is_loaded_is_told_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_tqdm", lambda **given: options.append(given) or Bar(initial=0, **given))
    with progress.LoadingBar() as bar:
        bar("weights", 0, 10)
    assert [(given["desc"], given["unit"], given["leave"]) for given in options] == [("weights", "B", False)]


def test_an_interrupt_takes_the_bar_away(stepping: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = watch(monkeypatch)

    def interrupt(self: Bar, more: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(stepping.stream(prompt(200, 10), PARAMS, use_tqdm=True))
    assert not bars[0].open
    assert stepping._engine is not None
    assert stepping._engine.stats().num_running == 0

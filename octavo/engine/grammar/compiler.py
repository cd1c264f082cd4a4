"""The grammar port: StructuredOutputsParams in, Grammars out, compiled on threads: nothing waits but the request.

The library is imported, and the vocabulary read, when the first grammar is asked for.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from octavo.base.errors import OctavoError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.grammar import Grammar, GrammarError, Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_KEPT = 32  # compiled grammars
MAX_KEPT_BYTES = 4 << 20  # and of what they were made of
COMPILE_THREADS = 2
MOST_MASK_THREADS = 8
STACK_BYTES = 16 << 20  # of the threads here: the library recurses


class Compiler:
    """grammar.Grammars. make_vocabulary: called once, on a thread. The last few grammars are kept compiled."""

    def __init__(self, make_vocabulary: Callable[[], Vocabulary]) -> None:
        self._make_vocabulary = make_vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._refusal: OctavoError | None = None
        self._special: frozenset[str] = frozenset()
        self._mask_bytes = 0
        self._kept: OrderedDict[bytes, Future[LLMatcher]] = OrderedDict()  # the last may be under way
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._compilers: ThreadPoolExecutor | None = None
        self._maskers: ThreadPoolExecutor | None = None
        self._mask_threads = max(1, min(MOST_MASK_THREADS, (os.cpu_count() or 1) // 2))

    def compile(self, params: StructuredOutputsParams) -> Future[Grammar]:
        """A Grammar at its beginning, for one sequence; the same params again are quick."""
        if self._compilers is None:
            self._compilers = _threads(COMPILE_THREADS, "octavo-grammar")
        return self._compilers.submit(self._compile, params)

    def masks(self, grammars: Sequence[Grammar]) -> list[bytes | GrammarError]:
        """Each one's mask, computed side by side."""
        if len(grammars) < 3 or self._mask_threads == 1:
            return _masks(grammars)
        if self._maskers is None:
            self._maskers = _threads(self._mask_threads, "octavo-mask")
        share = -(-len(grammars) // self._mask_threads)
        parts = [grammars[at : at + share] for at in range(0, len(grammars), share)]
        return [mask for part in self._maskers.map(_masks, parts) for mask in part]

    def close(self) -> None:
        """End the threads after what they are at."""
        for pool in (self._compilers, self._maskers):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, params: StructuredOutputsParams) -> Grammar:
        from octavo.engine.grammar.llguidance import LlguidanceGrammar, compile_matcher

        tokenizer = self._open()
        key = msgspec.msgpack.encode(params)
        made, first = self._entry(key)
        if first:
            try:
                made.set_result(compile_matcher(tokenizer, params, self._special))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                made.set_exception(error)
        try:
            return LlguidanceGrammar(made.result().deep_copy(), self._mask_bytes)
        finally:
            del made  # its error holds this frame: a cycle would be left to the collector

    def _entry(self, key: bytes) -> tuple[Future[LLMatcher], bool]:
        """What is kept of a grammar, and whether it is new: then it is to be made."""
        with self._lock:
            made = self._kept.get(key)
            first = made is None
            if made is None:
                made = self._kept[key] = Future()
                while len(self._kept) > MAX_KEPT or sum(map(len, self._kept)) > MAX_KEPT_BYTES:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        return made, first

    def _open(self) -> LLTokenizer:
        from octavo.engine.grammar.llguidance import make_tokenizer

        with self._opening:
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)  # else it would hold the frames of everyone who was refused
            if self._tokenizer is None:
                try:
                    vocabulary = self._make_vocabulary()
                    self._special = frozenset(vocabulary.special)
                    self._mask_bytes = -(-vocabulary.size // 32) * 4
                    self._tokenizer = make_tokenizer(vocabulary)
                except OctavoError as error:
                    self._refusal = error
                    raise
            return self._tokenizer


def _masks(grammars: Sequence[Grammar]) -> list[bytes | GrammarError]:
    return [_mask(grammar) for grammar in grammars]


def _mask(grammar: Grammar) -> bytes | GrammarError:
    try:
        return grammar.mask()
    except GrammarError as error:
        return error


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads have all started, with stacks of STACK_BYTES."""
    pool = ThreadPoolExecutor(count, name)
    before = threading.stack_size(STACK_BYTES)
    try:
        barrier = threading.Barrier(count + 1)
        for _ in range(count):
            pool.submit(barrier.wait)
        barrier.wait()
    finally:
        threading.stack_size(before)
    return pool

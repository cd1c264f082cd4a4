"""The port behind which grammars are compiled and followed: what a request asks for in, which tokens may come out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from octavo.base.errors import OctavoError
from octavo.base.types.structured import StructuredOutputsParams


@dataclass(frozen=True)
class Vocabulary:
    """What a grammar must know of the tokens.

    tokens: by id, what each adds to a text (b"": nothing).  special: control tokens, spelling -> id; a grammar can name
    them, and no text is made of them.  eos_token_ids: what ends a text.  size: of the model's logits.
    """

    tokens: Sequence[bytes] = field(repr=False)
    special: dict[str, int]
    eos_token_ids: tuple[int, ...]
    size: int


class GrammarError(OctavoError):
    """A row's grammar cannot go on: a limit was met, or a token came that it does not admit."""


class Grammar(Protocol):
    """Where one sequence stands in its grammar: a function of the tokens that were taken."""

    num_taken: int

    def take(self, tokens: Sequence[int]) -> None:
        """Go on by these tokens. Raises GrammarError."""

    def over(self) -> bool:
        """True if nothing but the end of the text may follow."""

    def mask(self) -> bytes:
        """ceil(vocab / 32) * 4 bytes: bit i % 8 of byte i // 8 says whether token i may follow. Raises GrammarError.

        May be called in another thread, while nothing else is called.
        """


class Grammars(Protocol):
    """Compiles, on threads of its own. Futures give a Grammar at its beginning, or raise InputError."""

    def compile(self, params: StructuredOutputsParams) -> Future[Grammar]: ...
    def masks(self, grammars: Sequence[Grammar]) -> list[bytes | GrammarError]: ...
    def close(self) -> None: ...

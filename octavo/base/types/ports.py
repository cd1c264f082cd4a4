"""The borders that more than one implementation stands behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

import msgspec

from octavo.base.types.plan import StepPlan, StepResult


class DeviceMemory(msgspec.Struct, frozen=True):
    """Bytes of the device: all, free for the cache now, and held by weights."""

    total: int
    free: int
    weights: int


Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called while something long goes on; may be called from any thread."""


class Executor(Protocol):
    """Carries plans to devices: what the engine sees of them; engine/fake is another.

    `begin` returns at once and steps run in the order begun; `finish` waits for the oldest.
    """

    def begin(self, plan: StepPlan) -> None:
        """Start a step; at most two are begun and unfinished."""

    def mask(self, masks: dict[int, bytes]) -> None:
        """Masks for plan.masked of the step that was begun last, by row; returns at once, as begin does.

        Bit i % 8 of byte i // 8 says whether token i may be sampled, in ceil(vocab / 32) * 4 bytes. A row without one
        fails; all of them do where the next begin, or finish of the step, comes first.
        """

    def finish(self) -> StepResult:
        """Wait for the oldest unfinished step. Raises only if the whole step failed."""

    def call(self, name: str, **arguments: Any) -> Any:
        """Rare things by name; UnsupportedError for a name it does not know."""

    def close(self) -> None:
        """Free everything; idempotent."""


class Backend(Executor, Protocol):
    """One device."""

    def load(self, spec: Any, weights: Any, progress: Progress | None = None) -> None:
        """Take a models.spec.ModelSpec and a base.types.tensor.Weights onto the device."""

    def memory(self) -> DeviceMemory:
        """Bytes now; called after load."""

    def allocate(self, num_blocks: int) -> None:
        """Make the KV cache; called once, before the first begin."""


class TextStream(Protocol):
    """Text that grows token by token (text/pieces.py)."""

    def feed(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class TextTokenizer(Protocol):
    """What api and server need of a tokenizer (text/tokenizer.py)."""

    vocab_size: int
    eos_token_ids: list[int]
    special_tokens: dict[str, str]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def encode_whole(
        self, first: str, second: str | None = None, *, longest: int | None = None
    ) -> tuple[list[int], int]: ...
    def cut(self, text: str, longest: int) -> str: ...
    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str: ...
    def special_ids(self) -> Mapping[str, int]: ...
    def token_to_id(self, token: str) -> int | None: ...
    def token_strings(self, ids: Sequence[int]) -> list[str]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        kept_tokens: Set[int] = frozenset(),
    ) -> TextStream: ...

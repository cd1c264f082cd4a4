"""Deltas to an answer's calls in; its calls, or what came to them since the last time, out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.base.types.output import ToolCall, ToolCallStatus


@dataclass
class _Call:
    name: str
    id: str | None
    index: int
    status: ToolCallStatus
    text_offset: int
    pieces: list[str]


class JoinedCalls:
    """The calls of one answer. Deltas to one call stand together, as the parser gives them."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def add(self, deltas: Iterable[ToolCall]) -> None:
        """More of them."""
        for delta in deltas:
            call = self._calls[-1] if self._calls else None
            if call is None or call.index != delta.index:
                call = _Call(delta.name, delta.id, delta.index, delta.status, delta.text_offset, [])
                self._calls.append(call)
            call.status = delta.status
            call.pieces.append(delta.arguments)

    def take(self, *, delta: bool) -> list[ToolCall]:
        """All calls; delta: what came since the last time."""
        shown = []
        for call in self._calls:
            call.pieces = ["".join(call.pieces)]
            shown.append(ToolCall(call.name, call.pieces[0], call.id, call.index, call.status, call.text_offset))
        if delta:
            self._calls = []
        return shown

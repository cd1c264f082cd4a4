"""truncation="auto": a conversation that the context does not hold in, the same without its beginning out.

What goes is messages from the beginning, whole: turns of the user with all that followed them, then of the last turn
its calls with their outputs. Instructions (system, developer), the user's last message and what came last stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from octavo.server.openai.conversation import render
from octavo.server.openai.types import ChatRequest, Message
from octavo.server.services import Services

_INSTRUCTIONS = ("system", "developer")
_ROOM = 4  # a conversation that is cut leaves the answer a part in so many of the context, or max_tokens if fewer


def is_too_long(services: Services, num_tokens: int) -> bool:
    """True if a prompt of so many tokens leaves no room for one more."""
    return num_tokens >= int(services.llm.info["max_model_len"])


async def truncated(services: Services, request: ChatRequest, *, max_tokens: int | None) -> ChatRequest:
    """The request with as little left out as makes it fit with its answer; with all that can be where nothing does."""
    most = int(services.llm.info["max_model_len"])
    room = most - min(most // _ROOM, max_tokens or most)
    starts, turn = _starts(request.messages)
    low, high = 0, len(starts) - 1
    while low < high:  # the first that fits
        middle = (low + high) // 2
        fits = len(await render(services, _without(request, starts[middle], turn))) <= room
        low, high = (low, middle) if fits else (middle + 1, high)
    return _without(request, starts[low], turn) if starts else request


def _starts(messages: Sequence[Message]) -> tuple[list[int], int]:
    """Where the conversation may begin, in order, and where its last turn does: no output's call is left out."""
    turn, starts = 0, list[int]()
    outputs = {message.tool_call_id: index for index, message in enumerate(messages) if message.role == "tool"}
    before, answered = "", -1
    for index, message in enumerate(messages):
        if message.role in _INSTRUCTIONS:
            continue
        begins = message.role == "user" and before != "user"
        if begins:
            turn = index
        if before and (begins or (message.role == "assistant" and before != "user")) and answered < index:
            starts.append(index)
        answered = max([answered, *(outputs.get(call.id, -1) for call in message.tool_calls or [])])
        before = message.role
    return [start for start in starts if messages[start].role == "user" or start > turn], turn


def _without(request: ChatRequest, start: int, turn: int) -> ChatRequest:
    """Without what stands before the start, but for instructions and the user's message of the last turn."""
    kept = [
        message
        for index, message in enumerate(request.messages)
        if index >= start or message.role in _INSTRUCTIONS or (index >= turn and message.role == "user")
    ]
    return msgspec.structs.replace(request, messages=kept)

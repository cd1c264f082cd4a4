"""`context_management` of a Messages request: what its edits take from the conversation before the model reads it."""

from __future__ import annotations

import msgspec

from octavo.base.errors import UnsupportedError
from octavo.server.anthropic.types import ClearThinking, MessageParam, PromptRequest, ThinkingBlock, TurnsKept
from octavo.server.services import Services


def edited(services: Services, request: PromptRequest) -> list[MessageParam]:
    """The messages without the thinking that was to be cleared; UnsupportedError where results of calls might be."""
    messages = request.messages
    edits = [] if request.context_management is None else request.context_management.edits
    longest = services.llm.info.get("max_model_len") or 0
    for index, edit in enumerate(edits):
        if isinstance(edit, ClearThinking):
            messages = _without_thinking(messages, edit.keep.value) if isinstance(edit.keep, TurnsKept) else messages
        elif edit.trigger.type != "input_tokens" or edit.trigger.value < longest:
            name = f"context_management.edits[{index}]"
            raise UnsupportedError(
                f"{name}: results of calls are not cleared here, and a prompt may have {longest} tokens; clear them "
                f"yourself, or send a trigger of at least as many input_tokens, got {edit.trigger.value} "
                f"{edit.trigger.type}",
                param=name,
            )
    return messages


def _without_thinking(messages: list[MessageParam], kept: int) -> list[MessageParam]:
    holders = [i for i, turn in enumerate(messages) if any(isinstance(block, ThinkingBlock) for block in turn.content)]
    found = list(messages)
    for i in holders[:-kept]:
        blocks = [block for block in messages[i].content if not isinstance(block, str | ThinkingBlock)]
        found[i] = msgspec.structs.replace(messages[i], content=blocks)
    return found

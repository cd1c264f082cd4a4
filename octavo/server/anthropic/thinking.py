"""`thinking` of a Messages request in; what the chat template and what the client are told of it out."""

from __future__ import annotations

import msgspec

from octavo.base.errors import UnsupportedError
from octavo.server.anthropic.types import Thinking, ThinkingDisabled, ThinkingEnabled
from octavo.server.openai.conversation import known_reasoning, switched, template_source
from octavo.server.openai.types import ChatRequest
from octavo.server.services import Services
from octavo.text.tools.bound import can_bound


def is_told(thinking: Thinking | None) -> bool:
    """True if the answer shall hold what the model thought."""
    return not isinstance(thinking, ThinkingDisabled | None) and thinking.display != "omitted"


def with_thinking(services: Services, thinking: Thinking | None, chat: ChatRequest) -> ChatRequest:
    """The chat with reasoning on or off, where the template can turn it, and bounded, where it can be counted.

    Without `thinking` it is off, as in Anthropic's protocol. UnsupportedError where it must be, and there is none at
    all. An effort of "high" is the protocol's default, which Claude Code always spells out: where the template knows
    no efforts it asks for nothing.
    """
    source = template_source(services, chat)
    if chat.reasoning_effort == "high" and "reasoning_effort" not in source:
        chat = msgspec.structs.replace(chat, reasoning_effort=None)
    asked = not isinstance(thinking, ThinkingDisabled | None)
    if isinstance(thinking, ThinkingEnabled):
        reasoning, tokenizer = known_reasoning(services, source), services.llm.tokenizer
        if reasoning is None:
            raise UnsupportedError(
                "thinking is not supported by this model: its answers mark no reasoning", param="thinking"
            )
        size = services.llm.model.spec.vocab_size
        if tokenizer is not None and can_bound(reasoning, tokenizer, vocab_size=size):
            chat = msgspec.structs.replace(chat, thinking_token_budget=thinking.budget_tokens)
    switches = switched(source, asked)
    return msgspec.structs.replace(chat, chat_template_kwargs=switches) if switches else chat

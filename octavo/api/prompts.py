"""Prompts and conversations in any of the accepted forms in, Prompt rows and lists of messages out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from octavo.base.errors import InputError
from octavo.base.types.ports import TextTokenizer


class TextPrompt(TypedDict, total=False):
    """A prompt as text."""

    prompt: str
    cache_salt: str


class TokensPrompt(TypedDict, total=False):
    """A prompt as token ids."""

    prompt_token_ids: list[int]
    cache_salt: str


PromptType = str | list[int] | TextPrompt | TokensPrompt


@dataclass(frozen=True)
class Prompt:
    """Exactly one of text and token_ids is set, or both where the text is known as well."""

    text: str | None
    token_ids: list[int] | None
    cache_salt: str = ""

    def ids(self, tokenizer: TextTokenizer | None) -> list[int]:
        """The token ids; InputError where text comes and there is no tokenizer."""
        if self.token_ids is not None:
            return self.token_ids
        if tokenizer is None:
            raise InputError("the prompt is text and skip_tokenizer_init is set; give token ids", param="prompt")
        return tokenizer.encode(self.text or "")


SHORT = 2000  # characters: about half a millisecond's work, three where they are chosen to be slow
SHORT_AMONG_MANY = 200  # where streams by the hundred want that time: handing these to a thread takes no less
_EACH = 16  # characters that a message's field counts as beside its own

_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


def parse_prompts(prompts: PromptType | Sequence[PromptType]) -> list[Prompt]:
    """One prompt (text, token ids or a dict) or a list of them. InputError names what is none."""
    if isinstance(prompts, str | dict):
        return [parse_prompt(prompts)]
    if not isinstance(prompts, list | tuple):
        raise InputError(f"prompts must be text, token ids, a dict or a list, got {_kind(prompts)}", param="prompts")
    if prompts and all(isinstance(item, int) for item in prompts):
        return [parse_prompt(prompts)]
    return [parse_prompt(item) for item in prompts]


def parse_prompt(prompt: Any) -> Prompt:
    """One prompt; its token ids are checked later, against the vocabulary."""
    if isinstance(prompt, str):
        return Prompt(prompt, None)
    if isinstance(prompt, list | tuple):
        return Prompt(None, list(prompt))
    if not isinstance(prompt, Mapping):
        raise InputError(f"a prompt must be text, token ids or a dict, got {_kind(prompt)}", param="prompts")
    unknown = [key for key in prompt if key not in _KEYS]
    if unknown:
        known = ", ".join(_KEYS)
        raise InputError(f"a prompt's key {unknown[0]!r} is not supported; known are {known}", param="prompts")
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is None and ids is None:
        raise InputError("a prompt needs the key prompt (text) or prompt_token_ids", param="prompts")
    if text is not None and not isinstance(text, str):
        raise InputError(f"a prompt's text must be a string, got {_kind(text)}", param="prompts")
    if isinstance(ids, Mapping):
        raise InputError(
            "prompt_token_ids must be a list of integers, got a tokenizer's lists by name; give their input_ids, as "
            "apply_chat_template(..., return_dict=False) has them",
            param="prompts",
        )
    if ids is not None and not isinstance(ids, list | tuple):
        raise InputError(f"prompt_token_ids must be a list of integers, got {_kind(ids)}", param="prompts")
    return Prompt(text, None if ids is None else list(ids), prompt.get("cache_salt") or "")


def _kind(value: object) -> str:
    return type(value).__name__


def parse_conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """One conversation (a list of messages) or a list of them; every message a dict with a role."""
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError("messages must be a non-empty list of messages, or a list of such lists", param="messages")
    nested = isinstance(messages[0], list | tuple)
    conversations = [list(one) for one in messages] if nested else [list(messages)]
    for conversation in conversations:
        if not conversation:
            raise InputError("messages holds an empty conversation", param="messages")
        for message in conversation:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise InputError(
                    'every message must be a dict with a role, such as {"role": "user", "content": "Hello"}',
                    param="messages",
                )
    return [[dict(message) for message in conversation] for conversation in conversations]


def is_short(conversation: list[dict[str, Any]], options: Mapping[str, Any], *, longest: int) -> bool:
    """True where to render and tokenize it takes less than two handings over to a thread and back may take.

    longest: characters that do, SHORT or SHORT_AMONG_MANY.  options: Model.render_chat's; a template of the request's
    own is to be compiled, and tools make long prompts.
    """
    size = 0
    for message in conversation:
        for value in message.values():
            if not isinstance(value, str):
                return False
            size += len(value) + _EACH
    if size > longest or options.get("tools") or options.get("chat_template"):
        return False
    return all(isinstance(value, bool) for value in (options.get("chat_template_kwargs") or {}).values())


def spread(name: str, value: Any, count: int, default: Any) -> list[Any]:
    """One value for all of `count` prompts, or a list of as many; None: the default for all."""
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise InputError(f"{name} holds {len(value)} values for {count} prompts; give one, or as many", param=name)
        return list(value)
    return [default if value is None else value] * count

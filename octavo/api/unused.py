"""Arguments of vLLM's methods that have no use here: taken where they ask for nothing, else refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.base.errors import ConfigError, UnsupportedError

OF_CALLS = ("lora_request", "tokenization_kwargs")
OF_CHATS = (*OF_CALLS, "mm_processor_kwargs", "chat_template_content_format")

# name -> what asks for nothing, beside None and an empty value; the remedy
_UNUSED: dict[str, tuple[Any, str]] = {
    "lora_request": (None, "there are no adapters; merge them into the model's weights"),
    "tokenization_kwargs": (None, "tokenize by get_tokenizer() and give token ids"),
    "mm_processor_kwargs": (None, "prompts are text alone"),
    "chat_template_content_format": ("auto", "it is found out by trial; leave it out"),
    "reset_running_requests": (None, "wait for them, or abort them, first"),
    "reset_connector": (None, "there is no connector; leave it out"),
    "mode": ("abort", "requests under way are ended; leave it out"),
    "tags": (None, "weights and cache are loaded together; leave it out"),
}


def check_unused(given: Mapping[str, Any], *names: str) -> None:
    """TypeError for an argument that is none of `names`, UnsupportedError for one of them that asks for something."""
    for name, value in given.items():
        if name not in names:
            raise TypeError(f"unexpected keyword argument {name!r}")
        nothing, remedy = _UNUSED[name]
        if value and value != nothing:
            raise UnsupportedError(f"{name}={value!r:.80} is not supported: {remedy}", param=name)


def check_sleep(level: int, mode: str) -> None:
    """ConfigError for a level that is none; UnsupportedError for a mode but abort."""
    if level not in (1, 2):
        raise ConfigError(f"level must be 1 or 2, got {level!r:.80}", param="level")
    check_unused({"mode": mode}, "mode")


def check_wake_up(tags: list[str] | None) -> None:
    """UnsupportedError for tags."""
    check_unused({"tags": tags}, "tags")


def check_reset(reset_running_requests: bool, reset_connector: bool) -> None:
    """UnsupportedError where either is asked for."""
    given = {"reset_running_requests": reset_running_requests, "reset_connector": reset_connector}
    check_unused(given, *given)

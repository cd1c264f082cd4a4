"""Which conversations are rendered at once, and which are handed to a thread."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.api.prompts import SHORT, SHORT_AMONG_MANY, is_short

SAID = {"role": "user", "content": "x" * 100}


@pytest.mark.parametrize(
    ("conversation", "options", "short"),
    [
        ([SAID], {}, True),
        ([SAID], {"tools": None, "chat_template": None, "chat_template_kwargs": {"enable_thinking": False}}, True),
        ([SAID] * (SHORT // 136), {}, True),
        ([SAID] * (SHORT // 100), {}, False),
        ([{"role": "user", "content": ""}] * SHORT, {}, False),
        ([{"role": "user", "content": "x" * SHORT}], {}, False),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], {}, False),
        ([SAID], {"tools": [{}]}, False),
        ([SAID], {"chat_template": "{{ messages }}"}, False),
        ([SAID], {"chat_template_kwargs": {"documents": []}}, False),
    ],
)
def test_short(conversation: list[dict[str, Any]], options: dict[str, Any], short: bool) -> None:
    assert is_short(conversation, options, longest=SHORT) is short


def test_fewer_are_short_among_many() -> None:
    assert is_short([SAID], {}, longest=SHORT_AMONG_MANY)
    assert not is_short([SAID] * 2, {}, longest=SHORT_AMONG_MANY)

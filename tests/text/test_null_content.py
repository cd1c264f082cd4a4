"""Null in messages: as the content of turns that only call tools, which not every template takes, and in fields."""

from __future__ import annotations

import pytest

from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer

CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": {}}}
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
CALLS = "{% for c in m.tool_calls or [] %}({{ c.function.name }}){% endfor %}"

READINGS = [
    # how a template reads the content; what comes of null
    ("{{ m.content }}", "(f)"),  # it would be printed
    ("{{ m.content | tojson }}", '""(f)'),
    ("{{ m.content.strip() }}", "(f)"),  # it would fail
    ("{% if '</think>' in m.content %}thought{% endif %}", "(f)"),
    ("{{ raise_exception('no') if m.content is not string }}", "(f)"),
    ("{{ m.content or '-' }}", "-(f)"),
    ("{% if m.content is none %}bare{% endif %}", "bare(f)"),  # calls are told by it
    ("{% if m.role == 'assistant' and m.content is none %}bare{% else %}{{ m.content | trim }}{% endif %}", "bare(f)"),
]


@pytest.mark.parametrize(("reading", "expected"), READINGS)
def test_null_is_empty_where_the_template_cannot_take_it(reading: str, expected: str, byte_level: Tokenizer) -> None:
    source = "{% for m in messages %}|" + reading + CALLS + "{% endfor %}"
    assert ChatTemplate(source, byte_level).render(MESSAGES).split("|")[2] == expected


def test_calls_that_null_would_hide(byte_level: Tokenizer) -> None:
    source = "{% for m in messages if m.content is string %}[{{ m.content }}" + CALLS + "]{% endfor %}"
    assert ChatTemplate(source, byte_level).render(MESSAGES) == "[hello][(f)]"


def test_an_empty_list_where_contents_are_lists(byte_level: Tokenizer) -> None:
    source = "{% for m in messages %}[{% for part in m.content %}{{ part.text }}{% endfor %}" + CALLS + "]{% endfor %}"
    assert ChatTemplate(source, byte_level).render(MESSAGES) == "[hello][(f)]"


def test_fields_that_are_null_are_not_there(byte_level: Tokenizer) -> None:
    """As openai's objects have them when they are sent back."""
    source = "{% for m in messages %}{{ m.name is defined }}{{ 'tool_calls' in m }}{{ 'reasoning' in m }}{% endfor %}"
    message = {"role": "assistant", "content": "a", "name": None, "tool_calls": None, "reasoning": None}
    assert ChatTemplate(source, byte_level).render([message]) == "FalseFalseFalse"

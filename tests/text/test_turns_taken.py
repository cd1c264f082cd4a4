"""Turns that templates refuse or lose: the system's behind the first, and the user's behind another of the user's."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import GEMMA3

from octavo.base.errors import InputError
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer

EACH = "{% for m in messages %}({{ m.role[0] }}:{{ m.content }}){% endfor %}"
FIRST_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first!') }}{% endif %}"
    "({{ m.role[0] }}:{{ m.content }}){% endfor %}"
)
LOSES = (
    "{% set m = messages[0] %}{% if m.role in ('system', 'developer') %}({{ m.role[0] }}:{{ m.content }}){% endif %}"
    "{% for m in messages if m.role in ('user', 'assistant') %}({{ m.role[0] }}:{{ m.content }}){% endfor %}"
)
LAST_WINS = (
    "{% set found = namespace(text='') %}{% for m in messages if m.role == 'system' %}{% set found.text = m.content %}"
    "{% endfor %}(s:{{ found.text }}){% for m in messages if m.role != 'system' %}({{ m.role[0] }}:{{ m.content }})"
    "{% endfor %}"
)
NO_TWO = (
    "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role %}{{ raise_exception('turns') }}"
    "{% endif %}({{ m.role[0] }}:{{ m.content }}){% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "({{ m.role[0] }}:{{ m.content }}){% endfor %}"
)
PARTS = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first!') }}{% endif %}"
    "({{ m.role[0] }}:{% for part in m.content %}<{{ part.text }}>{% endfor %}){% endfor %}"
)


def chat(spelled: str) -> list[dict[str, Any]]:
    """A conversation from its turns' initials: "sus" is the system's A, the user's B and the system's C."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    return [{"role": roles[initial], "content": "ABCDEFG"[index]} for index, initial in enumerate(spelled)]


@pytest.mark.parametrize(
    ("template", "spelled", "expected"),
    [
        (EACH, "susa", "(s:A)(u:B)(s:C)(a:D)"),
        (EACH, "ssu", "(s:A)(s:B)(u:C)"),
        (FIRST_ONLY, "su", "(s:A)(u:B)"),
        (FIRST_ONLY, "ssu", "(s:A\n\nB)(u:C)"),
        (FIRST_ONLY, "sus", "(s:A)(u:B\n\nC)"),
        (FIRST_ONLY, "us", "(u:A\n\nB)"),
        (FIRST_ONLY, "suasu", "(s:A)(u:B)(a:C)(u:D\n\nE)"),
        (FIRST_ONLY, "sussua", "(s:A)(u:B\n\nC\n\nD\n\nE)(a:F)"),
        (FIRST_ONLY, "suuas", "(s:A)(u:B)(u:C)(a:D)(u:E)"),  # the user's own turns may stay
        (LOSES, "ddu", "(d:A\n\nB)(u:C)"),
        (LOSES, "sdus", "(s:A\n\nB)(u:C\n\nD)"),
        (LAST_WINS, "sus", "(s:A)(u:B\n\nC)"),
        (NO_TWO, "ssu", "(s:A\n\nB)(u:C)"),
        (NO_TWO, "suu", "(s:A)(u:B\n\nC)"),
        (NO_TWO, "uuauuu", "(u:A\n\nB)(a:C)(u:D\n\nE\n\nF)"),
        (NO_SYSTEM, "uu", "(u:A\n\nB)"),
        (NO_TWO, "susa", "(s:A)(u:B)(s:C)(a:D)"),
        (PARTS, "ssus", "(s:<A\n\nB>)(u:<C\n\nD>)"),
    ],
)
def test_everybody_is_heard_wherever_they_speak(
    template: str, spelled: str, expected: str, byte_level: Tokenizer
) -> None:
    assert ChatTemplate(template, byte_level).render(chat(spelled)) == expected


def test_parts_of_the_system_of_which_the_first_alone_is_read(byte_level: Tokenizer) -> None:
    """As Gemma's template does it."""
    said = [{"type": "text", "text": text} for text in "AB"]
    text = ChatTemplate(GEMMA3, byte_level).render([{"role": "system", "content": said}, *chat("u")])
    assert "A\nB" in text
    kept = ChatTemplate(PARTS, byte_level).render([{"role": "system", "content": said}, *chat("u")])
    assert kept == "(s:<A><B>)(u:<A>)"


def test_a_template_without_a_system_says_so(byte_level: Tokenizer) -> None:
    with pytest.raises(InputError, match="no system"):
        ChatTemplate(NO_SYSTEM, byte_level).render(chat("us"))


def test_going_on_from_a_moved_message(byte_level: Tokenizer) -> None:
    template = ChatTemplate(FIRST_ONLY, byte_level)
    assert template.render(chat("sus"), add_generation_prompt=False, continue_final_message=True) == "(s:A)(u:B\n\nC"

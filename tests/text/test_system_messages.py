"""Messages of the system's that do not come first, with templates that take one only, or only in front."""

from __future__ import annotations

from typing import Any

import pytest

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
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
    "{% endfor %}"
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
        (FIRST_ONLY, "suuas", "(s:A)(u:B)(u:C)(a:D)(u:E)"),  # the user's own turns stay as they are
        (LOSES, "ddu", "(d:A\n\nB)(u:C)"),
        (LOSES, "sdus", "(s:A\n\nB)(u:C\n\nD)"),
        (LAST_WINS, "sus", "(s:A)(u:B\n\nC)"),
        (NO_TWO, "ssu", "(s:A\n\nB)(u:C)"),
        (NO_TWO, "susa", "(s:A)(u:B)(s:C)(a:D)"),
        (PARTS, "ssus", "(s:<A><B>)(u:<C><D>)"),
    ],
)
def test_the_system_is_heard_wherever_it_speaks(
    template: str, spelled: str, expected: str, byte_level: Tokenizer
) -> None:
    assert ChatTemplate(template, byte_level).render(chat(spelled)) == expected


def test_a_template_without_a_system_says_so(byte_level: Tokenizer) -> None:
    with pytest.raises(InputError, match="no system"):
        ChatTemplate(NO_SYSTEM, byte_level).render(chat("us"))


def test_going_on_from_a_moved_message(byte_level: Tokenizer) -> None:
    template = ChatTemplate(FIRST_ONLY, byte_level)
    assert template.render(chat("sus"), add_generation_prompt=False, continue_final_message=True) == "(s:A)(u:B\n\nC"

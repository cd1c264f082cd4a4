"""The formats that the families' chat templates tell by their signs; whether a template has a place for tools."""

from __future__ import annotations

import json
import random

import pytest
from answers import TOOLS, WRITERS
from template_signs import FAMILIES, Family

from octavo.text.tools.choose import reasoning_format, tool_format
from octavo.text.tools.parser import OutputParser
from octavo.text.tools.prompt import shows_tools

CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_formats(family: Family) -> None:
    """Signs are found, and those of no other row before: in whatever order the strings stand."""
    for seed in range(3):
        strings = random.Random(seed).sample(family.strings, len(family.strings))
        template = "{#- #}\n".join(strings)
        tool, reasoning = tool_format(None, template), reasoning_format(None, template)
        assert (tool and tool.name, reasoning and reasoning.name) == (family.tool, family.reasoning)
        assert shows_tools(template) == family.shows
        if tool is not None:
            parser = OutputParser(tool, reasoning, tools=TOOLS)
            calls = parser.feed(WRITERS[tool.name]([("noop", {"days": 2})])).calls
            assert [(call.name, json.loads(call.arguments)) for call in calls] == [("noop", {"days": 2})]


@pytest.mark.parametrize(
    "text",
    [f"<|python_start|><|python_end|>{CALL}", f"<|python_start|>{CALL}<|python_end|>", f"<|python_tag|>{CALL}", CALL],
)
def test_calls_of_llama_4(text: str) -> None:
    for pieces in ([text], text):
        parser = OutputParser(tool_format("llama4_json", ""), None, tools=TOOLS)
        deltas = [*map(parser.feed, pieces), parser.finish()]
        assert "".join(delta.content for delta in deltas) == ""
        assert "".join(call.arguments for delta in deltas for call in delta.calls) == '{"city": "Paris"}'


@pytest.mark.parametrize("text", ["<|tool_call|>{}<|/tool_call|>", "<|tool_call|>[{}]<|/tool_call|>", "functools[{}]"])
def test_calls_of_phi_4_mini(text: str) -> None:
    parser = OutputParser(tool_format("phi4_mini_json", ""), None, tools=TOOLS)
    deltas = [parser.feed(text.replace("{}", CALL)), parser.finish()]
    assert "".join(delta.content for delta in deltas) == ""
    assert [call.name for delta in deltas for call in delta.calls] == ["get_weather"]

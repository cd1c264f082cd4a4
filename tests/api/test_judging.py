"""Whether finished answers are valid, as they come whole or in pieces."""

from __future__ import annotations

from typing import cast

from octavo.api.judging import Judge
from octavo.base.types.output import CompletionOutput, ToolCall
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker import Checker

FORM = StructuredOutputsParams(json={"uniqueItems": True}, lenient=True)


class Asked:
    """A checker to which texts are valid that end in "]"."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def holds(self, params: StructuredOutputsParams, text: str) -> bool:
        self.texts.append(text)
        return text.endswith("]")


def shown(index: int, text: str, finish: str | None = None, **more: list[ToolCall]) -> CompletionOutput:
    return CompletionOutput(index, text, [], finish_reason=finish, **more)  # type: ignore[arg-type]


def test_pieces_are_joined_and_each_completion_is_judged_once() -> None:
    for delta in (True, False):
        asked = Asked()
        judge = Judge(cast(Checker, asked), FORM, delta=delta)
        pieces = [[shown(0, "[1"), shown(1, "[")], [shown(0, "]" if delta else "[1]", "stop")]]
        last = [shown(1, "2" if delta else "[2", "length")] + [shown(0, "[1]", "stop")] * (not delta)
        for outputs in [*pieces, last]:
            assert judge.asks(outputs) == (outputs is not pieces[0])
            judge.see(outputs)
            assert not judge.asks(outputs)
        assert [one.structured_outputs_valid for one in pieces[0]] == [None, None]
        assert pieces[1][0].structured_outputs_valid is True
        assert [one.structured_outputs_valid for one in last] == [False] + [True] * (not delta)
        assert asked.texts == ["[1]", "[2"]


def test_answers_that_call_tools_are_not_judged() -> None:
    asked = Asked()
    judge = Judge(cast(Checker, asked), FORM, delta=True)
    judge.see([shown(0, "", tool_calls=[ToolCall("f", "{}")])])
    end = shown(0, "", "stop")
    judge.see([end])
    assert end.structured_outputs_valid is None
    assert asked.texts == []

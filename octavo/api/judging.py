"""Finished answers in, whether they are valid by the schema that was asked for leniently out."""

from __future__ import annotations

from octavo.base.types.output import CompletionOutput
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker import Checker


class Judge:
    """Of one request's completions, shown whole or, with delta, in pieces. Asks the checker's process: takes time."""

    def __init__(self, checker: Checker, form: StructuredOutputsParams, *, delta: bool) -> None:
        self._checker = checker
        self._form = form
        self._delta = delta
        self._texts: dict[int, str] = {}
        self._calls: set[int] = set()  # completions that call tools: their text is no answer yet
        self._found: dict[int, bool] = {}

    def asks(self, shown: list[CompletionOutput]) -> bool:
        """Whether `see` will take time: a completion has ended that was not judged yet."""
        return any(choice.finish_reason is not None and choice.index not in self._found for choice in shown)

    def see(self, shown: list[CompletionOutput]) -> None:
        """Set structured_outputs_valid of those that have ended."""
        for choice in shown:
            before = self._texts.get(choice.index, "") if self._delta else ""
            text = self._texts[choice.index] = before + choice.text
            if choice.tool_calls:
                self._calls.add(choice.index)
            if choice.finish_reason is None or choice.index in self._calls:
                continue
            if choice.index not in self._found:
                self._found[choice.index] = self._checker.holds(self._form, text)
            choice.structured_outputs_valid = self._found[choice.index]

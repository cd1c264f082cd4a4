"""Tools, forms and bounds of reasoning in; a grammar of answers that keep to them, in the model's own format, out.

What the grammar admits OutputParser reads. It is llguidance's Lark, made by lark.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from octavo.base.errors import UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.text.reasoning import Reasoning
from octavo.text.tools.bound import Bound
from octavo.text.tools.format import Format, Spelling
from octavo.text.tools.lark import Function, Lark, quoted

MOST_CALLS = 32
_SAID = "SAID"  # text that stands outside of calls


def forced_grammar(
    tool: Format,
    functions: Sequence[Function],
    *,
    special: Mapping[str, int],
    reasoning: Reasoning | None = None,
    opened: bool | None = False,
    bound: Bound | None = None,
    many: bool = True,
    instead: StructuredOutputsParams | None = None,
) -> str | None:
    """Answers that are calls and nothing else, perhaps behind reasoning.

    special: the tokenizer's special tokens, spelling -> id.  opened: whether the prompt began the reasoning; None if
    it ended it.  bound: of reasoning.  many: more than one call may come.  instead: the form of an answer that is no
    call; None where that cannot be told.  Raises InputError, UnsupportedError, naming the field.
    """
    lark = Lark(special)
    spelling = _spelling(tool)
    lark.rule("call", " | ".join(lark.call(spelling, function) for function in functions))
    more = f"({lark.text(spelling.between)} call){{0,{MOST_CALLS - 1}}}" if many and tool.many else ""
    calls = " ".join([lark.text(spelling.before), "call", more, lark.text(spelling.after)])
    if instead is not None:
        answer = _answer(lark, instead, messages=tool.messages)
        if answer is None:
            return None
        calls = f"({calls} | {answer})"
    calls = _wrapped(lark, reasoning, calls)
    return lark.finish(f"{_reasoned(lark, reasoning, opened, bound, messages=tool.messages)} {calls}")


def free_grammar(
    tool: Format,
    functions: Sequence[Function],
    *,
    special: Mapping[str, int],
    reasoning: Reasoning | None = None,
    opened: bool | None = False,
    bound: Bound | None = None,
) -> str:
    """Any text, in which calls have the form that their functions want; arguments as forced_grammar's.

    Where reasoning is bounded, none begins again outside of calls' arguments.
    """
    lark = Lark(special)
    spelling = _spelling(tool)
    before = _reasoned(lark, reasoning, opened, bound, messages=False)
    if tool.messages:
        return lark.finish(_free_messages(lark, spelling, functions))
    marks = "|".join(map(re.escape, reasoning.begins)) if reasoning is not None and bound is not None else ""
    lark.rule(_SAID, "TEXT" + (f" & ~/(?s:.*)({marks})(?s:.*)/" if marks else ""))
    if tool.bare:
        return lark.finish(f"{before} {_calls_or_text(lark, tool, spelling, functions)}")
    begin = next((marker for marker in tool.begins if spelling.call.startswith(marker)), "")
    inner = replace(spelling, call=spelling.call[len(begin) :])
    lark.rule("inner", " | ".join(lark.call(inner, function) for function in functions))
    lark.rule("call", f"{lark.text(begin)} inner")
    sections = [f"{lark.upto(begin, _SAID)} inner"] if begin else []
    for mark in tool.unmarked:
        rest = replace(spelling, call=spelling.call.partition(mark)[2])
        sections.append(f"{lark.upto(mark, _SAID)} ({' | '.join(lark.call(rest, function) for function in functions)})")
    if spelling.before:
        first = next(marker for marker in (*tool.wraps, *tool.begins) if spelling.before.startswith(marker))
        head, after = lark.text(spelling.before[len(first) :]), lark.text(spelling.after)
        calls = f"{head} call ({lark.text(spelling.between)} call)* {after}"
        sections += [f"{lark.upto(marker, _SAID)} {calls}" for marker in ((first,) if begin else tool.begins)]
    lark.rule("section", " | ".join(sections))
    return lark.finish(f"{before} {_wrapped(lark, reasoning, f'section* {_SAID}')}")


def _calls_or_text(lark: Lark, tool: Format, spelling: Spelling, functions: Sequence[Function]) -> str:
    """An answer that begins like a call is one."""
    lark.rule("call", " | ".join(lark.call(spelling, function) for function in functions))
    head, after = (_without(text, (*tool.begins, *tool.closers)) for text in (spelling.before, spelling.after))
    begins, closers = (" | ".join(map(lark.text, some)) for some in (tool.begins, tool.closers))
    calls = f"{lark.text(head)} call ({lark.text(spelling.between)} call)* {lark.text(after)}"
    text = lark.rule("FREE", rf"/\s*[^\s\{tool.bare}](?s:.*)/ & {_SAID}")
    return f"({f'({begins})?' if begins else ''} {calls} {f'({closers})?' if closers else ''} | {text}?)"


def _without(text: str, marks: Sequence[str]) -> str:
    for mark in marks:
        text = text.replace(mark, "")
    return text


def _free_messages(lark: Lark, spelling: Spelling, functions: Sequence[Function]) -> str:
    """Harmony's messages; a call is the last."""
    lark.rule("call", " | ".join(lark.call(spelling, function) for function in functions))
    channel = f"{lark.text('<|channel|>')} /analysis|commentary|final/ {lark.text('<|message|>')}"
    lark.rule("said", f"{channel} {lark.upto('<|end|>')} {lark.text('<|start|>assistant')}")
    return f"said* (call | {channel} TEXT)"


def reasoned_grammar(
    params: StructuredOutputsParams,
    *,
    special: Mapping[str, int],
    reasoning: Reasoning,
    opened: bool | None,
    bound: Bound | None = None,
) -> str | None:
    """Reasoning, then an answer of the form that params demand. None for a form that nothing can be put before."""
    lark = Lark(special)
    answer = _answer(lark, params, messages=reasoning.messages)
    if answer is None:
        return None
    answer = _wrapped(lark, reasoning, answer)
    return lark.finish(f"{_reasoned(lark, reasoning, opened, bound, messages=reasoning.messages)} {answer}")


def bounded_form(
    form: StructuredOutputsParams | None,
    bound: Bound,
    *,
    special: Mapping[str, int],
    reasoning: Reasoning,
    opened: bool | None,
) -> StructuredOutputsParams:
    """Bounded reasoning, unless it is over, then an answer of the form, or any without more reasoning.

    Raises UnsupportedError where nothing can be put before the form.
    """
    if opened is None and form is not None:
        return form  # has no place for reasoning
    if form is None:
        lark = Lark(special)
        before = _reasoned(lark, reasoning, opened, bound, messages=False)
        return StructuredOutputsParams(grammar=lark.finish(f"{before} {bound.answer}"))
    grammar = reasoned_grammar(form, special=special, reasoning=reasoning, opened=opened, bound=bound)
    if grammar is None:
        raise UnsupportedError(
            "thinking_token_budget beside this form is not supported, as no reasoning can be put before it; leave one "
            "of them out",
            param="thinking_token_budget",
        )
    return StructuredOutputsParams(grammar=grammar)


def _answer(lark: Lark, params: StructuredOutputsParams, *, messages: bool) -> str | None:
    """What params demand, as a part of a grammar; None where that cannot be told."""
    if params.json_object:
        answer = lark.json({"type": "object"}, _options(params))
    elif params.json is not None and not params.disable_additional_properties:
        try:
            schema = json.loads(params.json) if isinstance(params.json, str) else params.json
        except (ValueError, RecursionError):
            return None
        if not isinstance(schema, dict):
            return None
        answer = lark.json(schema, _options(params))
    elif params.choice is not None:
        answer = f"({' | '.join(map(quoted, params.choice))})"
    else:
        return None
    if not messages:
        return answer
    told = f"/ ?/ {lark.text('<|constrain|>')} /json|JSON/"  # gpt-oss writes so by itself where JSON is asked for
    return f"{lark.text('<|channel|>final')} ({told})? {lark.text('<|message|>')} {answer}"


def _options(params: StructuredOutputsParams) -> dict[str, Any]:
    options: dict[str, Any] = {"lenient": params.lenient, "coerce_one_of": params.lenient}
    options["whitespace_flexible"] = not params.disable_any_whitespace
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    return options


def _spelling(tool: Format) -> Spelling:
    if tool.spelling is None:
        raise UnsupportedError(
            f"forcing a call is not supported for the format {tool.name!r}; send tool_choice 'auto'",
            param="tool_choice",
        )
    return tool.spelling


def _reasoned(
    lark: Lark, reasoning: Reasoning | None, opened: bool | None, bound: Bound | None, *, messages: bool
) -> str:
    if messages:
        inside = lark.upto("<|end|>")
        head, after = lark.text("<|channel|>analysis<|message|>"), lark.text("<|start|>assistant")
        return f"({head} {inside} {after})?"
    if reasoning is None or opened is None or not reasoning.begins:
        return ""
    if bound is None:
        rest = " | ".join(lark.upto(marker) for marker in reasoning.ends)
        begins = " | ".join(lark.text(marker) for marker in reasoning.begins)
    else:
        rest, begins = bound.rest, bound.begin
    lark.rule("reasoned", f"({rest}) /\\s{{0,4}}/")
    if opened:
        return f"({begins})? reasoned"
    alone = "".join(f" | {lark.text(end)}" for end in reasoning.ends) if reasoning.anywhere and bound is None else ""
    return f"(({begins}) reasoned{alone})?"


def _wrapped(lark: Lark, reasoning: Reasoning | None, answer: str) -> str:
    """The answer, perhaps within the markers that models put around theirs, which are shown to nobody."""
    if reasoning is None:
        return answer
    if reasoning.dropped:
        answer = f"({' | '.join(map(lark.text, reasoning.dropped))}){{0,{len(reasoning.dropped)}}} {answer}"
    if len(reasoning.wraps) != 2:
        return answer
    begin, end = map(lark.text, reasoning.wraps)
    lark.rule("answer", answer)
    return f"({begin} /\\s{{0,4}}/ answer /\\s{{0,4}}/ {end} | answer)"

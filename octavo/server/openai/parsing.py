"""A chat request in; how its answers are read (content, reasoning, tool calls) out. The tools are checked."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from octavo.base.config.config import ModelConfig, ServerConfig
from octavo.base.errors import ConfigError, InputError, UnsupportedError
from octavo.base.types.output import CompletionOutput, ToolCall
from octavo.base.types.sampling import reasoning_budget
from octavo.base.types.structured import StructuredOutputsParams
from octavo.server.openai.conversation import known_reasoning, message_text, template_source
from octavo.server.openai.types import ChatRequest, Tool, ToolChoiceObject
from octavo.server.services import Services
from octavo.text.reasoning import PROMPT_END
from octavo.text.tools.bound import make_bound
from octavo.text.tools.choose import reasoning_format, tool_format
from octavo.text.tools.forced import bounded_form, forced_grammar, free_grammar, reasoned_grammar
from octavo.text.tools.format import Format
from octavo.text.tools.lark import Function
from octavo.text.tools.parser import Parsing
from octavo.text.tools.prompt import calls_format

_MISTRAL_ID = string.ascii_letters + string.digits


def check_chats(config: ServerConfig, model: ModelConfig) -> None:
    """ConfigError for parsers' names that are not known, and for variables that no chat could be rendered with."""
    tool_format(config.tool_call_parser, "")
    reasoning_format(model.reasoning_parser, "")
    if config.default_chat_template_kwargs:
        from octavo.text.messages import plain_extra
        from octavo.text.template import RESERVED

        try:
            plain_extra(config.default_chat_template_kwargs, RESERVED)
        except InputError as error:
            raise ConfigError(f"default_{error.message}", param="default_chat_template_kwargs") from None


def answer_parsing(services: Services, request: ChatRequest, prompt_ids: list[int]) -> Parsing | None:
    """None where the model's answers are text alone. InputError for tools that cannot be honoured."""
    template = template_source(services, request)
    tools = _tools(request)
    tool = calls_format(services.config.tool_call_parser, template) if tools else None
    reasoning = known_reasoning(services, template)
    tokenizer = services.llm.tokenizer
    if tokenizer is None or (tool is None and reasoning is None):
        return None
    tokens, ids = (*(tool.tokens if tool else ()), *(reasoning.tokens if reasoning else ())), tokenizer.special_ids()
    end = tokenizer.decode(prompt_ids[-PROMPT_END:], skip_special_tokens=False)
    said = message_text(request.messages[-1]) if request.continue_final_message else None
    return Parsing(
        tool=tool,
        reasoning=reasoning,
        tools={one.function.name: one.function.parameters or {} for one in tools},
        open=False if reasoning is None else reasoning.opened(end, said),
        single=request.parallel_tool_calls is False,
        kept_tokens=frozenset(ids[text] for text in tokens if text in ids),
    )


def demands_form(request: ChatRequest) -> bool:
    """True if tool_choice, strict functions or a bound of reasoning demand a form of the answer."""
    asked = (_forced(request), _allowed(request), _strict(request), reasoning_budget(request))
    return any(one is not None for one in asked)


def answer_form(
    services: Services,
    request: ChatRequest,
    parsing: Parsing | None,
    form: StructuredOutputsParams | None,
) -> tuple[Parsing | None, StructuredOutputsParams | None]:
    """The form of the answer, of what tool_choice, strict functions, a bound of reasoning and the client's `form` ask.

    Reasoning and, unless they are forced, calls stay possible; where that cannot be told beside `form`, the answer has
    it from its beginning. Raises InputError where a call cannot be demanded.
    """
    tokenizer, forced, strict = services.llm.tokenizer, _forced(request), _strict(request)
    budget = reasoning_budget(request)
    tool = parsing.tool if parsing is not None else None
    chosen = forced is not None or _allowed(request) is not None
    if (chosen or strict is not None) and tool is None:
        raise UnsupportedError(
            "forced and strict calls are not supported for this model: its chat template does not tell how it writes "
            "calls; start with --tool-call-parser",
            param="tool_choice" if chosen else f"tools[{strict}].function.strict",
        )
    reasoning, bound = None if parsing is None else parsing.reasoning, None
    if tokenizer is not None and budget is not None:
        bound = make_bound(budget, reasoning, tokenizer, vocab_size=services.llm.model.spec.vocab_size)
    if parsing is None or tokenizer is None:
        return parsing, form
    about: Any = {"special": tokenizer.special_ids(), "reasoning": reasoning, "opened": parsing.open}
    grammar = None
    if tool is not None and (forced is not None or form is not None):
        many = not (forced or parsing.single)
        instead = None if forced is not None else form
        grammar = forced_grammar(tool, _functions(request, forced), **about, bound=bound, many=many, instead=instead)
    elif tool is not None and (chosen or strict is not None):
        grammar = free_grammar(tool, _functions(request, forced), **about, bound=bound)
    elif form is not None and reasoning is not None and bound is None:
        grammar = reasoned_grammar(form, **about)
    if grammar is not None:
        return parsing, StructuredOutputsParams(grammar=grammar)
    if bound is not None:
        return parsing, bounded_form(form, bound, **about)
    return (parsing if form is None else replace(parsing, open=False)), form


def _functions(request: ChatRequest, forced: str | None) -> list[Function]:
    allowed = _allowed(request)
    return [
        Function(
            name=tool.function.name,
            schema=tool.function.parameters or {},
            where=f"tools[{index}]",
            free=forced is None and not tool.function.strict,
        )
        for index, tool in enumerate(request.tools or [])
        if (not forced or tool.function.name == forced) and (allowed is None or tool.function.name in allowed)
    ]


def _strict(request: ChatRequest) -> int | None:
    """The first function whose calls must have the form of its parameters."""
    tools = request.tools or [] if request.tool_choice != "none" else []
    return next((index for index, tool in enumerate(tools) if tool.function.strict), None)


def _forced(request: ChatRequest) -> str | None:
    """The name of the function to call, "" for any; None where no call is demanded."""
    choice, name = request.tool_choice, ""
    if isinstance(choice, ToolChoiceObject):
        if choice.function is not None:
            name = choice.function.name
        elif choice.allowed_tools is not None and choice.allowed_tools.mode == "auto":
            return None
    elif choice != "required":
        return None
    if not request.tools:
        raise InputError("tool_choice demands a call, and tools are missing", param="tool_choice")
    if name:
        _check_named(request, [name])
    return name


def _allowed(request: ChatRequest) -> frozenset[str] | None:
    """The functions that may be called, where not all of them may. The prompt shows all: its prefix stays the same."""
    choice = request.tool_choice
    if not isinstance(choice, ToolChoiceObject) or choice.allowed_tools is None:
        return None
    names = [tool.function.name for tool in choice.allowed_tools.tools]
    _check_named(request, names)
    return frozenset(names) if any(tool.function.name not in names for tool in request.tools or []) else None


def _check_named(request: ChatRequest, names: list[str]) -> None:
    known = {tool.function.name for tool in request.tools or []}
    for name in names:
        if name not in known:
            raise InputError(f"tool_choice names {name!r:.100}, which is not in tools", param="tool_choice")


def call_id(call: ToolCall, tool: Format | None) -> str:
    """The call's own id, or a new one of the form that the model knows."""
    if call.id is not None:
        return call.id
    if tool is not None and tool.ids == "mistral":
        return "".join(secrets.choice(_MISTRAL_ID) for _ in range(9))
    return "call_" + secrets.token_hex(12)


def in_order(choice: CompletionOutput, num_told: int) -> Iterator[str | ToolCall]:
    """A choice's text and the calls that begin beside it, as the model wrote them; more of an open call comes before.

    num_told: characters of the answer's text that came before this one.
    """
    at = 0
    for call in choice.tool_calls:
        if call.name:
            if call.text_offset - num_told > at:
                yield choice.text[at : call.text_offset - num_told]
                at = call.text_offset - num_told
            yield call
    if at < len(choice.text):
        yield choice.text[at:]


def _tools(request: ChatRequest) -> list[Tool]:
    return [] if request.tool_choice == "none" else request.tools or []

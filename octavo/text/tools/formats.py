"""The table of tool call formats, a row each, markup.py's among them. Names are those of vLLM's --tool-call-parser.

A format is one that a family of models was trained on; where its chat template tells which, `signs` are what to look
for in the template's text.
"""

from __future__ import annotations

from octavo.text.tools.bodies import (
    gemma_body,
    headed_body,
    json_body,
    keyed_body,
    lines_body,
    list_body,
    message_body,
    mistral_body,
    python_body,
    python_lines_body,
)
from octavo.text.tools.format import Format, Spelling
from octavo.text.tools.markup import MARKUP
from octavo.text.tools.reading import NAME

_PYTHONIC = "[func_name1("  # as Meta's prompts ask for it
_OBJECT = '{"name": "$NAME", "arguments": $ARGUMENTS}'


def _deepseek(name: str, head: str, written: str, *signs: str) -> Format:
    return Format(
        name,
        headed_body(head),
        ("<｜tool▁call▁begin｜>",),
        closers=("```", "<｜tool▁call▁end｜>"),
        wraps=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        inner=("<｜tool▁sep｜>",),
        spelling=Spelling(
            f"<｜tool▁call▁begin｜>{written}<｜tool▁call▁end｜>", "<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"
        ),
        signs=(("<｜tool▁call▁begin｜>", *signs),),
    )


def _gigachat(name: str, spelling: str, sign: str) -> Format:
    """Read alike: the calls of 3.1, and those of 3, which are messages of their own."""
    return Format(
        name,
        json_body(),
        ("<|function_call|>", "function call<|role_sep|>"),
        wraps=("<|message_sep|>",),
        inner=("<|role_sep|>",),
        many=False,
        spelling=Spelling(spelling),
        signs=(("<|role_sep|>", sign),),
    )


# Told apart by their templates: the more special ones stand first.
FORMATS: tuple[Format, ...] = (
    *MARKUP,
    Format(
        "openai",
        message_body(rf".*\bto=(?:functions\.)?(?P<name>{NAME})(?:[\s<].*)?"),
        messages=True,
        many=False,
        spelling=Spelling("<|channel|>commentary to=functions.$NAME <|constrain|>json<|message|>$ARGUMENTS"),
        signs=(("<|channel|>", "<|message|>", "functions"),),
    ),
    Format(
        "gemma4",
        gemma_body('<|"|>'),
        ("<|tool_call>",),
        closers=("<tool_call|>",),
        inner=('<|"|>',),
        spelling=Spelling("<|tool_call>call:$NAME$ARGUMENTS<tool_call|>", between=""),
        signs=(("<|tool_call>", "<tool_call|>"),),
    ),
    Format(
        "functiongemma",
        gemma_body("<escape>"),
        ("<start_function_call>",),
        closers=("<end_function_call>",),
        inner=("<escape>",),
        spelling=Spelling("<start_function_call>call:$NAME$ARGUMENTS<end_function_call>", between=""),
        signs=(("<start_function_call>",),),
    ),
    _deepseek(
        "deepseek_v3",
        rf"function<｜tool▁sep｜>\s*(?P<name>{NAME})\s*(?:```json)?",
        "function<｜tool▁sep｜>$NAME\n```json\n$ARGUMENTS\n```",
        "```json",
    ),
    _deepseek("deepseek_v31", rf"(?P<name>{NAME})<｜tool▁sep｜>", "$NAME<｜tool▁sep｜>$ARGUMENTS"),
    Format(
        "kimi_k2",
        headed_body(rf"(?P<id>(?:functions\.)?(?P<name>{NAME}):\d+)\s*<\|tool_call_argument_begin\|>"),
        ("<|tool_call_begin|>",),
        closers=("<|tool_call_end|>",),
        wraps=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        inner=("<|tool_call_argument_begin|>",),
        spelling=Spelling(
            "<|tool_call_begin|>functions.$NAME:$NUMBER<|tool_call_argument_begin|>$ARGUMENTS<|tool_call_end|>",
            "<|tool_calls_section_begin|>",
            "",
            "<|tool_calls_section_end|>",
        ),
        signs=(("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), ("<|im_middle|>", "tool_declare")),
    ),
    Format(
        "cohere_command3",
        json_body(),
        ("<|START_ACTION|>",),
        closers=("<|END_ACTION|>",),
        spelling=Spelling(
            '{"tool_call_id": "$NUMBER", "tool_name": "$NAME", "parameters": $ARGUMENTS}',
            "<|START_ACTION|>[\n    ",
            ",\n    ",
            "\n]<|END_ACTION|>",
        ),
        signs=(("<|START_ACTION|>", "tool_name"),),
    ),
    Format(
        "solar_open",
        headed_body(rf"(?P<id>{NAME})<\|tool_call:name\|>(?P<name>{NAME})<\|tool_call:args\|>"),
        ("<|tool_call:begin|>",),
        closers=("<|tool_call:end|>",),
        wraps=("<|begin|>assistant", "<|tool_calls|>", "<|calls|>"),
        inner=("<|begin|>", "<|tool_call:name|>", "<|tool_call:args|>"),
        spelling=Spelling(
            "<|tool_call:begin|>$ID<|tool_call:name|>$NAME<|tool_call:args|>$ARGUMENTS<|tool_call:end|>",
            "<|tool_calls|>",
            "",
            "<|calls|>",
        ),
        signs=(("<|tool_call:begin|>", "<|tool_call:args|>"),),
    ),
    Format(
        "apertus",
        keyed_body(),
        ("<|tools_prefix|>",),
        closers=("<|tools_suffix|>",),
        spelling=Spelling('{"$NAME": $ARGUMENTS}', "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
        signs=(("<|tools_prefix|>",),),
    ),
    _gigachat("gigachat3", f"<|function_call|>{_OBJECT}", "<|function_call|>"),
    _gigachat("gigachat30", f"<|message_sep|>\n\nfunction call<|role_sep|>\n{_OBJECT}", "'function call'"),
    Format(
        "mistral",
        mistral_body(rf"(?P<name>{NAME})\s*(?:\[CALL_ID\](?P<id>[A-Za-z0-9]{{1,64}}))?\s*(?:\[ARGS\])?"),
        ("[TOOL_CALLS]",),
        inner=("[CALL_ID]", "[ARGS]"),
        ids="mistral",
        spelling=Spelling(_OBJECT, "[TOOL_CALLS][", ", ", "]"),
        signs=(("[TOOL_CALLS]",),),
    ),
    Format(
        "llama3_json",
        json_body(known=True),
        ("<|python_tag|>",),
        bare="{",
        wraps=("<|python_start|>", "<|python_end|>"),
        between=";,",
        spelling=Spelling(_OBJECT.replace("arguments", "parameters"), between="; "),
        signs=(("<|python_tag|>",), ("<|eot_id|>", '"parameters":'), ("<|header_start|>", '"parameters":')),
    ),
    Format(
        "llama4_pythonic",
        python_body(),
        ("<|python_start|>",),
        bare="[",
        closers=("<|python_end|>",),
        spelling=Spelling("$NAME($KEYWORDS)", "<|python_start|>[", ", ", "]<|python_end|>"),
        signs=(("<|python_start|>",), ("<|header_start|>", _PYTHONIC)),
    ),
    Format(
        "olmo3",
        python_lines_body(),
        ("<function_calls>",),
        closers=("</function_calls>",),
        spelling=Spelling("$NAME($KEYWORDS)", "<function_calls>", "\n", "</function_calls>"),
        signs=(("<function_calls>",),),
    ),
    Format(
        "lfm2",
        list_body(),
        ("<|tool_call_start|>",),
        closers=("<|tool_call_end|>",),
        spelling=Spelling("$NAME($KEYWORDS)", "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
        signs=(("List of tools: ", "<|im_start|>"),),
    ),
    Format(
        "nemotron_json",
        json_body(),
        ("<TOOLCALL>",),
        closers=("</TOOLCALL>",),
        spelling=Spelling(_OBJECT, "<TOOLCALL>[", ", ", "]</TOOLCALL>"),
        signs=(("<TOOLCALL>",),),
    ),
    Format(
        "phi4_mini_json",
        json_body(),
        ("functools", "<|tool_call|>"),
        closers=("<|/tool_call|>",),
        spelling=Spelling(_OBJECT, "functools[", ", ", "]"),
        signs=(("<|tool|>", "<|/tool|>"), ("functools[",)),
    ),
    Format(
        "granite",
        json_body(),
        ("<|tool_call|>", "<tool_call>"),
        closers=("</tool_call>",),
        between=",",
        spelling=Spelling(_OBJECT, "<|tool_call|>[", ", ", "]"),
        signs=(("<|tool_call|>",),),
    ),
    Format(
        "internlm",
        json_body(),
        ("<|action_start|><|plugin|>",),
        closers=("<|action_end|>",),
        inner=("<|action_start|>", "<|plugin|>"),
        spelling=Spelling(f"<|action_start|><|plugin|>\n{_OBJECT}<|action_end|>", between=""),
        signs=(("<|action_start|><|plugin|>",),),
    ),
    Format(
        "granite-20b-fc",
        json_body(),
        ("<function_call>",),
        spelling=Spelling(f"<function_call> {_OBJECT}", between=""),
        signs=(("<function_call>",),),
    ),
    Format(
        "minimax",
        lines_body(),
        ("<tool_calls>",),
        closers=("</tool_calls>",),
        spelling=Spelling(_OBJECT, "<tool_calls>\n", "\n", "\n</tool_calls>"),
        signs=(("<tool_calls>", "<beginning_of_sentence>"),),
    ),
    Format(
        "jamba",
        json_body(),
        ("<tool_calls>",),
        closers=("</tool_calls>",),
        spelling=Spelling(_OBJECT, "<tool_calls>[", ", ", "]</tool_calls>"),
        signs=(("<tool_calls>",),),
    ),
    Format(
        "hermes",
        json_body(),
        ("<tool_call>",),
        closers=("</tool_call>",),
        spelling=Spelling(f"<tool_call>\n{_OBJECT}\n</tool_call>"),
        signs=(("<tool_call>",),),
    ),
    Format(
        "pythonic",
        python_body(),
        bare="[",
        spelling=Spelling("$NAME($KEYWORDS)", "[", ", ", "]"),
        signs=((_PYTHONIC,),),
    ),
    Format(
        "xlam",
        json_body(known=True),
        bare="[",
        spelling=Spelling(_OBJECT, "[", ", ", "]"),
        signs=(('[{"name": "tool_call_name", "arguments": ',),),
    ),
)

ALIASES = {
    "qwen3_xml": "qwen3_coder",
    "mimo": "qwen3_coder",
    "step3p5": "qwen3_coder",
    "glm47": "glm45",
    "poolside_v1": "glm45",
    "cohere_command4": "cohere_command3",
    "ernie45": "hermes",
    "llama4_json": "llama3_json",
    "hunyuan_a13b": "jamba",
    "granite4": "hermes",
    "llama_nemotron_json": "nemotron_json",
}
"""Names of vLLM's for a format that has a row under another."""

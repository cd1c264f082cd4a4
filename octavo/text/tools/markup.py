"""Rows of formats.py whose calls are marked up: tags around each value, which is bare."""

from __future__ import annotations

from octavo.text.tools.format import Format, Spelling
from octavo.text.tools.tags import invoke_body, pairs_body, xml_body


def _dsml(name: str, block: str) -> Format:
    """DeepSeek's markup; a parameter says whether it is a string."""
    begin, end, tag = f"<｜DSML｜{block}>", f"</｜DSML｜{block}>", "｜DSML｜"
    return Format(
        name,
        invoke_body(end, tag),
        (begin,),
        unmarked=(f'<{tag}invoke name="',),
        closers=(end,),
        inner=(tag,),
        spelling=Spelling(
            f'<{tag}invoke name="$NAME">\n$VALUES</{tag}invoke>\n',
            f"{begin}\n",
            "",
            end,
            f'<{tag}parameter name="$KEY" string="$STRING">$VALUE</{tag}parameter>\n',
        ),
        signs=((tag, f"{block}>"),),
    )


# Told apart by their templates: the more special ones stand first.
MARKUP: tuple[Format, ...] = (
    Format(
        "minimax_m2",
        invoke_body("</minimax:tool_call>"),
        ("<minimax:tool_call>",),
        closers=("</minimax:tool_call>",),
        spelling=Spelling(
            '<invoke name="$NAME">\n$VALUES</invoke>\n',
            "<minimax:tool_call>\n",
            "",
            "</minimax:tool_call>",
            '<parameter name="$KEY">$VALUE</parameter>\n',
        ),
        signs=(("<minimax:tool_call>",),),
    ),
    _dsml("deepseek_v32", "function_calls"),
    _dsml("deepseek_v4", "tool_calls"),
    Format(
        "qwen3_coder",
        xml_body("</tool_call>"),
        ("<tool_call>",),
        unmarked=("<function=",),
        closers=("</tool_call>",),
        spelling=Spelling(
            "<tool_call>\n<function=$NAME>\n$VALUES</function>\n</tool_call>",
            value="<parameter=$KEY>\n$VALUE\n</parameter>\n",
        ),
        signs=(("<tool_call>", "<function="),),
    ),
    Format(
        "glm45",
        pairs_body("</tool_call>"),
        ("<tool_call>",),
        closers=("</tool_call>",),
        inner=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        spelling=Spelling(
            "<tool_call>$NAME\n$VALUES</tool_call>", value="<arg_key>$KEY</arg_key>\n<arg_value>$VALUE</arg_value>\n"
        ),
        signs=(("<tool_call>", "<arg_key>"),),
    ),
    Format(
        "seed_oss",
        xml_body("</seed:tool_call>", kept=True),
        ("<seed:tool_call>",),
        closers=("</seed:tool_call>",),
        spelling=Spelling(
            "<seed:tool_call>\n<function=$NAME>\n$VALUES</function>\n</seed:tool_call>",
            value="<parameter=$KEY>$VALUE</parameter>\n",
        ),
        signs=(("<seed:tool_call>",),),
    ),
)

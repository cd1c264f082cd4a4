"""Rows of formats.py whose calls are marked up: tags around each value, which is bare."""

from __future__ import annotations

from octavo.text.tools.format import Format, Spelling
from octavo.text.tools.tags import channel_body, function_body, invoke_body, nested_body, pairs_body, xml_body


def _dsml(name: str, block: str, tag: str = "｜DSML｜") -> Format:
    """DeepSeek's markup; a parameter says whether it is a string."""
    begin, end = f"<{tag}{block}>", f"</{tag}{block}>"
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


_M3 = "]<]minimax[>["  # before each tag of MiniMax-M3's calls
_HY = ":opensource"  # behind each name of a tag of Hy3's, as it was published
_HY_TAGS = (f"<tool_sep{_HY}>", f"<arg_key{_HY}>", f"</arg_key{_HY}>", f"<arg_value{_HY}>", f"</arg_value{_HY}>")

# Told apart by their templates: the more special ones stand first.
MARKUP: tuple[Format, ...] = (
    Format(
        "minimax_m3",
        nested_body(_M3, f"{_M3}</tool_call>"),
        (f"{_M3}<tool_call>",),
        closers=(f"{_M3}</tool_call>",),
        inner=(_M3, "<tool_call>", "</tool_call>"),
        spelling=Spelling(
            f'{_M3}<invoke name="$NAME">$VALUES{_M3}</invoke>\n',
            f"{_M3}<tool_call>\n",
            "",
            f"{_M3}</tool_call>",
            f"{_M3}<$KEY>$VALUE{_M3}</$KEY>",
        ),
        signs=((_M3, "<invoke name="),),
    ),
    Format(
        "kimi_k3",
        channel_body(),
        ("<|open|>tools<|sep|>",),
        closers=("<|close|>tools<|sep|>",),
        inner=("<|open|>", "<|close|>", "<|sep|>"),
        spelling=Spelling(
            '<|open|>call tool="$NAME" index="$NUMBER"<|sep|>$VALUES<|close|>call<|sep|>',
            "<|open|>tools<|sep|>",
            "",
            "<|close|>tools<|sep|>",
            '<|open|>argument key="$KEY" type="$TYPE"<|sep|>$VALUE<|close|>argument<|sep|>',
        ),
        signs=(("<|open|>", "<|sep|>", "tools"),),
    ),
    Format(
        "hy_v3",
        pairs_body(f"</tool_call{_HY}>", suffix=_HY, behind_name=f"<tool_sep{_HY}>"),
        (f"<tool_call{_HY}>",),
        closers=(f"</tool_call{_HY}>",),
        wraps=(f"<tool_calls{_HY}>", f"</tool_calls{_HY}>"),
        inner=_HY_TAGS,
        spelling=Spelling(
            f"<tool_call{_HY}>$NAME<tool_sep{_HY}>\n$VALUES</tool_call{_HY}>\n",
            f"<tool_calls{_HY}>\n",
            "",
            f"</tool_calls{_HY}>",
            f"<arg_key{_HY}>$KEY</arg_key{_HY}>\n<arg_value{_HY}>$VALUE</arg_value{_HY}>\n",
        ),
        signs=(("<tool_call{}>", "<tool_sep{}>", _HY),),
    ),
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
    _dsml("gigachat35", "tool_calls", "｜GCML｜"),
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
    Format(
        "functionary_v31",
        xml_body(""),
        unmarked=("<function=",),
        spelling=Spelling("<function=$NAME>$ARGUMENTS</function>", between=""),
        signs=(("<function=", "</function>", "<|eot_id|>"),),
    ),
    Format(
        "minicpm5",
        function_body(),
        unmarked=('<function name="',),
        spelling=Spelling('<function name="$NAME">$VALUES</function>', value='<param name="$KEY">$VALUE</param>'),
        signs=(('<function name="', '<param name="'),),
    ),
)

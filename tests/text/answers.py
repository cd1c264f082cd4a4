"""Answers of each tool call format as models write them, with what they hold: recorded forms, and generated ones."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "ratio": {"type": ["number", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "deep": {"type": "object"},
    },
}
TOOLS = dict.fromkeys(("get_weather", "search-all", "noop"), PARAMETERS)
HOSTILE = "__import__('os').system('touch canary')"

Calls = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Answer:
    """One answer and what is in it. reasoning_parser: to read it with, None for none."""

    format: str
    text: str
    calls: Calls = field(default_factory=list)
    content: str = ""
    reasoning: str = ""
    reasoning_parser: str | None = None


NS = "]<]minimax[>["
WEATHER = ("get_weather", {"city": "Paris", "days": 2})
SEARCH = ("search-all", {"tags": ["a", "b"], "deep": {"x": [1, None, True]}})
_WEATHER_JSON = '{"city": "Paris", "days": 2}'
_SEARCH_JSON = '{"tags": ["a", "b"], "deep": {"x": [1, null, true]}}'


def _json(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def _both(key: str = "arguments") -> str:
    return f"{_json('get_weather', _WEATHER_JSON, key)}, {_json('search-all', _SEARCH_JSON, key)}"


RECORDED = [
    Answer(
        "hermes",
        f"I will look.\n<tool_call>\n{_json('get_weather', _WEATHER_JSON)}\n</tool_call>\n"
        f"<tool_call>\n{_json('search-all', _SEARCH_JSON)}\n</tool_call>",
        [WEATHER, SEARCH],
        "I will look.",
    ),
    Answer(
        "hermes",
        f"<think>\nHm, a <tool_cal\n</think>\n\n<tool_call>\n{_json('get_weather', _WEATHER_JSON)}\n</tool_call>",
        [WEATHER],
        reasoning="Hm, a <tool_cal",
        reasoning_parser="qwen3",
    ),
    Answer(
        "hermes",
        '<tool_call>{"name": "noop", "arguments": {"city": "</tool_call>"}}',
        [("noop", {"city": "</tool_call>"})],
    ),
    Answer("hermes", " \n Hello, <b>world</b> \n", content=" \n Hello, <b>world</b> \n"),
    Answer("hermes", 'A <tool_call>{"name": 1}</tool_call> b', content='A <tool_call>{"name": 1}</tool_call> b'),
    Answer("llama3_json", _json("get_weather", _WEATHER_JSON, "parameters"), [WEATHER]),
    Answer(
        "llama3_json",
        f"<|python_tag|>{_json('get_weather', _WEATHER_JSON, 'parameters')}; "
        f"{_json('search-all', _SEARCH_JSON, 'parameters')}",
        [WEATHER, SEARCH],
    ),
    Answer("llama3_json", '{"name": "Ada", "parameters": {}}', content='{"name": "Ada", "parameters": {}}'),
    Answer("llama3_json", 'Say {"a": 1}', content='Say {"a": 1}'),
    Answer(
        "llama4_pythonic",
        "<|python_start|>[get_weather(city='Paris', days=2), "
        "search-all(tags=['a', \"b\"], deep={'x': [1, None, True]})]<|python_end|>",
        [WEATHER, SEARCH],
    ),
    Answer("pythonic", "[get_weather(city='Paris', days=2)]", [WEATHER]),
    Answer("pythonic", "[1, 2] is a list", content="[1, 2] is a list"),
    Answer("mistral", f"[TOOL_CALLS][{_both()}]", [WEATHER, SEARCH]),
    Answer(
        "mistral",
        f"[THINK]Hm.[/THINK]Well: [TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{_WEATHER_JSON}"
        f"[TOOL_CALLS]search-all{_SEARCH_JSON}",
        [WEATHER, SEARCH],
        "Well:",
        "Hm.",
        "mistral",
    ),
    Answer(
        "deepseek_v3",
        f"Sure<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{_WEATHER_JSON}\n```"
        f"<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>search-all\n```json\n{_SEARCH_JSON}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [WEATHER, SEARCH],
        "Sure",
    ),
    Answer(
        "deepseek_v31",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_WEATHER_JSON}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>search-all<｜tool▁sep｜>{_SEARCH_JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [WEATHER, SEARCH],
    ),
    Answer(
        "qwen3_coder",
        "Ok.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=search-all>\n<parameter=tags>\n"
        '["a", "b"]\n</parameter>\n<parameter=deep>\n{"x": [1, null, true]}\n</parameter>\n</function>\n</tool_call>',
        [WEATHER, SEARCH],
        "Ok.",
    ),
    Answer(
        "glm45",
        "<think>Hm.</think>Ok.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>search-all<arg_key>tags</arg_key>"
        '<arg_value>["a", "b"]</arg_value><arg_key>deep</arg_key><arg_value>{"x": [1, null, true]}</arg_value>'
        "</tool_call>",
        [WEATHER, SEARCH],
        "Ok.",
        "Hm.",
        "glm45",
    ),
    Answer(
        "kimi_k2",
        f"<think>Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{_WEATHER_JSON}<|tool_call_end|><|tool_call_begin|>functions.search-all:1<|tool_call_argument_begin|>"
        f"{_SEARCH_JSON}<|tool_call_end|><|tool_calls_section_end|>",
        [WEATHER, SEARCH],
        reasoning="Hm.",
        reasoning_parser="kimi_k2",
    ),
    Answer(
        "granite",
        f"Here is my thought process:\nHm.\nHere is my response:\n<|tool_call|>[{_both()}]",
        [WEATHER, SEARCH],
        reasoning="Hm.",
        reasoning_parser="granite",
    ),
    Answer("phi4_mini_json", f"functools[{_both()}]", [WEATHER, SEARCH]),
    Answer("nemotron_json", f"Ok.\n<TOOLCALL>[{_both()}]</TOOLCALL>", [WEATHER, SEARCH], "Ok."),
    Answer("xlam", f"[{_both()}]", [WEATHER, SEARCH]),
    Answer(
        "lfm2",
        "<|tool_call_start|>[get_weather(city='Paris', days=2), noop()]<|tool_call_end|>I look.",
        [WEATHER, ("noop", {})],
        "I look.",
    ),
    Answer("lfm2", f"<|tool_call_start|>[{_both()}]<|tool_call_end|>", [WEATHER, SEARCH]),  # where it is told to
    Answer("lfm2", f"Ok.<|tool_call_start|>{_json('noop', '{}')}<|tool_call_end|>", [("noop", {})], "Ok."),
    Answer("lfm2", '<|tool_call_start|>[{"name": "other"}]', content='<|tool_call_start|>[{"name": "other"}]'),
    Answer(
        "minimax_m2",
        "<think>\nHm.\n<minimax:tool_call>\n"
        '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n<parameter name="days">2</parameter>\n'
        '</invoke>\n<invoke name="search-all">\n<parameter name="tags">["a", "b"]</parameter>\n'
        '<parameter name="deep">{"x": [1, null, true]}</parameter>\n</invoke>\n</minimax:tool_call>',
        [WEATHER, SEARCH],
        reasoning="Hm.",
        reasoning_parser="minimax_m2",
    ),
    *(
        Answer(
            name,
            f"<think>Hm.</think>Ok.\n\n<｜{tag}｜{block}>\n"
            f'<｜{tag}｜invoke name="get_weather">\n'
            f'<｜{tag}｜parameter name="city" string="true">Paris</｜{tag}｜parameter>\n'
            f'<｜{tag}｜parameter name="days" string="false">2</｜{tag}｜parameter>\n</｜{tag}｜invoke>\n'
            f'<｜{tag}｜invoke name="noop">\n</｜{tag}｜invoke>\n</｜{tag}｜{block}>',
            [WEATHER, ("noop", {})],
            "Ok.",
            "Hm.",
            "deepseek_v3",
        )
        for name, block, tag in (
            ("deepseek_v32", "function_calls", "DSML"),
            ("deepseek_v4", "tool_calls", "DSML"),
            ("gigachat35", "tool_calls", "GCML"),
        )
    ),
    Answer(
        "deepseek_v32",
        f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n{_WEATHER_JSON}\n</｜DSML｜invoke>\n'
        f'<｜DSML｜invoke name="search-all">\n{_SEARCH_JSON}\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        [WEATHER, SEARCH],
    ),
    Answer(
        "qwen3_coder", f"<tool_call>\n<function=get_weather>\n{_WEATHER_JSON}\n</function>\n</tool_call>", [WEATHER]
    ),
    Answer(
        "minimax_m3",
        f'<mm:think>Hm.</mm:think>Ok.{NS}<tool_call>\n{NS}<invoke name="get_weather">{NS}<city>Paris{NS}</city>'
        f'{NS}<days>2{NS}</days>{NS}</invoke>\n{NS}<invoke name="search-all">{NS}<tags>{NS}<item>a{NS}</item>\n'
        f'{NS}<item>b{NS}</item>{NS}</tags>{NS}<deep>{{"x": [1, null, true]}}{NS}</deep>{NS}</invoke>'
        f"\n{NS}</tool_call>",
        [WEATHER, SEARCH],
        "Ok.",
        "Hm.",
        "minimax_m3",
    ),
    Answer(
        "kimi_k3",
        "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>Ok.<|close|>response<|sep|><|open|>tools"
        '<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Paris'
        '<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>2<|close|>argument<|sep|><|close|>call'
        '<|sep|><|open|>call tool="search-all" index="2"<|sep|><|open|>json type="object"<|sep|>'
        f"{_SEARCH_JSON}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        [WEATHER, SEARCH],
        "Ok.",
        "Hm.",
        "kimi_k3",
    ),
    Answer(
        "hy_v3",
        "<think:opensource>Hm.</think:opensource>Ok.<tool_calls:opensource>\n<tool_call:opensource>get_weather"
        "<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Paris"
        "</arg_value:opensource>\n<arg_key:opensource>days</arg_key:opensource>\n<arg_value:opensource>2"
        "</arg_value:opensource>\n</tool_call:opensource>\n<tool_call:opensource>noop<tool_sep:opensource>\n"
        "</tool_call:opensource>\n</tool_calls:opensource>",
        [WEATHER, ("noop", {})],
        "Ok.",
        "Hm.",
        "hy_v3",
    ),
    *(
        Answer(
            "cohere_command3",
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
            f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {_WEATHER_JSON}}},\n'
            f'    {{"tool_call_id": "1", "tool_name": "search-all", "parameters": {_SEARCH_JSON}}}\n]<|END_ACTION|>',
            [WEATHER, SEARCH],
            reasoning="Hm.",
            reasoning_parser=way,
        )
        for way in ("cohere_command3", "cohere_command4")
    ),
    Answer(
        "cohere_command3",
        "<|START_RESPONSE|>Hello!<|END_RESPONSE|>",
        content="Hello!",
        reasoning_parser="cohere_command3",
    ),
    Answer(
        "solar_open",
        "<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather"
        f"<|tool_call:args|>{_WEATHER_JSON}<|tool_call:end|><|tool_call:begin|>f1b2c3d4e5<|tool_call:name|>search-all"
        f"<|tool_call:args|>{_SEARCH_JSON}<|tool_call:end|><|calls|>",
        [WEATHER, SEARCH],
        reasoning="Hm.",
        reasoning_parser="solar_open",
    ),
    Answer(
        "solar_open",
        "<|think|>Hm.<|end|><|begin|>assistant<|content|>Hello!<|end|>",
        content="Hello!",
        reasoning="Hm.",
        reasoning_parser="solar_open",
    ),
    Answer(
        "apertus",
        f'<|inner_prefix|>Hm.<|tools_prefix|>[{{"get_weather": {_WEATHER_JSON}}}, {{"search-all": {_SEARCH_JSON}}}]'
        "<|tools_suffix|>",
        [WEATHER, SEARCH],
        reasoning="Hm.",
        reasoning_parser="apertus",
    ),
    *(
        Answer(name, f"Ok.{before}{_json('get_weather', _WEATHER_JSON)}", [WEATHER], "Ok.")
        for name in ("gigachat3", "gigachat30")
        for before in ("<|function_call|>", "<|message_sep|>\n\nfunction call<|role_sep|>\n")
    ),
    Answer(
        "olmo3",
        "<think>Hm.</think>Ok.\n<function_calls>\nget_weather(city='Paris', days=2)\n"
        'search-all(tags=[\'a\', "b"], deep={"x": [1, null, true]})\n</function_calls>',
        [WEATHER, SEARCH],
        "Ok.",
        "Hm.",
        "deepseek_v3",
    ),
    Answer(
        "functionary_v31",
        f"Ok.<function=get_weather>{_WEATHER_JSON}</function><function=search-all>{_SEARCH_JSON}</function>",
        [WEATHER, SEARCH],
        "Ok.",
    ),
    Answer("functionary_v31", "Say <function=other>{}</function>", content="Say <function=other>{}</function>"),
    Answer(
        "minicpm5",
        '<think>\nHm.\n</think>\n\n<function name="get_weather"><param name="city"><![CDATA[Paris]]></param>'
        '<param name="days">2</param></function>\n<function name="search-all"><param name="tags">[\'a\', \'b\']</param>'
        "<param name=\"deep\">{'x': [1, None, True]}</param></function>",
        [WEATHER, SEARCH],
        reasoning="Hm.",
        reasoning_parser="deepseek_v3",
    ),
    Answer("jamba", f"<tool_calls>[{_both()}]</tool_calls>", [WEATHER, SEARCH]),
    Answer(
        "minimax",
        f"Ok.\n<tool_calls>\n{_json('get_weather', _WEATHER_JSON)}\n{_json('noop', '{}')}\n</tool_calls>\n",
        [WEATHER, ("noop", {})],
        "Ok.",
    ),
    Answer("minimax", f"<tool_calls>\n{_json('get_weather', _WEATHER_JSON)}\n{{]", [WEATHER], "{]"),
    Answer(
        "openai",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>More.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant<|channel|>commentary"
        f" to=functions.get_weather <|constrain|>json<|message|>{_WEATHER_JSON}<|call|><|start|>assistant"
        f" to=functions.search-all<|channel|>commentary json<|message|>{_SEARCH_JSON}<|call|>",
        [WEATHER, SEARCH],
        "I will look.",
        "Hm.\nMore.",
        "openai_gptoss",
    ),
    Answer(
        "openai",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello!",
        [],
        "Hello!",
        "Hm.",
        "openai_gptoss",
    ),
    Answer(
        "gemma4",
        '<|channel>thought\nHm.<channel|>Ok<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>'
        '<|tool_call>call:search-all{tags:[<|"|>a<|"|>,<|"|>b<|"|>],deep:{x:[1,null,true]}}<tool_call|>',
        [WEATHER, SEARCH],
        "Ok",
        "Hm.",
        "gemma4",
    ),
    Answer(
        "functiongemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:2}<end_function_call>"
        "<start_function_call>call:noop{}<end_function_call>",
        [WEATHER, ("noop", {})],
    ),
    Answer(
        "seed_oss",
        "<seed:think>Hm.</seed:think><seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "<parameter=days>2</parameter>\n</function>\n</seed:tool_call>",
        [WEATHER],
        reasoning="Hm.",
        reasoning_parser="seed_oss",
    ),
]


def generated(name: str, rng: random.Random) -> Answer:
    """An answer of the format with random content and calls, spelled by the format's rules."""
    calls = [(rng.choice(list(TOOLS)), _arguments(rng)) for _ in range(rng.randrange(1, 4))]
    content = rng.choice(["", "Let me see.", "Zürich <b>1 < 2</b> {x} [y]", "日本 😀"])
    if name in ("llama3_json", "pythonic", "llama4_pythonic", "xlam") or content == "":
        return Answer(name, WRITERS[name](calls), calls)
    return Answer(name, _said(name, content) + WRITERS[name](calls), calls, content)


def _said(name: str, content: str) -> str:
    if name == "openai":
        return f"<|channel|>commentary<|message|>{content}<|end|><|start|>assistant"
    return content + "\n"


_TEXTS = [
    "Paris",
    "",
    "a b",
    "é日本😀",
    "</tool_cal",
    "{[(",
    'it\'s "so" \\ there',
    "line\nline",
    HOSTILE,
    "null",
    "1",
    "<x>",
]


def _arguments(rng: random.Random) -> dict[str, Any]:
    makers: dict[str, Any] = {
        "city": lambda: rng.choice(_TEXTS),
        "days": lambda: rng.randrange(-(10**20), 10**20),
        "exact": lambda: rng.random() < 0.5,
        "ratio": lambda: rng.choice([None, 0.5, -1e-7, 3]),
        "tags": lambda: [rng.choice(_TEXTS) for _ in range(rng.randrange(3))],
        "deep": lambda: {"a": {"b": [rng.choice([1, None, True, "x", [], {}])]}},
    }
    return {key: makers[key]() for key in rng.sample(sorted(makers), rng.randrange(len(makers) + 1))}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_calls(calls: Calls, key: str = "arguments") -> list[str]:
    return [_dump({"name": name, key: arguments}) for name, arguments in calls]


def _python(calls: Calls) -> str:
    spelled = [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]
    return f"[{', '.join(spelled)}]"


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else _dump(value)


def _xml(calls: Calls, tag: str = "tool_call", around: str = "\n") -> str:
    return "\n".join(
        f"<{tag}>\n<function={name}>\n"
        + "".join(f"<parameter={key}>{around}{_bare(value)}{around}</parameter>\n" for key, value in given.items())
        + f"</function>\n</{tag}>"
        for name, given in calls
    )


def _invokes(calls: Calls, block: str, tag: str = "", *, told: bool = False) -> str:
    inner = "".join(
        f'<{tag}invoke name="{name}">\n'
        + "".join(
            f'<{tag}parameter name="{key}"{_told(value) if told else ""}>{_bare(value)}</{tag}parameter>\n'
            for key, value in given.items()
        )
        + f"</{tag}invoke>\n"
        for name, given in calls
    )
    return f"<{block}>\n{inner}</{block}>"


def _told(value: Any) -> str:
    return f' string="{str(isinstance(value, str)).lower()}"'


def _pairs(calls: Calls) -> str:
    return "\n".join(
        f"<tool_call>{name}\n"
        + "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{_bare(v)}</arg_value>\n" for k, v in given.items())
        + "</tool_call>"
        for name, given in calls
    )


def _tagged(calls: Calls) -> str:
    """Lists as tags, in which strings stand; what has no schema as JSON."""
    inner = "".join(
        f'{NS}<invoke name="{name}">'
        + "".join(f"{NS}<{key}>{_tagged_value(value)}{NS}</{key}>" for key, value in given.items())
        + f"{NS}</invoke>\n"
        for name, given in calls
    )
    return f"{NS}<tool_call>\n{inner}{NS}</tool_call>"


def _tagged_value(value: Any) -> str:
    return "".join(f"{NS}<item>{item}{NS}</item>" for item in value) if isinstance(value, list) else _bare(value)


def _typed(calls: Calls) -> str:
    kinds = {str: "string", int: "number", float: "number", bool: "boolean", list: "array", dict: "object"}
    inner = "".join(
        f'<|open|>call tool="{name}" index="{number}"<|sep|>'
        + "".join(
            f'<|open|>argument key="{key}" type="{kinds.get(type(value), "null")}"<|sep|>{_bare(value)}'
            "<|close|>argument<|sep|>"
            for key, value in given.items()
        )
        + "<|close|>call<|sep|>"
        for number, (name, given) in enumerate(calls, 1)
    )
    return f"<|open|>tools<|sep|>{inner}<|close|>tools<|sep|>"


def _hunyuan(calls: Calls) -> str:
    inner = "".join(
        f"<tool_call>{name}<tool_sep>\n"
        + "".join(f"<arg_key>{key}</arg_key>\n<arg_value>VALUE</arg_value>\n" for key in given)
        + "</tool_call>\n"
        for name, given in calls
    )
    parts = f"<tool_calls>\n{inner}</tool_calls>".replace(">", ":opensource>").split("VALUE")
    values = [_bare(value) for _, given in calls for value in given.values()]
    return "".join(part + value for part, value in zip(parts, [*values, ""], strict=True))


def _cdata(calls: Calls) -> str:
    return "\n".join(
        f'<function name="{name}">'
        + "".join(f'<param name="{key}">{_cdata_value(value)}</param>' for key, value in given.items())
        + "</function>"
        for name, given in calls
    )


def _cdata_value(value: Any) -> str:
    return f"<![CDATA[{value}]]>" if isinstance(value, str) and set(value) & set("<&\n") else _bare(value)


def _solar(calls: Calls) -> str:
    inner = "".join(
        f"<|tool_call:begin|>a1b2c3d4e{i}<|tool_call:name|>{name}<|tool_call:args|>{_dump(given)}<|tool_call:end|>"
        for i, (name, given) in enumerate(calls)
    )
    return f"<|tool_calls|>{inner}<|calls|>"


def _cohere(calls: Calls) -> str:
    inner = ",\n    ".join(
        _dump({"tool_call_id": str(i), "tool_name": name, "parameters": given}) for i, (name, given) in enumerate(calls)
    )
    return f"<|START_ACTION|>[\n    {inner}\n]<|END_ACTION|>"


def _gemma(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma(item, quote) for item in value) + "]"
    return _dump(value)


def _wrapped(calls: Calls, before: str, after: str, quote: str) -> str:
    return "".join(f"{before}call:{name}{_gemma(given, quote)}{after}" for name, given in calls)


def _deepseek(calls: Calls, head: str, tail: str) -> str:
    inner = "".join(
        f"<｜tool▁call▁begin｜>{head.replace('NAME', name)}{_dump(given)}{tail}<｜tool▁call▁end｜>"
        for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def _kimi(calls: Calls) -> str:
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{_dump(given)}<|tool_call_end|>"
        for number, (name, given) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def _harmony(calls: Calls) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_dump(given)}<|call|>"
        for name, given in calls
    )


WRITERS: dict[str, Any] = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in _json_calls(calls)),
    "llama3_json": lambda calls: "; ".join(_json_calls(calls, "parameters")),
    "llama4_pythonic": lambda calls: f"<|python_start|>{_python(calls)}<|python_end|>",
    "pythonic": _python,
    "mistral": lambda calls: f"[TOOL_CALLS][{', '.join(_json_calls(calls))}]",
    "deepseek_v3": lambda calls: _deepseek(calls, "function<｜tool▁sep｜>NAME\n```json\n", "\n```"),
    "deepseek_v31": lambda calls: _deepseek(calls, "NAME<｜tool▁sep｜>", ""),
    "qwen3_coder": _xml,
    "seed_oss": lambda calls: _xml(calls, "seed:tool_call", ""),
    "minimax_m2": lambda calls: _invokes(calls, "minimax:tool_call"),
    "deepseek_v32": lambda calls: _invokes(calls, "｜DSML｜function_calls", "｜DSML｜", told=True),
    "deepseek_v4": lambda calls: _invokes(calls, "｜DSML｜tool_calls", "｜DSML｜", told=True),
    "gigachat35": lambda calls: _invokes(calls, "｜GCML｜tool_calls", "｜GCML｜", told=True),
    "lfm2": lambda calls: f"<|tool_call_start|>{_python(calls)}<|tool_call_end|>",
    "nemotron_json": lambda calls: f"<TOOLCALL>[{', '.join(_json_calls(calls))}]</TOOLCALL>",
    "xlam": lambda calls: f"[{', '.join(_json_calls(calls))}]",
    "glm45": _pairs,
    "kimi_k2": _kimi,
    "granite": lambda calls: f"<|tool_call|>[{', '.join(_json_calls(calls))}]",
    "phi4_mini_json": lambda calls: f"functools[{', '.join(_json_calls(calls))}]",
    "jamba": lambda calls: f"<tool_calls>[{', '.join(_json_calls(calls))}]</tool_calls>",
    "minimax": lambda calls: "<tool_calls>\n" + "".join(f"{call}\n" for call in _json_calls(calls)) + "</tool_calls>",
    "openai": _harmony,
    "minimax_m3": _tagged,
    "kimi_k3": _typed,
    "hy_v3": _hunyuan,
    "functionary_v31": lambda calls: "".join(f"<function={name}>{_dump(given)}</function>" for name, given in calls),
    "minicpm5": _cdata,
    "cohere_command3": _cohere,
    "internlm": lambda calls: "".join(f"<|action_start|><|plugin|>\n{c}<|action_end|>" for c in _json_calls(calls)),
    "granite-20b-fc": lambda calls: "".join(f"<function_call> {call}" for call in _json_calls(calls)),
    "solar_open": _solar,
    "apertus": lambda calls: f"<|tools_prefix|>{_dump([{name: given} for name, given in calls])}<|tools_suffix|>",
    "gigachat3": lambda calls: "\n".join(f"<|function_call|>{call}" for call in _json_calls(calls)),
    "gigachat30": lambda calls: "<|message_sep|>\n\n".join(
        f"function call<|role_sep|>\n{c}" for c in _json_calls(calls)
    ),
    "olmo3": lambda calls: "<function_calls>" + "\n".join(_python([one])[1:-1] for one in calls) + "</function_calls>",
    "gemma4": lambda calls: _wrapped(calls, "<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": lambda calls: _wrapped(calls, "<start_function_call>", "<end_function_call>", "<escape>"),
}

"""Chat templates for these tests, and conversations to render.

The templates lay messages out as models of these names expect them; their wording and their Jinja are our own.
"""

from __future__ import annotations

from typing import Any

CHATML = """{%- macro turn(who, said) -%}
{{ '<|im_start|>' + who + '
' + said + '<|im_end|>
' }}
{%- endmacro -%}
{% if (messages | first).role != 'system' %}{{ turn('system', 'Be brief and kind') }}{% endif %}
{%- for entry in messages %}{{ turn(entry['role'], entry['content']) }}{% endfor %}
{{- '<|im_start|>assistant
' if add_generation_prompt }}"""

LLAMA3 = r"""
{%- macro header(who) %}<|start_header_id|>{{ who }}<|end_header_id|>{{ '\n\n' }}{% endmacro %}
{%- macro turn(who, body) %}{{ header(who) + body }}<|eot_id|>{% endmacro %}
{%- set offered = tools if tools is defined and tools is not none else [] %}
{%- set rules, talk = ('', messages) %}
{%- if talk[0].role == 'system' %}
    {%- set rules, talk = (talk[0]['content'] | trim, talk[1:]) %}
{%- endif %}
{%- set preface %}
    {%- if offered %}{{ 'Environment: ipython\n' }}{% endif %}
    {{- 'Day: ' ~ (date_string if date_string is defined else '3 March 2031') ~ '\n\n' ~ rules }}
{%- endset %}
{{- bos_token + turn('system', preface) }}
{%- set catalogue = '' %}
{%- if offered %}
    {%- if talk | length == 0 %}{{ raise_exception('tools go into the first turn, and there is none') }}{% endif %}
    {%- set catalogue %}
        {{- 'These functions can be called; a call is one JSON object and no other text.\n\n' }}
        {%- for entry in offered %}{{ entry | tojson(indent=4) + '\n\n' }}{% endfor %}
    {%- endset %}
{%- endif %}
{%- for entry in talk %}
    {%- if catalogue and loop.first %}
        {{- turn('user', catalogue + entry['content'] | trim) }}
    {%- elif 'tool_calls' in entry %}
        {%- if entry.tool_calls | length > 1 %}{{ raise_exception('one call in a turn, not several') }}{% endif %}
        {%- set wanted = (entry.tool_calls | first).function %}
        {{- turn('assistant', {'name': wanted.name, 'parameters': wanted.arguments} | tojson) }}
    {%- elif entry.role in ['tool', 'ipython'] %}
        {{- turn('ipython', entry.content | tojson if entry.content is iterable else entry.content) }}
    {%- else %}
        {{- turn(entry.role, entry.content | trim) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}
"""

QWEN3 = r"""
{%- set start, end = ('<|im_start|>', '<|im_end|>\n') %}
{%- set last = namespace(question=none) %}
{%- macro from_tool(said) %}
    {%- if said.startswith('<tool_response>') and said.endswith('</tool_response>') %}yes{% endif %}
{%- endmacro %}
{%- for entry in messages[::-1] %}
    {%- if entry.role == 'user' and last.question is none and entry.content is string %}
        {%- if not from_tool(entry.content) %}{% set last.question = messages | length - 1 - loop.index0 %}{% endif %}
    {%- endif %}
{%- endfor %}
{%- macro calls(entry, said) %}
    {%- for call in entry.tool_calls or [] %}
        {%- set call = call.function or call %}
        {{- '\n' if said or not loop.first }}
        {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
        {{- call.arguments if call.arguments is string else call.arguments | tojson }}
        {{- '}\n</tool_call>' }}
    {%- endfor %}
{%- endmacro %}
{%- set intro = messages[0].content if messages[0].role == 'system' %}
{%- if tools or intro is defined %}
    {{- start + 'system\n' + (intro if intro is defined else '') }}
    {%- if tools %}
        {{- '\n\n' if intro is defined }}
        {{- '# Tools\n\nCallable functions, a line of JSON for each:\n<tools>\n' }}
        {{- tools | map('tojson') | join('\n') }}
        {{- '\n</tools>\n' }}
    {%- endif %}
    {{- end }}
{%- endif %}
{%- for entry in messages %}
    {%- set fresh = loop.changed(entry.role) %}
    {%- set follower = messages[loop.index0 + 1] if not loop.last %}
    {%- set said = entry.content if entry.content is string else '' %}
    {%- if entry.role == 'tool' %}
        {{- start + 'user' if fresh }}
        {{- '\n<tool_response>\n' + said + '\n</tool_response>' }}
        {{- end if follower is not defined or follower.role != 'tool' }}
    {%- elif entry.role == 'assistant' %}
        {%- set thought = entry.reasoning_content if entry.reasoning_content is string else '' %}
        {%- if not thought and '</think>' in said %}
            {%- set halves = said.split('</think>') %}
            {%- set thought, said = (halves[0].split('<think>')[-1].rstrip('\n'), halves[-1].lstrip('\n')) %}
        {%- endif %}
        {{- start + 'assistant\n' }}
        {%- if (last.question is none or loop.index0 > last.question) and (thought or loop.last) %}
            {%- set said = said.lstrip('\n') %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- said + calls(entry, said) + end }}
    {%- elif entry.role == 'user' or not loop.first %}
        {{- start + entry.role + '\n' + said + end }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- start + 'assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is not true %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

GEMMA3 = """{{ bos_token }}
{%- macro shown(content) -%}
    {%- if content is string -%}
        {{ content | trim }}
    {%- elif content is iterable -%}
        {%- for part in content -%}
            {{ {'image': '<start_of_image>', 'text': part['text'] | trim}.get(part['type'], '') }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("a turn holds text or a list of parts") }}
    {%- endif -%}
{%- endmacro -%}
{%- set turns = messages -%}
{%- if turns[0].role == 'system' -%}
    {%- set rules = turns[0].content -%}
    {%- set rules = (rules if rules is string else rules[0]['text']) + '

' -%}
    {%- set turns = turns[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- set due = loop.cycle('user', 'assistant') -%}
    {%- if turn.role != due -%}
        {{ raise_exception("speakers take turns: " ~ due ~ " was due, " ~ turn.role ~ " came") }}
    {%- endif -%}
    <start_of_turn>{{ {'assistant': 'model'}.get(due, due) }}
{{ rules if loop.first and rules is defined }}
    {{- shown(turn.content) }}<end_of_turn>
{% endfor -%}
{{ '<start_of_turn>model
' if add_generation_prompt else '' }}"""

MISTRAL = r"""
{%- macro listed(functions) %}
    {%- for function in functions %}
        {{- ('[' if loop.first else ', ') + '{"type": "function", "function": {' }}
        {%- for key, value in function.items() if key != 'return' %}
            {{- ', ' if not loop.first }}{{ '"' + key + '": ' + value | tojson }}
        {%- endfor %}
        {{- '}}' + (']' if loop.last else '') }}
    {%- endfor %}
{%- endmacro %}
{%- if messages[0]['role'] == 'system' %}{% set rules = messages[0]['content'] %}{% endif %}
{%- set turns = messages[1:] if rules is defined else messages %}
{%- set newest = (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}
{%- set spoken = namespace(count=0) %}
{{- bos_token }}
{%- for turn in turns %}
    {%- set calls = turn.tool_calls | default(none, true) %}
    {%- if calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in calls %}
            {{- (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}{{ ', ' if not loop.last }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif turn.role.startswith('tool') %}
        {{- '[TOOL_RESULTS] {"content": ' + turn.content | string }}
        {{- ', "call_id": "' + turn.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- elif turn.role != ['user', 'assistant'][spoken.count % 2] %}
        {{- raise_exception('user and assistant speak by turns, after at most one system message') }}
    {%- else %}
        {%- set spoken.count = spoken.count + 1 %}
        {%- if turn.role == 'assistant' %}
            {{- ' ' + turn.content | trim + eos_token }}
        {%- else %}
            {%- if tools is defined and tools is not none and turn == newest %}
                {{- '[AVAILABLE_TOOLS] ' ~ listed(tools | map(attribute='function')) ~ '[/AVAILABLE_TOOLS]' }}
            {%- endif %}
            {{- '[INST] ' + (rules + '\n\n' if loop.last and rules is defined else '') + turn.content + '[/INST]' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
"""

# Marks for training, loop controls, macros, documents, dates, sorted JSON, dictionary methods.
ODDITIES = """{%- macro show(x, sep=', ') -%}[{{ x | join(sep) }}]{%- endmacro -%}
{% for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
{%- if message.role == 'assistant' %}
{%- generation -%}
{{ message.content }}{{ eos_token }}
{%- endgeneration -%}
    {% else %}
    {{ message['role'] | upper }}: {{ message.content | replace('a', 'b') | indent(2) }}
    {% endif %}
  {%- if loop.index > 6 %}{% break %}{% endif %}
{%- endfor %}
{% for document in documents or [] %}
{{ loop.index }}. {{ document.title | title }} {{ document | tojson(sort_keys=true) }}
{% endfor -%}
{{ show(['x', 'y'] + ['z']) }} {{ {'b': 1, 'a': [none, true, 1.5]} }} {{ (messages | map(attribute='role') | list) }}
{{ strftime_now('%Y') }} {{ {'k': 'v'}.get('n', 'd') }} {{ 7 // 2 }} {{ 'é' | tojson(ensure_ascii=true) }}
{{- x is defined }}
{%- set text %}block{% endset %}{{ text }}{{ 'abc'[1:] }}{{ messages[-1]['content'].split()[0].strip('?') }}
{{ messages[0] is mapping }} {{ messages is sequence }} {{ add_generation_prompt is true }}
{{ enable_thinking is false }}
"""

ALL = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3, "gemma3": GEMMA3, "mistral": MISTRAL, "oddities": ODDITIES}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather's state \"now\" in <city> & 'elsewhere' – 日本語",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Zürich", "Paris"]}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


_CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich <b>", "days": 2, "deep": {"x": [1.5, None, True]}}},
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [_user("Hello, what is your name?")],
    "system": [{"role": "system", "content": " You are terse. "}, _user("Hi")],
    "turns": [
        _user("  spaced out \n"),
        _assistant("\n\nReply é日本😀\n"),
        _user("quotes \"' <tag> & {{ jinja }} {% if %}"),
    ],
    "thinking": [
        _user("2+2?"),
        _assistant("<think>\nEasy.\n</think>\n\n4"),
        _user("3+3?"),
        _assistant("6", reasoning_content="Hm."),
    ],
    "tools": [
        _user("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "content": '{"state": "sun"}', "tool_call_id": "abcdef123", "name": "weather"},
        _assistant("It is sunny."),
        _user("Thanks"),
    ],
}

_FRAME = r"""
{%- for entry in messages %}{{ '<|im_start|>' + entry.role + '\n' + (entry.content or '') }}
    {%- if entry.tool_calls %}CALLS{% endif %}{{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
_CALLS = {
    "kimi_k3": r"""<|open|>tools<|sep|>
        {%- for one in entry.tool_calls %}
            {{- '<|open|>call tool="' + one.function.name + '" index="' ~ loop.index ~ '"<|sep|>' }}
            {%- for key, value in one.function.arguments.items() %}
                {%- set kind = 'string' if value is string else 'object' if value is mapping else 'number' %}
                {{- '<|open|>argument key="' + key + '" type="' + kind + '"<|sep|>' }}
                {{- value if value is string else value | tojson }}<|close|>argument<|sep|>
            {%- endfor %}<|close|>call<|sep|>
        {%- endfor %}<|close|>tools<|sep|>""",
    "hy_v3": r"""<tool_calls:opensource>
        {%- for one in entry.tool_calls %}
            {{- '\n<tool_call:opensource>' + one.function.name + '<tool_sep:opensource>\n' }}
            {%- for key, value in one.function.arguments.items() %}
                {{- '<arg_key:opensource>' + key + '</arg_key:opensource>\n<arg_value:opensource>' }}
                {{- value if value is string else value | tojson }}{{ '</arg_value:opensource>\n' }}
            {%- endfor %}</tool_call:opensource>
        {%- endfor %}
        {{- '\n</tool_calls:opensource>' }}""",
    "cohere_command3": r"""<|START_ACTION|>[
        {%- for one in entry.tool_calls %}
            {{- '\n    {"tool_call_id": "' ~ loop.index0 }}", "tool_name": "{{ one.function.name }}", "parameters":
            {{- ' ' }}
            {{- one.function.arguments | tojson }}}{{ '' if loop.last else ',' }}
        {%- endfor %}
        {{- '\n' }}]<|END_ACTION|>""",
    "solar_open": r"""<|tool_calls|>
        {%- for one in entry.tool_calls %}
            {{- '<|tool_call:begin|>' + one.id + '<|tool_call:name|>' + one.function.name + '<|tool_call:args|>' }}
            {{- one.function.arguments | tojson }}<|tool_call:end|>
        {%- endfor %}<|calls|>""",
    "apertus": r"""<|tools_prefix|>[
        {%- for one in entry.tool_calls %}
            {{- '{"' + one.function.name + '": ' + one.function.arguments | tojson + '}' }}
            {{- '' if loop.last else ', ' }}
        {%- endfor %}]<|tools_suffix|>""",
    "gigachat3": r"""
        {%- set one = entry.tool_calls[0].function %}<|function_call|>
        {{- '{"name": "' + one.name + '", "arguments": ' + one.arguments | tojson + '}' }}""",
    "gigachat30": r"""
        {%- set one = entry.tool_calls[0].function %}{{ '<|message_sep|>\n\nfunction call<|role_sep|>\n' }}
        {{- '{"name": "' + one.name + '", "arguments": ' + one.arguments | tojson + '}' }}""",
    "olmo3": r"""{{ '<function_calls>\n' }}
        {%- for one in entry.tool_calls %}
            {{- one.function.name }}(
            {%- for key, value in one.function.arguments.items() %}{{ '' if loop.first else ', ' }}
                {{- key + '=' }}{{ "'" + value + "'" if value is string else value | tojson }}
            {%- endfor %}){{ '\n' }}
        {%- endfor %}</function_calls>""",
    "functionary_v31": r"""
        {%- for one in entry.tool_calls %}
            {{- '<function=' + one.function.name + '>' + one.function.arguments | tojson + '</function>' }}
        {%- endfor %}""",
    "minicpm5": r"""
        {%- for one in entry.tool_calls %}{{ '<function name="' + one.function.name + '">' }}
            {%- for key, value in one.function.arguments.items() %}{{ '<param name="' + key + '">' }}
                {{- '<![CDATA[' + value + ']]>' if value is string else value }}</param>
            {%- endfor %}</function>
        {%- endfor %}""",
}
CALLING = {name: _FRAME.replace("CALLS", calls) for name, calls in _CALLS.items()}
"""By the name of a format, templates that print calls as its models' own do."""

"""Templates against Transformers' own rendering, byte by byte; conversations in every form; hostile templates."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from typing import Any

import pytest
from chat_templates import ALL, CHATML, CONVERSATIONS, GEMMA3, LLAMA3, TOOLS

from octavo.base.errors import InputError, ModelFormatError, UnsupportedError
from octavo.text.template import MAX_OUTPUT, MAX_SOURCE, ChatTemplate, default_template
from octavo.text.tokenizer import Tokenizer

SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
HELLO = [{"role": "user", "content": "hello"}]


def theirs(source: str, messages: list[dict[str, Any]], **given: Any) -> str:
    """What Transformers renders; jinja2.TemplateError where the template refuses."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: list[str] = render_jinja_template(
        [copy.deepcopy(messages)], chat_template=source, **{"add_generation_prompt": False, **given}, **SPECIAL
    )[0]
    return rendered[0]


@pytest.mark.parametrize("conversation", sorted(CONVERSATIONS))
@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_same_bytes_as_transformers(
    name: str, conversation: str, tools: list[dict[str, Any]] | None, byte_level: Tokenizer
) -> None:
    import jinja2

    template = ChatTemplate(ALL[name], byte_level)
    messages = CONVERSATIONS[conversation]
    documents = [{"title": "a title", "text": "é <b>"}] if tools else None
    for more in ({}, {"enable_thinking": False}):
        for prompt in (True, False):
            given: dict[str, Any] = {"tools": tools, "documents": documents, "add_generation_prompt": prompt}
            try:
                expected = theirs(ALL[name], messages, **given, **more)
            except jinja2.TemplateError:
                with pytest.raises(InputError, match="chat template"):
                    template.render(messages, **given, extra=more)
                continue
            assert template.render(messages, **given, extra=more) == expected
            ids = template.render_ids(messages, **given, extra=more)
            assert ids == byte_level.encode(expected, add_special_tokens=False)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"oddities"}))
@pytest.mark.parametrize("text", ["Reply and", "Reply and ", "R", " \n lead", "<think>\nso far", "ends with <"])
def test_continuing_the_final_message(name: str, text: str, byte_level: Tokenizer) -> None:
    template = ChatTemplate(ALL[name], byte_level)
    messages = [*HELLO, {"role": "assistant", "content": text}]
    expected = theirs(ALL[name], messages, continue_final_message=True)
    given = {"add_generation_prompt": False, "continue_final_message": True}
    assert template.render(messages, **given) == expected
    assert template.render_ids(messages, **given) == byte_level.encode(expected, add_special_tokens=False)


def test_continuing_parts_and_what_cannot_be_continued(byte_level: Tokenizer) -> None:
    given = {"add_generation_prompt": False, "continue_final_message": True}
    messages = [
        *HELLO,
        {"role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    assert ChatTemplate(GEMMA3, byte_level).render(messages, **given).endswith("model\nonetwo")
    assert ChatTemplate(CHATML, byte_level).render(messages, **given).endswith("assistant\none\ntwo")
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(InputError, match="last message with content"):
        ChatTemplate(ALL["qwen3"], byte_level).render([*HELLO, {"role": "assistant", "tool_calls": [call]}], **given)
    with pytest.raises(InputError, match="does not print"):
        ChatTemplate("{{ messages[0].content }}", byte_level).render([*HELLO, *HELLO], **given)
    for printed in ("{{ messages[-1].content }}", "{{ messages[-1].content | trim }}"):
        twice = ChatTemplate(printed + "|" + printed + " end", byte_level)
        said = [{"role": "assistant", "content": "one"}]
        assert twice.render(said, **given) == "one|one"
        assert twice.render_ids(said, **given) == byte_level.encode("one|one", add_special_tokens=False)
    with pytest.raises(InputError, match="exclude each other") as caught:
        ChatTemplate(CHATML, byte_level).render(HELLO, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_parts_become_what_the_template_takes(byte_level: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}, "three"]
    asked = [{"role": "user", "content": parts}]
    texts = [{"type": "text", "text": text} for text in ("one", "two", "three")]
    lists_only = "{% for m in messages %}{% for part in m.content %}({{ part.text }}){% endfor %}{% endfor %}"
    assert "user\none\ntwo\nthree<|im_end|>" in ChatTemplate(CHATML, byte_level).render(asked)
    expected = theirs(GEMMA3, [{"role": "user", "content": texts}], add_generation_prompt=True)
    assert ChatTemplate(GEMMA3, byte_level).render(asked) == expected
    assert ChatTemplate(lists_only, byte_level).render(asked) == "(one)(two)(three)"
    assert ChatTemplate(lists_only, byte_level).render(HELLO) == "(hello)"
    # A list printed as such is no support for lists.
    assert ChatTemplate("{{ messages[0].content }}", byte_level).render(asked) == "one\ntwo\nthree"
    assert ChatTemplate("{{ messages[0].content | tojson }}", byte_level).render(asked) == '"one\\ntwo\\nthree"'


def test_contents_that_are_missing(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content is none }}|{{ m.content }}]{% endfor %}", byte_level)
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": ""}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    messages = [{"role": "assistant"}, {"role": "user", "content": None}, calling]
    assert template.render(messages) == "[False|][False|][False|]"


READINGS = ["{{ m.content }}", "{{ 'content' in m }}", "{{ m.content is defined }}", "{{ m.content is none }}"]
READINGS += ["{{ m.content is string }}", "{{ m.content | trim }}", "{{ m.content | default('d') }}"]
READINGS += ["{{ m.content or 'x' }}", "{{ 'x' ~ m.content }}", "{{ 'a' in m.content }}", "{{ m.content + 'x' }}"]
READINGS += [
    "{{ m.content.strip() }}",
    "{{ m.get('content') is none }}",
    "{{ m.content == none }}",
    "{{ m.content | length }}",
]
READINGS += ["{% if m.content %}y{% else %}n{% endif %}", "{% set c = m.content %}{{ c is defined }}"]


@pytest.mark.parametrize("reading", READINGS)
def test_a_call_without_content_is_read_as_in_transformers(reading: str, byte_level: Tokenizer) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    source = "{% for m in messages %}" + reading + "{% endfor %}"
    template = ChatTemplate(source, byte_level)
    try:
        expected = theirs(source, messages)
    except Exception:  # jinja2's or Python's own, for what has no value
        with pytest.raises(InputError, match="chat template"):
            template.render(messages, add_generation_prompt=False)
        return
    assert template.render(messages, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    "source",
    [
        "a\r\n{% if true %}\r\nb\rc\n\r{% endif %}\r\n{{ 'x\r\ny' }}\r\n",
        "{% for m in messages %}<|im_start|>{{ m.role }}\r\n{{ m.content }}<|im_end|>\r\n{% endfor %}",
        "{{ messages[0].content }}\r",
    ],
)
def test_line_breaks_of_a_template_are_jinjas(source: str, byte_level: Tokenizer) -> None:
    messages = [{"role": "user", "content": "its own\r\nstay"}]
    ours = ChatTemplate(source, byte_level).render(messages, add_generation_prompt=False)
    assert ours == theirs(source, messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = 1 %}{% generation %}{{ x }}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{% set x = m.content %}{% endgeneration %}[{{ x }}]{% endfor %}",
        "{% set ns = namespace(a=1) %}{%- generation -%} {% set ns.a = 2 %}{%+ endgeneration +%} {{ ns.a }}",
        "{% for m in messages %}{%- generation %}\n{{ loop.index }}\n {%- endgeneration -%}\n{% endfor %}",
    ],
)
def test_a_generation_block_scopes_what_it_sets(source: str, byte_level: Tokenizer) -> None:
    ours = ChatTemplate(source, byte_level).render(HELLO, add_generation_prompt=False)
    assert ours == theirs(source, HELLO)


def test_arguments_as_text_become_objects(byte_level: Tokenizer) -> None:
    as_objects = CONVERSATIONS["tools"]
    as_text = copy.deepcopy(as_objects)
    function = as_text[1]["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"])
    before = copy.deepcopy(as_text)
    for source in (LLAMA3, ALL["qwen3"], ALL["mistral"]):
        template = ChatTemplate(source, byte_level)
        assert template.render(as_text, tools=TOOLS) == template.render(as_objects, tools=TOOLS)
    assert as_text == before


@pytest.mark.parametrize(
    "shown",
    [
        *("value", "value | tojson", "value | string", "'=' ~ value", "[value]", "{'k': value} | tojson"),
        *("value is number", "value is float", "value is integer", "value is string", "value is boolean"),
        *("value is mapping", "value is iterable", "value is none", "'yes' if value else 'no'"),
    ],
)
def test_numbers_of_arguments_print_as_in_transformers(shown: str, byte_level: Tokenizer) -> None:
    """GLM's template prints each argument by itself."""
    arguments = {"a": [1.0, 0.0, -0.0, 2.5, 1e-7, 1e22, 1e16, 3, 2**70, True], "b": "1.0"}
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    source = (
        "{% set given = messages[1].tool_calls[0].function.arguments %}{{ given }} {{ given | tojson }}"
        "{% for value in given.a %} {{ SHOWN }}{% endfor %}"
    ).replace("SHOWN", shown)
    assert ChatTemplate(source, byte_level).render(messages, add_generation_prompt=False) == theirs(source, messages)


def test_reasoning_goes_by_any_name(byte_level: Tokenizer) -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}", byte_level
    )
    messages = [
        {"role": "assistant", "content": "x", name: "why"} for name in ("reasoning", "thinking", "reasoning_content")
    ]
    assert template.render(messages) == "why/why;" * 3


CALL: dict[str, Any] = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": 5, "content": "x"}], "messages[0].role"),
        ([*HELLO, {"role": "user", "content": 5}], "messages[1].content"),
        ([{"role": "user", "content": {"text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "extra": object()}], "messages[0]"),
        ([{"role": "user", "content": "x", "extra": float("nan")}], "messages[0]"),
        ([{"role": "user", "content": "x", "extra": 2**200}], "messages[0]"),
        ([{"role": "user", "content": "x", 5: "x"}], "messages[0]"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls"),
    ],
)
def test_bad_messages_are_named(messages: Any, param: str, byte_level: Tokenizer) -> None:
    template = ChatTemplate(CHATML, byte_level)
    for render in (template.render, template.render_ids):
        with pytest.raises(InputError) as caught:
            render(messages)
        assert caught.value.param == param
        assert isinstance(caught.value, UnsupportedError) == ("image_url" in str(messages))


@pytest.mark.parametrize("arguments", ["{", "[1]", "5", '"x"', 5, [1], "[" * 5000, '{"x": NaN}'])
def test_bad_arguments_are_named(arguments: Any, byte_level: Tokenizer) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(InputError, match="arguments") as caught:
        ChatTemplate(CHATML, byte_level).render([*HELLO, {"role": "assistant", "tool_calls": [call]}])
    assert str(caught.value.param).startswith("messages[1].tool_calls")


def test_deep_or_broken_data_is_refused(byte_level: Tokenizer) -> None:
    template = ChatTemplate(CHATML, byte_level)
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    for given in ({"tools": [{"x": deep}]}, {"documents": [{"x": deep}]}, {"extra": {"x": deep}}):
        with pytest.raises(InputError, match="nested"):
            template.render(HELLO, **given)
    many: Any = [{"x": [0] * 60_000}, {"x": [[]] * 60_000}]
    for given in ({"tools": many}, {"documents": many}, {"extra": {"x": many}}):
        with pytest.raises(InputError, match="more than 100000 values") as caught:
            template.render(HELLO, **given)
        assert caught.value.param == ("chat_template_kwargs" if "extra" in given else next(iter(given)))
    with pytest.raises(InputError, match="more than 100000 values"):
        template.render(HELLO * 60_000)
    for given in ({"tools": "x"}, {"tools": ["x"]}, {"documents": [5]}, {"extra": {"a b": 1}}):
        with pytest.raises(InputError):
            template.render(HELLO, **given)
    for messages in ([{"role": "user", "content": "\ud800"}], [{"role": "user\udc00", "content": "x"}]):
        with pytest.raises(InputError, match="surrogate"):
            template.render_ids(messages)
    assert template.render(HELLO, tools=[]) == template.render(HELLO)


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "tokenize",
     "chat_template", "namespace", "range", "__class__", "", "a.b"],
)  # fmt: skip
def test_extra_variables_do_not_reach_internals(name: str, byte_level: Tokenizer) -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(CHATML, byte_level).render(HELLO, extra={name: "x"})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("source", ["{{ 'a' ", "{% if %}", "{% for x in y %}", "{{ 1 | }}", "{% nothing %}"])
def test_a_template_that_does_not_parse(source: str, byte_level: Tokenizer) -> None:
    with pytest.raises(ModelFormatError, match="does not parse") as caught:
        ChatTemplate(source, byte_level)
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith("; give another by chat_template (--chat-template FILE)")


LONG = {
    "not": ("{{ ", "not ", "1 }}"),
    "minus": ("{{ ", "-", "1 }}"),
    "attribute": ("{{ a", ".b", " }}"),
    "plus": ("{{ 1", "+1", " }}"),
    "join": ("{{ 'a'", "~''", " }}"),
    "filter": ("{{ 1", "|abs", " }}"),
    "elif": ("{% if 0 %}", "{%elif 0%}", "{% endif %}"),
    "condition": ("{{ ", "1 if 1 else ", "1 }}"),
    "index": ("{{ a", "[0]", " }}"),
    "parentheses": ("{{ ", "(", "1 }}"),
    "if": ("", "{%if 1%}", ""),
}


@pytest.mark.parametrize("name", sorted(LONG))
def test_long_chains_do_not_run_out_of_stack(name: str, byte_level: Tokenizer) -> None:
    """The parser recurses: on an ordinary stack each of these would end the process."""
    before, link, after = LONG[name]
    source = before + link * ((MAX_SOURCE - len(before) - len(after)) // len(link)) + after
    with contextlib.suppress(ModelFormatError, InputError):
        ChatTemplate(source, byte_level).render(HELLO)
    with pytest.raises(ModelFormatError, match="characters long"):
        ChatTemplate(source + link * 20, byte_level)
    assert threading.stack_size() == 0


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ messages | map(attribute='__class__.__mro__') | list }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{% extends '/etc/passwd' %}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ ''['__cl' ~ 'ass__'] }}",
    ],
)
def test_templates_reach_no_python(source: str, byte_level: Tokenizer) -> None:
    try:
        text = ChatTemplate(source, byte_level).render(HELLO)
    except (InputError, ModelFormatError):
        return
    assert not any(word in text for word in ("class", "object", "root:", "uid=", "<built-in", "function"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 10) %}a{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ ['a'] * 10 ** 10 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ 'a' * 90000 }}" * 120,
    ],
)
def test_bombs_end_in_an_error(source: str, byte_level: Tokenizer) -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(source, byte_level).render(HELLO)
    assert caught.value.param == "messages"
    assert len(caught.value.message) <= 500


def test_a_prompt_that_is_too_long(byte_level: Tokenizer) -> None:
    with pytest.raises(InputError, match="characters long"):
        ChatTemplate(CHATML, byte_level).render([{"role": "user", "content": "x" * MAX_OUTPUT}])


def test_a_long_conversation_fits_the_fuel(byte_level: Tokenizer) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 1500
    for name in ("chatml", "llama3", "qwen3", "gemma3", "mistral"):
        assert ChatTemplate(ALL[name], byte_level).render(messages).count("y") >= 1500


def test_what_a_template_refuses_is_told(byte_level: Tokenizer) -> None:
    with pytest.raises(InputError, match="take turns: user was due, assistant came") as caught:
        ChatTemplate(GEMMA3, byte_level).render([{"role": "assistant", "content": "hello"}, *HELLO])
    assert caught.value.param == "messages"


def test_default_template(byte_level: Tokenizer, sentence_piece: Tokenizer) -> None:
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert default_template(byte_level).render(HELLO) == expected
    with pytest.raises(InputError, match="--chat-template"):
        default_template(sentence_piece)


def test_many_threads_render_the_same(byte_level: Tokenizer) -> None:
    template = ChatTemplate(ALL["llama3"], byte_level)
    conversations = [[{"role": "user", "content": f"number {index} <|im_end|>"}] for index in range(40)]
    expected = [template.render_ids(messages, tools=TOOLS) for messages in conversations]
    wrong: list[int] = []

    def work() -> None:
        for index, messages in enumerate(conversations):
            if template.render_ids(messages, tools=TOOLS) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.real
def test_the_real_template(real_checkpoint: Any) -> None:
    checkpoint, tokenizer = real_checkpoint("smollm2")
    template = ChatTemplate(checkpoint.chat_template, tokenizer)
    for name in ("one", "system", "turns"):
        expected = theirs(checkpoint.chat_template, CONVERSATIONS[name], add_generation_prompt=True)
        assert template.render(CONVERSATIONS[name]) == expected
        assert template.render_ids(CONVERSATIONS[name]) == tokenizer.encode(expected, add_special_tokens=False)

"""A chat template and a conversation in; the prompt as text or token ids out.

Templates are Jinja, rendered by minijinja: of Python a template reaches the public methods of plain lists and dicts
that were made for this rendering, and nothing else. Fuel bounds its steps, a limit its output; what it builds in
between is not bounded, so templates in requests are for trusted callers. It sees what Transformers'
apply_chat_template shows it, and prints the same bytes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import minijinja

from octavo.base.errors import InputError, ModelFormatError
from octavo.text.messages import (
    ContentForm,
    TurnForm,
    check_size,
    placed,
    plain_extra,
    plain_list,
    plain_messages,
)
from octavo.text.seal import Placeholders, Seal, map_strings
from octavo.text.tokenizer import ROLES, Tokenizer

FUEL = 3_000_000  # instructions; a message takes some hundred
MAX_OUTPUT = 10_000_000  # characters
MAX_INDENT = 1000
MAX_SOURCE = 200_000  # characters
# Bytes; one operator takes some 500 and one character, and an elif 1,200 and ten.
STACK, STACK_PER_CHAR = 1 << 24, 1024
_STACK_LOCK = threading.Lock()  # the stack's size is set for the whole process

CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

RESERVED = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "conversation"),
        *("chat_template", "tokenize", "tokenizer", "return_dict", "return_tensors", "padding", "truncation"),
        *("raise_exception", "strftime_now", "namespace", "range", "dict", "loop", "self", "debug"),
        *ROLES,
    )
)

# Marks what Transformers trains on; as a block it only scopes what its body sets.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_LINE_BREAK = re.compile(r"\r\n?")  # Jinja reads these as \n

# What a template is tried on; ids are made as Mistral's templates want them.
_TOOL = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {"type": "object"}}}
_CALL = {"id": "probe0000", "type": "function", "function": {"name": "probe_call", "arguments": {}}}


class _Float:
    """A float that prints as Python's do: the engine gives 1.0 to a filter as 1, and prints 1e-07 as 0.0000001."""

    __slots__ = ("_value",)  # a template reaches no name that begins so

    def __init__(self, value: float) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


class ChatTemplate:
    """A compiled template. Never changed once made: any number of threads may render at once.

    source: the Jinja text.  Raises ModelFormatError if it does not parse; late: not until it is to be rendered.
    fault: that error, of such a one.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, *, late: bool = False) -> None:
        self.source = source
        self.fault: ModelFormatError | None = None
        self._tokenizer = tokenizer
        self._environment = _environment()
        try:
            _compile(self._environment, source)
        except ModelFormatError as error:
            if not late:
                raise
            self.fault = error
        self._form = self._detect_form()
        self._turns = self._detect_turns()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text.

        messages: role, content (text, or parts of type text), tool_calls and whatever else the template reads.
        continue_final_message: end inside the last message, so that the model goes on with it.
        extra: chat_template_kwargs, further variables of the template.
        Raises InputError naming the field, or with what the template says of the messages.
        """
        data = self._variables(messages, tools, documents, extra)
        _check_exclusive(add_generation_prompt, continue_final_message)
        tag = Placeholders(data, self.source).next() if continue_final_message else None
        return self._render(data, add_generation_prompt, tag)

    def render_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt as token ids: render()'s, encoded without adding special tokens, with one difference.

        Control tokens come from the template alone: what a caller's string spells is encoded as plain text (seal.py).
        """
        data = self._variables(messages, tools, documents, extra)
        _check_exclusive(add_generation_prompt, continue_final_message)
        placeholders = Placeholders(data, self.source)
        seal = Seal(self._tokenizer, placeholders)
        tag = placeholders.next() if continue_final_message else None
        sealed = {name: map_strings(value, seal.close) for name, value in data.items()}
        return seal.encode(self._render(sealed, add_generation_prompt, tag))

    def _variables(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        given = {"messages": messages, "tools": tools, "documents": documents, "chat_template_kwargs": extra}
        for name, value in given.items():
            check_size(value, name)
        told = {
            "messages": placed(plain_messages(messages, self._form), self._turns),
            "tools": plain_list(tools, "tools"),
            "documents": plain_list(documents, "documents"),
        }
        return {**plain_extra(extra, RESERVED), **_with_floats(told)}

    def _render(self, data: dict[str, Any], add_generation_prompt: bool, tag: str | None) -> str:
        """tag: a character found nowhere, if the text is to end where the last message's content does."""
        if self.fault is not None:
            raise ModelFormatError(self.fault.message, param=self.fault.param)
        if tag is not None:
            _tag_last(data["messages"], tag)
        try:
            text = self._environment.render_template(
                "chat", **self._tokenizer.special_tokens, **data, add_generation_prompt=add_generation_prompt
            )
        except (InputError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # lists' and dicts' own methods raise their own, the engine's panics theirs
            raise _failure(error) from None
        if len(text) > MAX_OUTPUT:
            raise InputError(
                f"the prompt is {len(text)} characters long; at most {MAX_OUTPUT} are taken", param="messages"
            )
        return text if tag is None else _cut_at(text, tag)

    def _detect_form(self) -> ContentForm:
        """By trial: which forms of content come out as the text alone. A template that takes none is given strings."""
        string, parts = self._prints("probe"), self._prints([{"type": "text", "text": "probe"}])
        string = string or not parts
        return ContentForm(string=string, parts=parts, null=self._takes_null("" if string else []))

    def _prints(self, content: Any) -> bool:
        text = self._try([{"role": "user", "content": content}])
        return "probe" in text and "'type'" not in text and '"type"' not in text

    def _takes_null(self, empty: Any) -> bool:
        """False where a turn with a call fails, leaves the call out or prints null, and does not with empty content."""
        said = "probe" if empty == "" else [{"type": "text", "text": "probe"}]
        asked = {"role": "user", "content": said}
        result = {"role": "tool", "tool_call_id": _CALL["id"], "name": "probe_call", "content": said}
        null, nothing = (
            self._try([asked, {"role": "assistant", "content": content, "tool_calls": [_CALL]}, result], [_TOOL])
            for content in (None, empty)
        )
        printed = any(null.count(word) > nothing.count(word) for word in ("None", "null"))
        lost = null.count("probe_call") < nothing.count("probe_call")
        return null != "" and not printed and not lost

    def _detect_turns(self) -> TurnForm:
        """By trial: which turns come out. What does not come out alone, or as the first, is given as it stands."""

        def printed(*turns: tuple[str, ...]) -> bool:
            """Of each turn: its role, and the text of its content or of the content's parts."""
            messages = []
            for role, *texts in turns:
                parts = [{"type": "text", "text": text} for text in texts]
                messages.append({"role": role, "content": texts[0] if self._form.string and len(texts) == 1 else parts})
            shown = self._try(messages)
            return all(text in shown for _, *texts in turns for text in texts)

        first, later = ("system", "probe-1"), ("system", "probe-2")
        asked, again, said = ("user", "probe-3"), ("user", "probe-4"), ("assistant", "probe-5")
        heard, answered = printed(first, asked), printed(asked, said)
        return TurnForm(
            several=not heard or printed(first, later, asked),
            late=not heard or printed(first, asked, later, said, again),
            parted=not (heard and self._form.parts) or printed(("system", "probe-1", "probe-2"), asked),
            repeated=not answered or printed(asked, again),
        )

    def _try(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The text; nothing where the template fails."""
        try:
            data = {"messages": messages, "tools": tools, "documents": None}
            return self._render(data, add_generation_prompt=False, tag=None)
        except (InputError, ModelFormatError):
            return ""


def default_template(tokenizer: Tokenizer) -> ChatTemplate:
    """ChatML, for a model that brings no template but has its tokens; InputError for one that has not."""
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids().keys():
        return ChatTemplate(CHATML, tokenizer)
    raise InputError(
        "the model has no chat template; give one by --chat-template (a file or the text), or send a prompt instead of "
        "messages",
        param="messages",
    )


def _compile(environment: minijinja.Environment, source: str) -> None:
    """Add the template, on a stack that holds whatever a source of this length can nest.

    minijinja parses long chains of operators by recursion, and to run out of stack would end the process.
    """
    if len(source) > MAX_SOURCE:
        raise ModelFormatError(f"the chat template is {len(source)} characters long; at most {MAX_SOURCE} are taken")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            environment.add_template("chat", _GENERATION.sub(_as_scope, _LINE_BREAK.sub("\n", source)))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="octavo-template")
    with _STACK_LOCK:
        before = threading.stack_size(STACK + len(source) // 4 * 4 * STACK_PER_CHAR)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        reason = str(errors[0]).partition("\n")[0]  # a listing of the template follows
        message = f"the chat template does not parse: {reason[:400]}; give another by chat_template"
        raise ModelFormatError(f"{message} (--chat-template FILE)", param="chat_template") from None


def _environment() -> minijinja.Environment:
    """As Transformers sets Jinja up."""
    environment = minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        pycompat=True,
        debug=False,
        fuel=FUEL,
        auto_escape_callback=lambda _: False,
    )
    environment.add_filter("tojson", _tojson)
    environment.add_filter("indent", _indent)
    environment.add_global("raise_exception", _raise)
    environment.add_global("strftime_now", lambda form: datetime.now().strftime(form))
    # minijinja's own answer to these is no for strings
    environment.add_test("sequence", lambda value: isinstance(value, str | list | tuple | dict))
    environment.add_test("iterable", lambda value: isinstance(value, str | list | tuple | dict))
    environment.add_test("number", lambda value: isinstance(value, int | float | _Float))
    environment.add_test("float", lambda value: isinstance(value, float | _Float))
    return environment


def _with_floats(value: Any) -> Any:
    """A copy of JSON-like data in which the engine prints every float right."""
    if isinstance(value, float) and (value.is_integer() or "e" in repr(value)):
        return _Float(value)
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = None if separators is None else (separators[0], separators[1])
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=pair, sort_keys=sort_keys, default=_number)
    if not ensure_ascii:
        return text
    # Private-use characters stay, since they may be placeholders.
    return re.sub("[^\x00-\x7f\U000f0000-\U0010ffff]", lambda found: json.dumps(found[0])[1:-1], text)


def _number(value: Any) -> float:
    """json.dumps' default."""
    if isinstance(value, _Float):
        return float(repr(value))
    raise TypeError(f"{type(value).__name__} is not JSON")


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's: the first line and empty ones stay as they are. minijinja's own drops a last line break."""
    if isinstance(width, int) and width > MAX_INDENT:
        raise ValueError(f"indent by {width} is more than {MAX_INDENT}")
    margin = " " * width if isinstance(width, int) else width
    lines = (text + "\n").splitlines()
    return "\n".join(
        margin + line if (first if index == 0 else blank or line) else line for index, line in enumerate(lines)
    )


def _failure(error: BaseException) -> InputError:
    message = f"the chat template fails on these messages: {error}"
    if isinstance(error, minijinja.TemplateError) and error.kind == "OutOfFuel":
        message = f"the chat template takes more than {FUEL} steps for these messages; send fewer or shorter ones"
    return InputError(message[:500], param="messages")


def _raise(message: str) -> NoReturn:
    raise InputError(f"the chat template refuses these messages: {message}"[:500], param="messages")


def _as_scope(found: re.Match[str]) -> str:
    before, end, after = found.groups()
    return f"{{%{before} {end or ''}with {after}%}}"


def _check_exclusive(add_generation_prompt: bool, continue_final_message: bool) -> None:
    if add_generation_prompt and continue_final_message:
        raise InputError(
            "continue_final_message and add_generation_prompt exclude each other; set the latter to false",
            param="continue_final_message",
        )


def _tag_last(messages: list[dict[str, Any]], tag: str) -> None:
    """Put the tag and a space behind the last message's text. The space tells later whether the template trims."""
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + tag + " "
    elif content:
        content[-1]["text"] += tag + " "
    else:
        raise InputError("continue_final_message needs a last message with content", param="continue_final_message")


def _cut_at(text: str, tag: str) -> str:
    place = text.rfind(tag)
    if place < 0:
        raise InputError(
            "continue_final_message: the chat template does not print the last message", param="continue_final_message"
        )
    before = text[:place].replace(tag + " ", "").replace(tag, "")  # a template may print the message twice
    return before if text.startswith(tag + " ", place) else before.rstrip()

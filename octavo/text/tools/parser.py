"""An answer's text in, piece by piece; its content, reasoning and tool calls out.

All that comes out, joined, does not depend on how the text was cut. A call begins with its first certain value, and its
arguments come out as they are written; a text that began like a call and does not come that far is content. A call that
breaks off later has its arguments closed, so that they are JSON, and what could not be read is content. White space
that borders on reasoning or a call is dropped; an answer without either comes out as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from octavo.base.types.output import ToolCall
from octavo.text.reasoning import Reasoning
from octavo.text.tools.bodies import Body
from octavo.text.tools.format import HARMONY, Format
from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import MAX_HEAD, SPACE, Reading, Steps, Tools, end_of
from octavo.text.tools.values import NotAValueError

_ANALYSIS = re.compile(r"<\|channel\|>\s*analysis\b")
_RECIPIENT = re.compile(r"\bto=(?!assistant\b)\S")  # gpt-oss speaks to itself at times
_STARTS, _ENDS = HARMONY[:2], HARMONY[4:]
_HEAD_END = Markers(HARMONY[3:4])


@dataclass
class Delta:
    """What a piece of text brought. calls: as ToolCall tells of deltas."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class Channel:
    """Text of one kind; `border` says that something else stands here."""

    def __init__(self, *, bordered: bool) -> None:
        self.bordered, self._begun = bordered, False
        self._space: list[str] = []

    def push(self, text: str) -> str:
        """The text as far as it is certain to be shown: white space at its end waits for what comes."""
        head = text.rstrip()
        if not head:
            self._space.append(text)
            return ""
        joined = "".join([*self._space, head])
        self._space = [text[len(head) :]]
        if self.bordered:
            shown = joined.lstrip()
            between = joined[: len(joined) - len(shown)] or "\n"
            joined = between + shown if self._begun else shown
        self.bordered, self._begun = False, True
        return joined

    def border(self) -> None:
        """From here to the next text is a border."""
        self.bordered = True

    def finish(self) -> str:
        """White space at the end, where the text ends by itself."""
        return "" if self.bordered else "".join(self._space)


@dataclass
class _Section:
    """A call's text, or a message's head, as far as it has come. marker: what stood before it."""

    reading: Reading
    steps: Steps[None]
    marker: str
    head: bool


State = Callable[["OutputParser", str, int], int]


class OutputParser:
    """One answer's parser. See the module.

    tools: name -> JSON schema of its parameters, of the functions that may be called.  open: the prompt ended inside
    reasoning.  single: calls after the first are dropped.
    """

    def __init__(
        self,
        tool: Format | None,
        reasoning: Reasoning | None,
        *,
        tools: Tools | None = None,
        open: bool = False,
        single: bool = False,
    ) -> None:
        self._tool = tool
        self._tools: Mapping[str, Mapping[str, Any]] = tools or {}
        self._single, self._num_calls = single, 0
        self._rules = rules(tool, reasoning)
        self._content = Channel(bordered=False)
        self._reasoning = Channel(bordered=True)
        self._anchored, self._ends = self._rules.first, self._rules.ends
        self._section: _Section | None = None
        self._doubted = False  # a call's marker has stopped the reasoning, and no call has come of it yet
        self._tail = ""
        self._said: list[str] = []
        self._reasoned: list[str] = []
        self._calls: list[ToolCall] = []
        self._num_said = 0  # characters of content
        self._ids: set[str] = set()  # of the calls
        # functions, not methods: bound to what holds them they would be a cycle, left to the collector
        self._state: State = OutputParser._in_opening if open else OutputParser._at_start

    def feed(self, text: str) -> Delta:
        """What became certain with this text."""
        self._feed(self._tail + text)
        return self._take()

    def _feed(self, text: str) -> None:
        at, self._tail = 0, ""
        while at < len(text):
            at = self._state(self, text, at)

    @property
    def in_reasoning(self) -> bool:
        """True while the text that comes is reasoning."""
        return self._state in (OutputParser._in_reasoning, OutputParser._in_opening)

    @property
    def silent(self) -> bool:
        """True where nothing that has come is still to be content: within reasoning, behind a marker or a call."""
        return self.in_reasoning or (self._section is None and not self._tail and self._content.bordered)

    def finish(self) -> Delta:
        """The rest, once the answer has ended."""
        while self._section is not None:
            self._section.reading.ended = True
            rest, self._tail = self._tail, ""
            at = self._in_section(rest, 0)
            self._feed(rest[at:])
        tail, self._tail = self._tail, ""
        if self.in_reasoning:
            self._reason(tail)
        elif not self._closing(tail):
            self._say(tail)
        self._said.append(self._content.finish())
        return self._take()

    def _take(self) -> Delta:
        if self._section is not None:
            self._calls += self._section.reading.calls()
        delta = Delta("".join(self._said), "".join(self._reasoned), self._calls)
        self._said, self._reasoned, self._calls = [], [], []
        return delta

    def _closing(self, tail: str) -> bool:
        """True for the beginning of a call's last marker, which the answer ended in."""
        behind = self._state == OutputParser._at_start and self._anchored is self._rules.after_call
        return behind and any(closer.startswith(tail) for closer in self._rules.closers)

    def _say(self, text: str) -> None:
        if text:
            self._said.append(self._content.push(text))
            self._num_said += len(self._said[-1])

    def _reason(self, text: str) -> None:
        if text:
            self._reasoned.append(self._reasoning.push(text))

    def _wait(self, text: str, at: int) -> int:
        self._tail = text[at:]
        return len(text)

    # Each state takes text from `at` on and returns how far; what must wait for more text becomes the tail.

    def _at_start(self, text: str, at: int) -> int:
        """The answer's beginning, and what follows reasoning or a call: white space, then a marker or text."""
        behind = self._anchored is self._rules.after_call
        start = end_of(self._rules.gap if behind else SPACE, text, at)
        self._say(text[at:start].translate(self._rules.separators))
        if start == len(text):
            return start
        found = self._anchored.match(text, start)
        if found is not None:
            return self._enter(found[0], found.end())
        if self._anchored.begun(text, start):
            return self._wait(text, start)
        self._state = OutputParser._in_text
        return start

    def _in_text(self, text: str, at: int) -> int:
        found = self._rules.always.search(text, at)
        if found is None:
            hold = len(text) - self._rules.always.held(text, at)
            self._say(text[at:hold])
            return self._wait(text, hold)
        self._say(text[at : found.start()])
        return self._enter(found[0], found.end())

    def _in_opening(self, text: str, at: int) -> int:
        """Inside reasoning that the prompt began; the model may repeat the marker."""
        at = end_of(SPACE, text, at)
        begins = self._rules.begins
        found = begins.match(text, at)
        if found is None and at < len(text) and begins.begun(text, at):
            return self._wait(text, at)
        if at < len(text):
            self._state = OutputParser._in_reasoning
            self._content.border()
        return at if found is None else found.end()

    def _in_reasoning(self, text: str, at: int) -> int:
        found = self._ends.search(text, at)
        if found is None:
            hold = len(text) - self._ends.held(text, at)
            self._reason(text[at:hold])
            return self._wait(text, hold)
        self._reason(text[at : found.start()])
        self._state, self._anchored = OutputParser._at_start, self._rules.first
        self._doubted = self._tool is not None and found[0] in self._tool.begins
        if not self._doubted:
            self._reasoning.border()
        return found.start() if found[0] in self._rules.implied else found.end()

    def _in_section(self, text: str, at: int) -> int:
        section = self._section
        if section is None:
            self._state = OutputParser._in_text
            return at
        reading = section.reading
        reading.more(text, at)
        try:
            next(section.steps)
        except StopIteration:
            return self._take_head(section) if section.head else self._end_calls(reading)
        except NotAValueError:
            return self._fail(section)
        return self._wait(text, reading.pause())

    def _enter(self, marker: str, at: int) -> int:
        rules = self._rules
        if marker in rules.dropped or (marker in rules.closers and self._anchored is rules.after_call):
            self._content.border()
            return at
        if marker in rules.begins.all:
            self._content.border()
            self._state = OutputParser._in_reasoning
            return at
        if marker in rules.heads or self._tool is None:
            reading = Reading({}, known=False, index=0, single=False, ids=set(), text_offset=0, passed=[marker])
            self._section = _Section(reading, _read_head(reading), "", head=True)
        else:
            own = marker == self._tool.bare or marker in self._tool.unmarked  # the call's text itself
            body = replace(self._tool.body, known=True) if own else self._tool.body
            self._begin_call(body, "" if own else marker)
            at -= len(marker) if own else 0
        self._state = OutputParser._in_section
        return at

    def _begin_call(self, body: Body, marker: str, *passed: str) -> None:
        reading = Reading(
            self._tools,
            known=body.known,
            index=self._num_calls,
            single=self._single,
            ids=self._ids,
            text_offset=self._num_said,
            passed=passed,
        )
        self._section = _Section(reading, body.read(reading), marker, head=False)

    def _take_head(self, section: _Section) -> int:
        """A message's head is whole: what it says of the message's text."""
        head = section.reading.passed()
        self._section = None
        self._content.border()
        if self._tool is not None and _RECIPIENT.search(head):
            self._begin_call(self._tool.body, "", head)
        elif _ANALYSIS.search(head):
            self._state = OutputParser._in_reasoning
        else:
            self._state = OutputParser._in_text
        return section.reading.at

    def _end_calls(self, reading: Reading) -> int:
        self._calls += reading.calls()
        self._num_calls = reading.index
        self._content.border()
        if self._doubted:
            self._reasoning.border()
            self._doubted = False
        self._section, self._state, self._anchored = None, OutputParser._at_start, self._rules.after_call
        return reading.at

    def _fail(self, section: _Section) -> int:
        """What is in no call is content, or reasoning where that spoke of a call."""
        reading = section.reading
        text = reading.left()
        if reading.told:
            self._end_calls(reading)
        elif self._doubted:
            self._section, self._state, self._doubted = None, OutputParser._in_reasoning, False
            self._reason(section.marker + text)
            return reading.at
        else:
            self._section, self._state = None, OutputParser._in_text
            text = section.marker + text
        self._say(text)
        return reading.at


def _read_head(reading: Reading) -> Steps[None]:
    """Pass over a message's head."""
    room = MAX_HEAD
    while True:
        text, at = reading.text, reading.at
        found = _HEAD_END.search(text, at, at + room)
        reading.at = found.end() if found else min(len(text) - _HEAD_END.held(text, at), at + room)
        room -= reading.at - at
        if found:
            return
        if not room or reading.ended:
            raise NotAValueError
        yield


@dataclass(frozen=True)
class Parsing:
    """How the answers to one request are read; the fields are OutputParser's.

    open: None where the prompt has ended the reasoning.  kept_tokens: special tokens whose text the parser needs.
    """

    tool: Format | None
    reasoning: Reasoning | None
    tools: Tools = field(default_factory=dict)
    open: bool | None = False
    single: bool = False
    kept_tokens: frozenset[int] = frozenset()

    def parser(self) -> OutputParser:
        """A parser for one answer."""
        return OutputParser(self.tool, self.reasoning, tools=self.tools, open=bool(self.open), single=self.single)


@dataclass(frozen=True)
class Rules:
    """What the two rows come to. first: markers at the answer's beginning, and behind reasoning; after_call: behind a
    call; always: inside of text.  begins, ends: of reasoning.  heads: of messages.  dropped: shown to nobody.
    """

    first: Markers
    after_call: Markers
    always: Markers
    begins: Markers
    ends: Markers
    implied: tuple[str, ...]
    heads: tuple[str, ...]
    dropped: tuple[str, ...]
    closers: tuple[str, ...]
    gap: re.Pattern[str]
    separators: dict[int, None]


@cache
def rules(tool: Format | None, reasoning: Reasoning | None) -> Rules:
    """ValueError where one marker stands inside another."""
    messages = (tool is not None and tool.messages) or (reasoning is not None and reasoning.messages)
    heads = (*_STARTS, "to=functions") if messages else ()
    begins = reasoning.begins if reasoning else ()
    dropped = (*(tool.wraps if tool else ()), *((*reasoning.wraps, *reasoning.dropped) if reasoning else ()))
    dropped += _ENDS if messages else ()
    dropped += reasoning.ends if reasoning and reasoning.anywhere else ()
    always = (*((*tool.begins, *tool.unmarked) if tool else ()), *dropped, *(heads[:2]))
    always += begins if reasoning and reasoning.anywhere else ()
    implied = tuple(marker for marker in reasoning.implied if marker in always) if reasoning else ()
    implied += _STARTS if messages else ()
    bare = (tool.bare,) if tool else ()
    closers = tool.closers if tool else ()
    between = tool.between if tool else ""
    return Rules(
        first=Markers((*always, *heads, *begins, *bare)),
        after_call=Markers((*always, *heads, *begins, *bare, *closers)),
        always=Markers(always),
        begins=Markers(begins),
        ends=Markers(((*reasoning.ends,) if reasoning else ()) + implied + (_ENDS if messages else ())),
        implied=implied,
        heads=heads,
        dropped=dropped,
        closers=closers,
        gap=re.compile(rf"[\s{re.escape(between)}]*"),
        separators={ord(char): None for char in between},
    )

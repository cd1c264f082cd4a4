"""A call's text as it comes, and the calls that it holds as they become certain.

A reader (bodies.py) is a generator over a Reading: it looks at text[at:], moves `at` on, and yields where it needs
more; what it has not passed then stands where the text that comes begins. NotAValueError: what stands at `at` cannot
go on so. Whether and where that comes must not depend on how the text was cut: a reader passes all that is settled.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterable, Mapping
from typing import Any, TypeVar

from octavo.base.types.output import ToolCall, ToolCallStatus
from octavo.text.tools.values import NotAValueError

MAX_HEAD = 512  # characters before a call's arguments, or in a message's head
SPACE = re.compile(r"\s*")
NAME = r"[A-Za-z0-9_.:/-]{1,128}"
_NAME = re.compile(NAME)

T = TypeVar("T")
Pattern = re.Pattern[str]
Steps = Generator[None, None, T]
Tools = Mapping[str, Mapping[str, Any]]
"""Name -> JSON schema of the parameters."""


def end_of(pattern: Pattern, text: str, at: int, most: int = sys.maxsize) -> int:
    """Where what the pattern takes at text[at:most] ends; `at` where it takes nothing."""
    found = pattern.match(text, at, most)
    return at if found is None else found.end()


class Reading:
    """One section of an answer, which begins with a call's marker.

    known: only functions in tools are called.  index: the first call's.  single: of the answer's calls only the
    first is told of.  ids: of the answer's calls.  text_offset: theirs.  passed: the section's text so far.  ended: no
    more will come.  told: some call has been told of.
    """

    def __init__(
        self,
        tools: Tools,
        *,
        known: bool,
        index: int,
        single: bool,
        ids: set[str],
        text_offset: int,
        passed: Iterable[str],
    ) -> None:
        self.tools, self.index = tools, index
        self.text, self.at, self.ended, self.told = "", 0, False, False
        self._known, self._single = known, single
        self._ids, self._text_offset = ids, text_offset
        self._calls: list[ToolCall] = []
        self._from = 0  # text[_from:at], behind _passed, has been passed and is in no call yet
        self._passed: list[str] = [*passed]
        self._aside: list[str] = []  # what was passed before that
        self._name = ""
        self._id: str | None = None
        self._open = self._fresh = False  # the call that is read has been told of, has been and its name has not
        self._pieces: list[str] = []
        self._closing = ""

    # What OutputParser does

    def more(self, text: str, at: int) -> None:
        """What comes behind all that was passed."""
        self.text, self.at, self._from = text, at, at

    def pause(self) -> int:
        """All up to the returned position was passed."""
        if self._from < self.at:
            self._passed.append(self.text[self._from : self.at])
            self._from = self.at
        return self.at

    def calls(self) -> list[ToolCall]:
        """What became certain since the last time."""
        if self._pieces or self._fresh:
            self._tell("in_progress")
        calls, self._calls = self._calls, []
        return calls

    def left(self) -> str:
        """What was passed and is in no call; of a call that is open, the arguments are closed, so that they are JSON.

        Where the answer ended within a call, what may have come next is dropped.
        """
        text = "".join(self._aside) + self.passed()
        if self._open:
            self._pieces.append(self._closing)
            self._tell("incomplete")
            self.index += 1
            if self.ended:
                self.at = len(self.text)
                return ""
        return text

    # What readers do

    def char(self, space: Pattern = SPACE) -> Steps[str]:
        """Pass over white space; the next character, which stays, or "" at the end."""
        while True:
            self.at = end_of(space, self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            yield

    def need(self, char: str, space: Pattern = SPACE) -> Steps[None]:
        """Pass over white space and this character."""
        if (yield from self.char(space)) != char:
            raise NotAValueError
        self.at += 1

    def comma(self, end: str, space: Pattern = SPACE) -> Steps[bool]:
        """Pass over white space and a comma: True, or `end`: False."""
        char = yield from self.char(space)
        if char != "," and char != end:
            raise NotAValueError
        self.at += 1
        return char == ","

    def starts(self, literal: str) -> Steps[bool]:
        """Pass over white space, and over `literal` if it follows."""
        yield from self.char()
        found = yield from self.next_is(literal)
        if found:
            self.at += len(literal)
        return found

    def next_is(self, literal: str) -> Steps[bool]:
        """Whether `literal` follows; it stays."""
        while True:
            rest = self.text[self.at : self.at + len(literal)]
            if rest == literal:
                return True
            if self.ended or not literal.startswith(rest):
                return False
            yield

    def word(self, pattern: Pattern) -> Steps[str]:
        """Pass over what the pattern takes: fewer than MAX_HEAD characters."""
        while True:
            end = end_of(pattern, self.text, self.at, self.at + MAX_HEAD)
            if end < len(self.text) or end - self.at == MAX_HEAD or self.ended:
                break
            yield
        word = self.text[self.at : end]
        if not word or len(word) == MAX_HEAD:
            raise NotAValueError
        self.at = end
        return word

    def head(self, pattern: Pattern) -> Steps[str]:
        """Pass over what the pattern takes, at most MAX_HEAD characters; all that was passed since the last `aside`."""
        room = MAX_HEAD
        while True:
            start = self.at
            self.at = end_of(pattern, self.text, start, start + room)
            room -= self.at - start
            if self.at < len(self.text):
                return self.passed()
            if self.ended:
                raise NotAValueError
            yield

    def passed(self) -> str:
        """What was passed since the last `take` or `aside`."""
        text = self.text[self._from : self.at]
        return "".join([*self._passed, text]) if self._passed else text

    def take(self) -> str:
        """The same, which is in a call now."""
        text = self.text[self._from : self.at]
        if self._passed:
            text = "".join([*self._passed, text])
            self._passed.clear()
        self._from = self.at
        return text

    def aside(self) -> None:
        """What was passed is in no call, but what follows may be."""
        self._aside.append(self.take())

    def named(self, name: Any) -> str:
        """The name, where such a function may be called."""
        if not isinstance(name, str) or not _NAME.fullmatch(name) or (self._known and name not in self.tools):
            raise NotAValueError
        return name

    def begin(self, name: str, own_id: str | None) -> None:
        """A call, which is told of with its first piece."""
        self._name, self._id = self.named(name), own_id

    def put(self, piece: str, closing: str) -> None:
        """A piece of the arguments that is certain; `closing` would make JSON of all there are."""
        if not self._open:
            self._open = self._fresh = self.told = True
        if self._aside:
            self._aside.clear()
        if piece:
            self._pieces.append(piece)
        self._closing = closing

    def end(self) -> None:
        """The call is whole."""
        self._tell("completed")
        self._open = False
        self.index += 1

    def _tell(self, status: ToolCallStatus) -> None:
        name, own_id = (self._name, self._id) if self._fresh else ("", None)
        if own_id in self._ids:  # the results of calls are told apart by it
            own_id = None
        elif own_id is not None:
            self._ids.add(own_id)
        if not (self._single and self.index):
            self._calls.append(ToolCall(name, "".join(self._pieces), own_id, self.index, status, self._text_offset))
        self._fresh = False
        self._pieces = []

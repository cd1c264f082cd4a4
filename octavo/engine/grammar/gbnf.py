"""GBNF, as llama.cpp has it, read: text in, a tree a rule out. What is wrong is told with its line.

Source: llama.cpp's grammars/README.md. Beyond it a rule goes on over line ends until the next `name ::=`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NoReturn

from octavo.base.errors import InputError

FIELD = "structured_outputs.grammar"
LAST = 0x10FFFF
MAX_RULES, MAX_DEPTH, MAX_COUNT, MAX_LITERAL = 1000, 64, 10_000, 8192
_RULE = re.compile(r"^[ \t]*[A-Za-z0-9_-]+\s*::=", re.MULTILINE)
_BLANK = re.compile(r"(?:\s|#[^\n]*)*+")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HEAD = re.compile(r"([A-Za-z0-9_-]+)\s*::=")
_COUNT = re.compile(r"[*+?]|\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{1,9})?\s*)?\}")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", **{char: char for char in "\\\"'[]-^/"}}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile("x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}")
_SURROGATES = ((0xD800, 0xDFFF),)
_SHOWN = 40  # characters of the user's own text in an error

Ranges = tuple[tuple[int, int], ...]
"""Characters: ranges of code points, ascending and apart."""


@dataclass(eq=False)
class Node:
    """A place in a rule: the text, the characters or the rule `name` that stands there, or parts.

    kind: text, chars, rule, all (one part after the other), any (one of them), repeat (one part, low to high times).
    """

    kind: str
    line: int = 0
    text: str = ""
    chars: Ranges = ()
    parts: list[Node] = field(default_factory=list)
    low: int = 1
    high: int | None = 1


def is_gbnf(text: str) -> bool:
    """Whether a grammar is in GBNF and not in Lark, in which no rule has '::='."""
    return _RULE.search(text) is not None


def parse(text: str) -> dict[str, Node]:
    """The rules by name. Raises InputError naming line and fault."""
    return _Reader(text).rules()


def united(*sets: Ranges) -> Ranges:
    """Characters of any of them."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(part for one in sets for part in one):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_ends = [found.start() for found in re.finditer("\n", text)]
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip()
        while self._at < len(self._text):
            head = _HEAD.match(self._text, self._at)
            if head is None:
                self._fail("')' closes no group" if self._peek() == ")" else "a rule, name ::= ..., is expected")
            if head[1] in found:
                self._fail(f"the rule {head[1]!r} is there twice, first in line {found[head[1]].line}")
            if len(found) == MAX_RULES:
                self._fail(f"there are more than {MAX_RULES} rules")
            line, self._at = self._line(), head.end()
            self._skip()
            body = self._any()
            found[head[1]] = Node("all", line, parts=[body])
        for node in found.values():
            _check_names(node, found)
        if "root" not in found:
            raise InputError(f"{FIELD}: there is no rule 'root', with which an answer begins", param=FIELD)
        return found

    def _any(self) -> Node:
        line = self._line()
        choices = [self._all()]
        while self._peek() == "|":
            self._step()
            choices.append(self._all())
        return choices[0] if len(choices) == 1 else Node("any", line, parts=choices)

    def _all(self) -> Node:
        line = self._line()
        items: list[Node] = []
        while self._peek() not in ("", "|", ")") and not _HEAD.match(self._text, self._at):
            item = self._item()
            self._skip()
            if self._peek() in ("*", "+", "?", "{"):
                item = self._repeat(item)
                self._skip()
            items.append(item)
        return items[0] if len(items) == 1 else Node("all", line, parts=items)

    def _item(self) -> Node:
        line, first = self._line(), self._peek()
        if first == '"':
            return Node("text", line, self._quoted())
        if first == "[":
            return Node("chars", line, chars=self._class())
        if first == "(":
            return self._group(line)
        if first == ".":
            self._at += 1
            return Node("chars", line, chars=((0, LAST),))
        name = _NAME.match(self._text, self._at)
        if name is None:
            self._fail('a "text", a [class], the name of a rule or a (group) is expected')
        self._at = name.end()
        return Node("rule", line, name[0])

    def _group(self, line: int) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"groups nest deeper than {MAX_DEPTH}")
        self._step()
        node = self._any()
        if self._peek() != ")":
            self._fail(f"'(' of line {line} is not closed")
        self._at += 1
        self._depth -= 1
        return node

    def _repeat(self, node: Node) -> Node:
        found = _COUNT.match(self._text, self._at)
        if found is None:
            self._fail("a count is {m}, {m,} or {m,n}")
        sign = found[0]
        low = int(found[1] or sign == "+")
        high = None if sign in "*+" or (found[2] and not found[3]) else int(found[3] or found[1] or 1)
        if max(low, high or 0) > MAX_COUNT or (high is not None and high < low):
            self._fail(f"counts go up to {MAX_COUNT}, and the second is not below the first")
        self._at = found.end()
        return Node("repeat", node.line, parts=[node], low=low, high=high)

    def _quoted(self) -> str:
        start, chars = self._at, []
        self._at += 1
        while self._peek() != '"':
            if not self._peek():
                self._fail('the text has no closing "', at=start)
            chars.append(self._char())
        self._at += 1
        if len(chars) > MAX_LITERAL:
            self._fail(f"a text of {len(chars)} characters; at most {MAX_LITERAL} are taken", at=start)
        return "".join(chars)

    def _class(self) -> Ranges:
        start = self._at
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        found: list[tuple[int, int]] = []
        while self._peek() != "]":
            if not self._peek():
                self._fail("the character class has no closing ]", at=start)
            low = high = ord(self._char())
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = ord(self._char())
            if high < low:
                self._fail("a range of the character class is empty: its end is before its begin", at=start)
            found.append((low, high))
        self._at += 1
        chars = united(tuple(found), _SURROGATES if negated else ())
        if negated:
            edges = [-1, *(edge for part in chars for edge in part), LAST + 1]
            chars = tuple((a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1)
        if not chars:
            self._fail("the character class admits no character", at=start)
        return chars

    def _char(self) -> str:
        start = self._at
        self._at += 1
        char = self._text[start : self._at]
        if char == "\\":
            kind = self._peek()
            self._at += 1
            digits = self._text[self._at : self._at + _DIGITS.get(kind, 0)]
            if kind in _ESCAPES:
                char = _ESCAPES[kind]
            elif not re.fullmatch(_HEX, kind + digits) or int(digits, 16) > LAST:
                self._fail(
                    'an unknown escape; there are \\n \\r \\t \\\\ \\" \\[ \\] \\- \\^ \\xXX \\uXXXX \\UXXXXXXXX',
                    at=start,
                )
            else:
                char = chr(int(digits, 16))
                self._at += len(digits)
        if "\ud800" <= char <= "\udfff":
            self._fail("half a character (a surrogate); write the whole one as \\UXXXXXXXX", at=start)
        return char

    def _step(self) -> None:
        self._at += 1
        self._skip()

    def _skip(self) -> None:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _line(self, at: int | None = None) -> int:
        return bisect_left(self._line_ends, self._at if at is None else at) + 1

    def _fail(self, fault: str, *, at: int | None = None) -> NoReturn:
        start = self._at if at is None else at
        shown = self._text[start : start + _SHOWN].partition("\n")[0]
        place = f"line {self._line(start)}, at {shown!r}" if shown else f"line {self._line(start)}, at its end"
        raise InputError(f"{FIELD}: {place}: {fault}", param=FIELD)


def _check_names(node: Node, rules: dict[str, Node]) -> None:
    if node.kind == "rule" and node.text not in rules:
        raise InputError(f"{FIELD}: line {node.line}: there is no rule {node.text[:_SHOWN]!r}", param=FIELD)
    for part in node.parts:
        _check_names(part, rules)

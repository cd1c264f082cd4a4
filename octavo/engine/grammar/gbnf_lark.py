"""GBNF in, llguidance's Lark out, which admits the same texts.

The library cuts a text into lexemes, the longest that may stand at a place, and does not come back to try a shorter
one; GBNF knows characters only. A lexeme is thus made of as much of a rule as a regex can say without a longer match
ever being the wrong one: that is told from the characters that may come next. The rest is cut down, to single
characters at last. (Single characters throughout would do, but a mask then takes 250 times as long.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from octavo.base.errors import InputError
from octavo.engine.grammar.gbnf import FIELD, Node, Ranges, parse, united

MAX_REGEX = 16_384  # characters of one
MAX_REGEX_DEPTH = 100
MAX_PLACES = 2048


@lru_cache(maxsize=4)  # a check compiles it, and then looks for its regexes
def gbnf_to_lark(text: str) -> str:
    """Raises InputError naming line and fault."""
    return _Converter(parse(text)).lark()


@dataclass(frozen=True)
class _Regex:
    """What is known of a part without recursion. first: characters that its texts begin with; later: those that come
    behind; more: those that may go on a text that is complete (or more than those)."""

    regex: str
    depth: int
    empty: bool
    first: Ranges
    later: Ranges
    more: Ranges
    text: str | None = None


_NOTHING = _Regex("", 0, True, (), (), ())


@dataclass(frozen=True)
class _Ends:
    """Of a part that may recur: whether it may be empty, and the places it may begin and end with, a bit each."""

    empty: bool = False
    first: int = 0
    last: int = 0


class _Converter:
    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._names = {name: "start" if name == "root" else f"r{i}" for i, name in enumerate(rules)}
        self._known: dict[Node, _Regex | None] = {}
        self._whole: dict[str, _Regex | None] = {}
        self._cut: set[Node] = set()
        self._ends: dict[str, _Ends] = {}
        self._places: dict[Node, int] = {}
        self._follow: list[int] = []

    def lark(self) -> str:
        self._find_regexes()
        while wrong := self._wrong():
            for node in wrong:
                self._cut_up(node)
        begin = self._ends["root"]
        if not begin.first and not begin.empty:
            raise InputError(
                f"{FIELD}: no text begins by the rule 'root'; give it a choice without itself", param=FIELD
            )
        return "\n".join(f"{self._names[name]}: {self._text(self._rules[name])}" for name in self._used())

    def _find_regexes(self) -> None:
        """Rules after those that they name; what is left then are those that recur."""
        named = {name: {node.text for node in _walk(body) if node.kind == "rule"} for name, body in self._rules.items()}
        users: dict[str, list[str]] = {name: [] for name in self._rules}
        for name, others in named.items():
            for other in others:
                users[other].append(name)
        ready = [name for name, others in named.items() if not others]
        while ready:
            name = ready.pop()
            self._whole[name] = self._regex(self._rules[name])
            for user in users[name]:
                named[user].discard(name)
                if not named[user]:
                    ready.append(user)
        for name in self._rules.keys() - self._whole.keys():
            self._regex(self._rules[name])

    def _regex(self, node: Node) -> _Regex | None:
        parts = [self._regex(part) for part in node.parts]
        if node.kind == "rule":
            made = self._whole.get(node.text)
        elif None in parts:
            made = None
        else:
            made = _joined(node, [part for part in parts if part is not None])
        if made is not None and (len(made.regex) > MAX_REGEX or made.depth > MAX_REGEX_DEPTH):
            made = None
        self._known[node] = made
        return made

    def _lexeme(self, node: Node) -> _Regex | None:
        return None if node in self._cut else self._known[node]

    def _cut_up(self, node: Node) -> None:
        self._cut.add(node)
        if node.kind == "text":
            node.parts = [Node("text", node.line, char) for char in node.text]
            node.kind = "all"
            for part in node.parts:
                self._regex(part)
        elif node.kind == "rule":
            self._cut.add(self._rules[node.text])

    def _used(self) -> list[str]:
        """The rules that are not part of a lexeme."""
        found, new = {"root": None}, ["root"]
        while new:
            for node in self._open(self._rules[new.pop()]):
                if node.kind == "rule" and self._lexeme(node) is None and node.text not in found:
                    found[node.text] = None
                    new.append(node.text)
        return list(found)

    def _open(self, node: Node) -> Iterator[Node]:
        """The parts down to the lexemes."""
        yield node
        if self._lexeme(node) is None:
            for part in node.parts:
                yield from self._open(part)

    def _wrong(self) -> set[Node]:
        """Lexemes whose longest match may be the wrong one, as the grammar is cut now."""
        used = self._used()
        lexemes = [node for name in used for node in self._open(self._rules[name]) if self._lexeme(node) is not None]
        if len(lexemes) > MAX_PLACES:
            raise InputError(f"{FIELD} has more than {MAX_PLACES} parts; make it simpler", param=FIELD)
        self._places = {node: 1 << i for i, node in enumerate(lexemes)}
        self._follow = [0] * len(lexemes)
        self._ends = {}
        before: dict[str, _Ends] | None = None
        while before != self._ends:
            before = dict(self._ends)
            for name in reversed(used):
                self._ends[name] = self._find_ends(self._rules[name])
        regexes = [self._known[node] or _NOTHING for node in lexemes]
        after = [united(*(regexes[i].first for i in _bits(follow))) for follow in self._follow]
        wrong: set[Node] = set()
        for i, others in enumerate(self._together(regexes)):
            for j in _bits(others):
                if lexemes[j] not in wrong and _goes_on(regexes[i], regexes[j], after[i]):
                    wrong.add(lexemes[j])
        return wrong

    def _together(self, regexes: list[_Regex]) -> list[int]:
        """For each lexeme those that may stand at the same place, behind the same text."""
        found = [0] * len(regexes)
        begin = self._ends["root"].first
        new = [(begin, begin)]
        while new:
            some, others = new.pop()
            for i in _bits(some):
                for j in _bits(others & ~found[i]):
                    found[i] |= 1 << j
                    found[j] |= 1 << i
                    if _may_equal(regexes[i], regexes[j]):
                        new += [(self._follow[i], self._follow[j]), (self._follow[j], self._follow[i])]
        return found

    def _find_ends(self, node: Node) -> _Ends:
        """Notes on the way what may follow what."""
        lexeme = self._lexeme(node)
        if lexeme is not None:
            return _Ends(lexeme.empty, self._places[node], self._places[node])
        if node.kind == "rule":
            return self._ends.get(node.text, _Ends())
        parts = [self._find_ends(part) for part in node.parts]
        if node.kind == "any":
            first = last = 0
            for part in parts:
                first, last = first | part.first, last | part.last
            return _Ends(any(part.empty for part in parts), first, last)
        if node.kind == "repeat" and node.high != 1:
            self._link(parts[0].last, parts[0].first)
        made = _Ends(empty=True)
        for part in parts:
            self._link(made.last, part.first)
            first = made.first | part.first if made.empty else made.first
            last = made.last | part.last if part.empty else part.last
            made = _Ends(made.empty and part.empty, first, last)
        return _Ends(empty=True, first=made.first, last=made.last) if node.kind == "repeat" and not node.low else made

    def _link(self, last: int, first: int) -> None:
        for i in _bits(last):
            self._follow[i] |= first

    def _text(self, node: Node) -> str:
        lexeme = self._lexeme(node)
        if node.kind == "text":
            return json.dumps(node.text).replace("\x7f", "\\u007f")
        if lexeme is not None:
            return f"/{lexeme.regex}/" if lexeme.first else '""'
        if node.kind == "rule":
            return self._names[node.text]
        parts = [self._text(part) for part in node.parts]
        if node.kind == "any":
            return f"({' | '.join(parts)})"
        if node.kind == "repeat":
            return f"({parts[0]}){_count(node)}" if node.high != 0 else '""'
        return " ".join(parts) or '""'


def _goes_on(one: _Regex, other: _Regex, after: Ranges) -> bool:
    """Whether, where `one` is complete, what comes after it may go on `other`."""
    if one == other:
        return _overlap(one.more, after)
    return _overlap(one.first, other.first) and _overlap(other.later, after)


def _may_equal(one: _Regex, other: _Regex) -> bool:
    if one.text is not None and other.text is not None:
        return one.text == other.text
    return _overlap(one.first, other.first)


def _joined(node: Node, parts: list[_Regex]) -> _Regex:
    """Of a node whose parts are known."""
    if node.kind == "text":
        chars = [((ord(char), ord(char)),) for char in node.text]
        later = united(*chars[1:])
        return _Regex("".join(map(_escaped, node.text)), 0, not chars, united(*chars[:1]), later, (), node.text)
    if node.kind == "chars":
        pairs = (_escaped(chr(low)) + (f"-{_escaped(chr(high))}" if high > low else "") for low, high in node.chars)
        return _Regex(f"[{''.join(pairs)}]", 0, False, node.chars, (), ())
    depth = 1 + max((part.depth for part in parts), default=0)
    if node.kind == "any":
        first, later = united(*(part.first for part in parts)), united(*(part.later for part in parts))
        apart = not any(_overlap(a.first, b.first) for i, a in enumerate(parts) for b in parts[:i])
        more = united(*(part.more for part in parts)) if apart else later
        regex = "|".join(part.regex for part in parts)
        return _Regex(f"(?:{regex})", depth, any(part.empty for part in parts), first, later, more)
    if node.kind == "repeat":
        if node.high == 0:
            return _NOTHING
        made = _then(parts[0], parts[0]) if node.high != 1 else parts[0]
        regex = f"(?:{parts[0].regex}){_count(node)}"
        more = united(made.more, made.first) if node.high not in (node.low, 1) else made.more
        return _Regex(regex, depth, made.empty or not node.low, made.first, made.later, more)
    made = _NOTHING
    for part in parts:
        made = _then(made, part)
    return _Regex(made.regex, depth, made.empty, made.first, made.later, made.more)


def _then(one: _Regex, other: _Regex) -> _Regex:
    first = united(one.first, other.first) if one.empty else one.first
    later = united(one.later, other.later, other.first) if one.first else other.later
    if _overlap(one.more, other.first) or (one.empty and _overlap(one.first, other.first)):
        more = later  # where the one ends and the other begins is not certain
    else:
        more = united(other.more, one.more, other.first) if other.empty else other.more
    return _Regex(one.regex + other.regex, 0, one.empty and other.empty, first, later, more)


def _count(node: Node) -> str:
    high = "" if node.high is None else node.high
    return {"0,": "*", "1,": "+", "0,1": "?"}.get(f"{node.low},{high}", f"{{{node.low},{high}}}")


def _escaped(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"


def _overlap(one: Ranges, other: Ranges) -> bool:
    i = j = 0
    while i < len(one) and j < len(other):
        if one[i][1] < other[j][0]:
            i += 1
        elif other[j][1] < one[i][0]:
            j += 1
        else:
            return True
    return False


def _bits(places: int) -> Iterator[int]:
    while places:
        low = places & -places
        yield low.bit_length() - 1
        places ^= low


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for part in node.parts:
        yield from _walk(part)

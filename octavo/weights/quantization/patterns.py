"""A pattern of a quantization_config in, compiled out; one that could try a name in too many ways is refused.

Python's matcher goes back and tries another way as long as there is one: ([a-z.]+)+! takes hours for one module's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf

from octavo.base.errors import ModelFormatError

_LENGTH = 64
"""Characters of a module's name, about: as many ways has a repeat to end."""
_MOST_WAYS = 2.0**32
_TOKEN = re.compile(
    r"(?P<atom>\\.|\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<flags>\(\?[aimsLu]+\))"
    r"|(?P<open>\((?:\?(?:[:=!>]|<[=!]|P<\w+>|[aimsLu]+:)|(?!\?)))"
    r"|(?P<unknown>\(\?)"
    r"|(?P<close>\))"
    r"|(?P<choice>\|)"
    r"|(?P<repeat>(?:[*+?]|\{(?:\d+(?:,\d*)?|,\d*)\})[+?]?)"
    r"|(?P<other>.)",
    re.DOTALL,
)


@dataclass
class _Group:
    """Ways to match what was read of a group. choices: its branches so far.  before, item: this one, and its end."""

    choices: float = 0.0
    before: float = 1.0
    item: float = 1.0

    @property
    def ways(self) -> float:
        return self.choices + self.before * self.item

    def add(self, ways: float) -> None:
        self.before, self.item = self.before * self.item, ways


def compile_pattern(text: str) -> re.Pattern[str]:
    """Raises ModelFormatError for one that is wrong or may take for ever."""
    try:
        compiled = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refused(text, f"is wrong ({error}); correct it") from None
    if _ways(text) > _MOST_WAYS:
        raise _refused(
            text,
            "may take for ever; write it without a repeat of what repeats or branches itself, with at most five of "
            ".*, and without (?x), (?#...), (?P=...) and (?(1)...)",
        )
    return compiled


def _ways(text: str) -> float:
    """At most how many a valid pattern tries for a name: infinite where it repeats what matches in several ways."""
    groups = [_Group()]
    for token in _TOKEN.finditer(text):
        kind, group = token.lastgroup, groups[-1]
        if kind == "unknown":
            return inf
        if kind == "open":
            groups.append(_Group())
        elif kind == "close":
            groups.pop()
            groups[-1].add(group.ways)
        elif kind == "choice":
            group.choices, group.before, group.item = group.ways, 1.0, 1.0
        elif kind == "repeat":
            group.item = _repeated(group.item, _most(token[0]))
        elif kind != "flags":
            group.add(1.0)
    return groups[0].ways


def _repeated(ways: float, most: float) -> float:
    if most > 1:
        return inf if ways > 1 else _LENGTH
    return ways + 1


def _most(repeat: str) -> float:
    """How often at most: of ?, *, +, {2}, {,3}, {2,}; whatever follows."""
    if repeat[0] != "{":
        return 1 if repeat[0] == "?" else inf
    last = repeat[1 : repeat.index("}")].rpartition(",")[2]
    return int(last) if last else inf


def _refused(text: str, why: str) -> ModelFormatError:
    return ModelFormatError(
        f"config.json: quantization_config: the pattern {text[:80]!r} {why}", param="quantization_config"
    )

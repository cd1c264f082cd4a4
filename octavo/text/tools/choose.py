"""Which format a model's answers have: by its name, or by what the chat template shows; plug-ins' too.

An installed package adds rows by entry points: group octavo.tool_parsers for a Format, octavo.reasoning_parsers for a
Reasoning, under the name that --tool-call-parser and --reasoning-parser then know.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from octavo.base.errors import ConfigError
from octavo.text import reasoning
from octavo.text.reasoning import Reasoning
from octavo.text.tools import formats
from octavo.text.tools.format import Format

NONE = "none"
TOOL_GROUP, REASONING_GROUP = "octavo.tool_parsers", "octavo.reasoning_parsers"

Row = TypeVar("Row", Format, Reasoning)


@lru_cache(maxsize=32)
def tool_format(name: str | None, template: str) -> Format | None:
    """The format called `name`; where that is None, the one of this template's text. None if there is none.

    Raises ConfigError for a name that is not known.
    """
    if name is None:
        return _by_template(formats.FORMATS, template)
    return _by_name(name, formats.FORMATS, formats.ALIASES, Format, "tool_call_parser")


@lru_cache(maxsize=32)
def reasoning_format(name: str | None, template: str) -> Reasoning | None:
    """The same for reasoning."""
    if name is None:
        return _by_template(reasoning.REASONINGS, template)
    return _by_name(name, reasoning.REASONINGS, reasoning.ALIASES, Reasoning, "reasoning_parser")


def _by_template(rows: Sequence[Row], template: str) -> Row | None:
    return next((row for row in rows if any(all(sign in template for sign in signs) for signs in row.signs)), None)


def _by_name(name: str, rows: Sequence[Row], aliases: dict[str, str], kind: type[Row], option: str) -> Row | None:
    if name == NONE:
        return None
    own: dict[str, Row] = {row.name: row for row in rows}
    found = own.get(aliases.get(name, name))
    if found is not None:
        return found
    group = TOOL_GROUP if kind is Format else REASONING_GROUP
    plugins: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=group)}
    if name not in plugins:
        known = ", ".join(sorted({*own, *aliases, *plugins, NONE}))
        raise ConfigError(f"{option}={name!r:.80} is not known; known are {known}", param=option)
    row = plugins[name].load()
    if not isinstance(row, kind):
        raise ConfigError(f"the plug-in {option}={name!r:.80} gives no {kind.__name__}", param=option)
    return row

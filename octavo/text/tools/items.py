"""Arguments that are made anew, as a reader finds them: value by value, strings piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import Reading, Steps
from octavo.text.tools.values import NotAValueError, dump_json, schema_parts, schema_types, typed


def put(reading: Reading, piece: str, closing: str) -> None:
    """A piece that says what all of the text passed says."""
    reading.take()
    reading.put(piece, closing)


class Items:
    """Arguments that are made anew. root: the function's parameters, a schema."""

    def __init__(self, reading: Reading, name: str) -> None:
        reading.begin(name, None)
        self.reading = reading
        self._before = "{"
        self.root = reading.tools.get(name, {})
        found = [part.get("properties") for part in schema_parts(self.root, self.root)]
        self._schemas = [some for some in found if isinstance(some, dict)]
        self._given: set[str] = set()

    def missing(self, most: int) -> list[str]:
        """Parameters of the function that have not come, at most so many."""
        keys = (key for some in self._schemas for key in some if key not in self._given)
        return list(islice(keys, most))

    def schema(self, key: str) -> dict[str, Any]:
        """Of a value."""
        found = next((some[key] for some in self._schemas if key in some), None)
        return found if isinstance(found, dict) else {}

    def add(self, key: str, value: Any) -> None:
        """A value."""
        self._put(f"{self._key(key)}{dump_json(value)}", "}")

    def open(self, key: str) -> None:
        """A string, which comes in pieces."""
        self._put(f'{self._key(key)}"', '"}')

    def piece(self, text: str) -> None:
        """Of that string."""
        self._put(dump_json(text)[1:-1], '"}')

    def close(self) -> None:
        """That string's end."""
        self._put('"', "}")

    def end(self) -> None:
        """No more come."""
        self._put("{}" if self._before == "{" else "}", "")
        self.reading.end()

    def _key(self, key: str) -> str:
        before, self._before = self._before, ", "
        self._given.add(key)
        return f"{before}{dump_json(key)}: "

    def _put(self, piece: str, closing: str) -> None:
        put(self.reading, piece, closing)


def upto(reading: Reading, ends: Markers, take: Callable[[str], object] | None = None) -> Steps[str]:
    """Pass over text up to and with one of the markers; the marker. take: gets the text."""
    while True:
        text, at = reading.text, reading.at
        found = ends.search(text, at)
        reading.at = found.start() if found else len(text) - ends.held(text, at)
        if take is not None and at < reading.at:
            take(text[at : reading.at])
        if found:
            reading.at = found.end()
            return found[0]
        if reading.ended:
            raise NotAValueError
        yield


class _Lines:
    """Text in, the same out without line ends around it, or as it is where `kept`."""

    def __init__(self, take: Callable[[str], object], *, kept: bool) -> None:
        self._take, self._kept = take, kept
        self._begun, self._held = False, ""

    def take(self, text: str) -> None:
        """A piece, which is not empty."""
        if not self._kept:
            text = self._held + (text if self._begun else text.removeprefix("\n"))
            self._begun, self._held = True, "\n" if text.endswith("\n") else ""
            text = text.removesuffix("\n")
        self._take(text)


def bare_value(
    items: Items,
    key: str,
    ends: Markers,
    end: str,
    broken: str,
    *,
    kept: bool = False,
    schema: Mapping[str, Any] | None = None,
) -> Steps[None]:
    """A bare text up to one of `ends`, in pieces where it can be nothing but a string.

    end: the one that is its own; others are left to what follows.  broken: the one that breaks the call off.
    kept: with the line ends around it.  schema: in place of the tool's.
    """
    schema = items.schema(key) if schema is None else schema
    kinds = schema_types(schema, items.root)
    sent = kinds == {"string"}
    pieces: list[str] = []
    if sent:
        items.open(key)
    lines = _Lines(items.piece if sent else pieces.append, kept=kept)
    marker = yield from upto(items.reading, ends, lines.take)
    if marker != end:
        items.reading.at -= len(marker)
    if marker == broken:
        raise NotAValueError
    if sent:
        items.close()
    else:
        items.add(key, typed("".join(pieces), schema, items.root))

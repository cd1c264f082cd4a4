"""Characters in, the first stop string they complete out; the work per character does not grow with the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """`stop` ends at `end`, counted in the text that was fed last; it may have begun in an earlier one."""

    stop: str
    end: int


class StopMatcher:
    """Knuth, Morris and Pratt's automaton for each stop string, all fed alike.

    The match that ends first wins, and of those that end together the longest: so the result does not depend on
    how the text was cut into pieces.  stops: one at least, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in dict.fromkeys(stops)]
        self._first = re.compile(f"[{''.join({re.escape(stop[0]) for stop in stops})}]")
        self.held = 0

    def feed(self, text: str, *, armed: bool = True) -> Match | None:
        """The match that ends in `text`, or None; after a match feed no more. armed=False lets matches pass.

        `held` is then the number of last characters, over all texts fed, that may still become a stop string.
        """
        position, end = 0, len(text)
        while position < end:
            if not self.held:
                first = self._first.search(text, position)
                if first is None:
                    break
                position = first.start()
            char = text[position]
            position += 1
            found = [automaton.stop for automaton in self._automata if automaton.step(char)]
            self.held = max(automaton.matched for automaton in self._automata)
            if found and armed:
                return Match(max(found, key=len), position)
        return None


class _Automaton:
    """`matched` first characters of `stop` are the last ones of the text. The table grows only as far as needed."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        # _borders[n]: length of the longest proper prefix of stop[:n] that is its suffix too
        self._borders = [0, 0]

    def step(self, char: str) -> bool:
        """True if `stop` ends with this character."""
        stop, matched = self.stop, self.matched
        while matched and stop[matched] != char:
            matched = self._border(matched)
        if stop[matched] == char:
            matched += 1
        whole = matched == len(stop)
        self.matched = self._border(matched) if whole else matched
        return whole

    def _border(self, length: int) -> int:
        borders, stop = self._borders, self.stop
        while len(borders) <= length:
            last = stop[len(borders) - 1]
            border = borders[-1]
            while border and stop[border] != last:
                border = borders[border]
            borders.append(border + 1 if stop[border] == last else 0)
        return borders[length]

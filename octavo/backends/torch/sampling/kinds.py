"""Rows' sampling parameters in; which kernels a step of some of the rows takes, out."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from octavo.backends.torch.sampling.edits import RowEdits
from octavo.backends.torch.sampling.logprobs import ALL, MOST
from octavo.backends.torch.sampling.sampler import is_filtered
from octavo.base.types.plan import RowSampling


class Kind(NamedTuple):
    """Of a step: whether any of its rows cuts its distribution, edits its logits, asks for log probabilities."""

    filtered: bool = False
    edited: bool = False
    logprobs: bool = False


ALL_ON = Kind(filtered=True, edited=True, logprobs=True)


class Kinds:
    """What rows in use ask of the sampler beyond a temperature.

    filtered: draws with top_k, top_p or min_p.  edited: masks, biases or penalties.  logprobs: row -> alternatives.
    beyond: more than the kernels' tables hold; such rows take the eager sampler.
    """

    def __init__(self) -> None:
        self.filtered: set[int] = set()
        self.edited: set[int] = set()
        self.logprobs: dict[int, int] = {}
        self.beyond: set[int] = set()

    def add(self, row: int, sampling: RowSampling, edits: RowEdits, *, vocab_size: int) -> None:
        """The row begins."""
        if is_filtered(sampling):
            self.filtered.add(row)
        if not edits.empty or sampling.masked or sampling.has_penalties:
            self.edited.add(row)
        count = sampling.logprobs
        if count is not None:
            self.logprobs[row] = min(count, vocab_size)
        if not edits.fits or count == ALL or self.logprobs.get(row, 0) > MOST:
            self.beyond.add(row)

    def discard(self, row: int) -> None:
        """The row ended."""
        for rows in (self.filtered, self.edited, self.beyond):
            rows.discard(row)
        self.logprobs.pop(row, None)

    def of(self, rows: list[int]) -> Kind:
        """None of `rows` is beyond. What edits takes the filters along: fewer kinds are fewer graphs."""
        edited = meets(rows, self.edited)
        return Kind(edited or meets(rows, self.filtered), edited, meets(rows, self.logprobs.keys()))


def meets(rows: list[int], chosen: Set[int]) -> bool:
    """True if any of `rows` is among the chosen, which as a rule are none."""
    return bool(chosen) and not chosen.isdisjoint(rows)

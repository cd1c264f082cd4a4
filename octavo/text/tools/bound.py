"""A number of tokens in; what bounds a model's reasoning to them, as parts of llguidance's Lark, out.

Marks are named by their ids: models have them as tokens that are spelled out when special ones are skipped, too, and
a grammar could not tell such a token from its letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octavo.base.errors import UnsupportedError
from octavo.base.types.ports import TextTokenizer
from octavo.text.reasoning import Reasoning


@dataclass(frozen=True)
class Bound:
    """At most so many tokens between one that begins the reasoning and one that ends it.

    others: are not among them: special ones, and such as begin a call, by which the reasoning would be over.
    """

    tokens: int
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    others: frozenset[int]

    @property
    def begin(self) -> str:
        """What begins it."""
        return f"<[{_listed(self.begins)}]>"

    @property
    def rest(self) -> str:
        """What is thought, and its end."""
        not_inside = _listed(self.others.union(self.begins, self.ends))
        inside = f"<[^{not_inside}]>{{0,{self.tokens}}} " if self.tokens else ""
        return f"{inside}<[{_listed(self.ends)}]>"

    def left_open(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the last mark in a prompt is one that begins reasoning, however much of it follows."""
        marks = {*self.begins, *self.ends}
        return next((number for number in reversed(prompt_ids) if number in marks), None) in self.begins

    @property
    def answer(self) -> str:
        """Any text in which no more reasoning begins."""
        return f"<[^{_listed(self.begins)}]>*"


def make_bound(tokens: int, reasoning: Reasoning | None, tokenizer: TextTokenizer, *, vocab_size: int) -> Bound:
    """UnsupportedError where the reasoning's tokens cannot be counted. vocab_size: the model's, which may be less."""
    if reasoning is not None and can_bound(reasoning, tokenizer, vocab_size=vocab_size):
        marks = reasoning.begins, reasoning.ends, reasoning.implied
        begins, ends, implied = (_ids(some, tokenizer, vocab_size) for some in marks)
        special = {number for number in tokenizer.special_ids().values() if number < vocab_size}
        return Bound(tokens, begins, ends, others=frozenset(special.union(implied)))
    reason = "its answers mark no reasoning" if reasoning is None else "it does not mark reasoning by a token each"
    raise UnsupportedError(
        f"thinking_token_budget is not supported for this model: {reason}; limit the answer with max_tokens",
        param="thinking_token_budget",
    )


def can_bound(reasoning: Reasoning, tokenizer: TextTokenizer, *, vocab_size: int) -> bool:
    """Whether the reasoning's tokens can be counted: they stand between a token each."""
    marks = (*reasoning.begins, *reasoning.ends)
    return bool(reasoning.begins) and len(_ids(marks, tokenizer, vocab_size)) == len(marks)


def _ids(marks: Iterable[str], tokenizer: TextTokenizer, vocab_size: int) -> tuple[int, ...]:
    """Of those that are a token each."""
    found = (tokenizer.token_to_id(mark) for mark in marks)
    return tuple(number for number in found if number is not None and number < vocab_size)


def _listed(ids: Iterable[int]) -> str:
    """1,5-7: runs together, as there may be thousands of special tokens."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number <= runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)

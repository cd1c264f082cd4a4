"""Beam search: what is asked for, and what comes of a prompt. Names, defaults and meanings are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from octavo.base.types.output import Logprob
from octavo.base.types.sampling import MAX_N, SamplingParams, check_integer, check_number

MAX_LENGTH_PENALTY = 20.0


class BeamSearchParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How beams are searched.

    beam_width: beams kept at each step, and sequences returned; twice as many log probabilities are asked for, which
    the engine's max_logprobs bounds.  ignore_eos: go on after an end of text.  temperature: above 0, a token that is
    drawn joins the likeliest ones of each beam.  length_penalty: sequences are ranked by
    cum_logprob / length**length_penalty; the length is that of prompt and output, without an end of text.
    include_stop_str_in_output: the text shows the end of text.  Raises InputError naming the field.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        check_integer("beam_width", self.beam_width, 1, MAX_N)
        check_number("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
        self.sampling()

    def sampling(self) -> SamplingParams:
        """The same as SamplingParams, which check it: n is the beam width."""
        return SamplingParams(
            n=self.beam_width,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output,
        )


@dataclass
class BeamSearchSequence:
    """One beam. tokens: of prompt and output, with the end of text.  text: of tokens, once the search is over.

    logprobs: the candidates of each step, the one taken among them.  finish_reason: stop, or length.
    stop_reason: the end of text's token id.
    """

    tokens: list[int]
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def score(self, length_penalty: float) -> float:
        """By which beams are ranked; see BeamSearchParams."""
        length = len(self.tokens) - (self.finish_reason == "stop")
        return float(self.cum_logprob / length**length_penalty)


@dataclass
class BeamSearchOutput:
    """The best sequences of one prompt, the best one first. error: why the prompt failed; then there are none."""

    sequences: list[BeamSearchSequence]
    error: str | None = None

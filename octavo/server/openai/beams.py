"""A request that asks for beam search in; how its beams are ranked out, or what does not go with it."""

from __future__ import annotations

from octavo.base.errors import InputError
from octavo.base.types.beam_search import MAX_LENGTH_PENALTY
from octavo.base.types.sampling import NO_BUDGET, SamplingParams, check_number
from octavo.server.openai.types import GenerationRequest

_TAKEN = frozenset(
    {
        *("n", "temperature", "max_tokens", "ignore_eos", "include_stop_str_in_output", "logprobs", "output_kind"),
        *("skip_special_tokens", "spaces_between_special_tokens", "structured_outputs"),
    }
)


def length_penalty(request: GenerationRequest, params: SamplingParams) -> float | None:
    """The length penalty of a beam search; None where none is asked for. InputError names what does not go with one."""
    if not request.use_beam_search:
        if request.length_penalty not in (None, 1):
            raise InputError("length_penalty goes with use_beam_search=true", param="length_penalty")
        return None
    usual = SamplingParams()
    for name in SamplingParams.__struct_fields__:
        value = getattr(request, name, None)
        if name == "thinking_token_budget" and value == NO_BUDGET:
            continue
        if name not in _TAKEN and value not in (None, getattr(usual, name), [], {}):
            raise InputError(
                f"{name} does not go with use_beam_search: beams are ranked by likelihood alone", param=name
            )
    if params.structured_outputs is not None:
        told = "structured outputs, nor with calls that must come: beams follow no grammar"
        raise InputError(f"use_beam_search does not go with {told}", param="use_beam_search")
    penalty = 1.0 if request.length_penalty is None else request.length_penalty
    check_number("length_penalty", penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    return penalty

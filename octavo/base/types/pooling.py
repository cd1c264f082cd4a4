"""PoolingParams: what one request's hidden states become. Names are vLLM's."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from octavo.base.errors import InputError

PoolingTask = Literal["embed", "classify", "score", "token_embed"]
TASKS: tuple[PoolingTask, ...] = get_args(PoolingTask)


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """task: embed, classify, score (one label's), or token_embed (every token's state); None: what the model is for.

    dimensions: an embedding is cut to so many numbers, where the model allows it.  use_activation: an embedding is
    normalized, logits become probabilities; None: as the model has it.  truncate_prompt_tokens: a longer prompt is cut
    to so many tokens (-1: to what the model takes), special tokens at the end are kept; None: it is refused.
    Raises InputError naming the field.
    """

    task: PoolingTask | None = None
    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise InputError(f"task must be one of {', '.join(TASKS)}, got {self.task!r:.80}", param="task")
        for name, lowest in (("dimensions", 1), ("truncate_prompt_tokens", -1)):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < 2**31 or value == 0:
                need = "an integer from 1" if lowest == 1 else "an integer from 1, or -1"
                raise InputError(f"{name} must be {need}, got {value!r:.80}", param=name)
        if self.use_activation is not None and not isinstance(self.use_activation, bool):
            raise InputError(
                f"use_activation must be true or false, got {self.use_activation!r:.80}", param="use_activation"
            )


class RowPooling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a backend needs: PoolingParams resolved against the model.

    tokens: every token's vector, not one.  dimensions: 0 for all.  activate: normalize, or the classifier's function.
    second: the position from which on tokens are of the second text of a pair (type 1); 0: there is none.
    """

    tokens: bool = False
    dimensions: int = 0
    activate: bool = True
    second: int = 0

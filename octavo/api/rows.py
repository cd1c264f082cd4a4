"""Prompts and their parameters in; what the Stepper runs, checked, out. For one model and its limits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.api.beam_search import BeamSearch
from octavo.api.model import Model
from octavo.api.outputs import RequestProgress, TokenTexts
from octavo.api.pooling import Pair, PoolingProgress, make_pooling_request
from octavo.api.prompts import Prompt, parse_conversations, spread
from octavo.api.requests import Limits, final_only, make_request
from octavo.api.unused import OF_CHATS, check_unused
from octavo.base.types.beam_search import BeamSearchParams
from octavo.base.types.pooling import PoolingParams, PoolingTask
from octavo.base.types.sampling import SamplingParams


class Rows:
    """Makes requests of one LLM and numbers them. Every method raises InputError for what cannot be run."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self._texts = TokenTexts(model.tokenizer)
        self.numbers = itertools.count()

    def generations(self, prompts: list[Prompt], sampling_params: Any, priority: Any = None) -> list[RequestProgress]:
        """One a prompt, whose output is told when it has ended."""
        params = spread("sampling_params", sampling_params, len(prompts), self._model.default_sampling_params())
        priorities = spread("priority", priority, len(prompts), 0)
        return [
            self.generation(prompt, final_only(one), priority=rank)
            for prompt, one, rank in zip(prompts, params, priorities, strict=True)
        ]

    def generation(self, prompt: Prompt, params: SamplingParams, *, priority: int = 0) -> RequestProgress:
        """One."""
        number, tokenizer = str(next(self.numbers)), self._model.tokenizer
        request = make_request(
            prompt.ids(tokenizer),
            params,
            limits=self._limits,
            request_id=number,
            priority=priority,
            cache_salt=prompt.cache_salt,
        )
        row = RequestProgress(request, request_id=number, prompt=prompt.text, tokenizer=tokenizer, texts=self._texts)
        row.judge = self._limits.judge(params)
        return row

    def search(self, prompt: Prompt, params: BeamSearchParams) -> BeamSearch:
        """A beam search, which makes rows of its own."""
        return BeamSearch(
            self.generation(prompt, params.sampling()),
            length_penalty=params.length_penalty,
            limits=self._limits,
            texts=self._texts,
            width_name="beam_width",
        )

    def poolings(
        self, prompts: Sequence[Prompt | Pair], pooling_params: Any, *, task: PoolingTask | None
    ) -> list[PoolingProgress]:
        """One a prompt. task: for all of them, in place of params.task."""
        rows = []
        default = PoolingParams()
        for prompt, params in zip(
            prompts, spread("pooling_params", pooling_params, len(prompts), default), strict=True
        ):
            number = str(next(self.numbers))
            if task is not None and isinstance(params, PoolingParams):
                params = msgspec.structs.replace(params, task=task)
            request = make_pooling_request(prompt, params, limits=self._limits, request_id=number)
            rows.append(PoolingProgress(request, request_id=number))
        return rows

    def chats(self, messages: Sequence[Any], **options: Any) -> list[Prompt]:
        """Prompts of one conversation, or of each of a list; options are Model.render_chat's, and OF_CHATS."""
        check_unused({name: options.pop(name) for name in OF_CHATS if name in options}, *OF_CHATS)
        rows = [self._model.render_chat(conversation, **options) for conversation in parse_conversations(messages)]
        return [Prompt(self._model.known_tokenizer().decode(ids, skip_special_tokens=False), ids) for ids in rows]

"""A Generation in; RequestOutputs of all its prompts, as they come, out. Leaving the `async with` aborts what goes on.

Outputs are taken in the moment in which they come, by no task: to wake one would cost a token as much as its text.
Nothing piles up: while the client does not take what was sent, the engine's front merges what comes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from octavo.api.aside import end_all
from octavo.api.log import REQUEST_ID
from octavo.api.streams import hand_out
from octavo.base.errors import InputError, OverloadedError, RequestFailedError, row_failure
from octavo.base.metrics.requests import RequestRecorder
from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.base.types.sampling import SamplingParams
from octavo.server.errors import ClientGoneError
from octavo.server.openai.convert import Generation, Prompt, in_terms_of
from octavo.server.services import Services

log = logging.getLogger(__name__)

Take = Callable[[int, RequestOutput], "asyncio.Future[None] | None"]
MOST_LOGGED = 2000  # characters of a request's parameters


class Results:
    """The outputs of one HTTP request's prompts, merged. At most as many prompts run at once as fit into a step."""

    def __init__(self, services: Services, generation: Generation) -> None:
        self._services = services
        self._generation = generation
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Results:
        generation = self._generation
        if self._services.config.enable_log_requests:
            _log_request(generation)
        began = time.monotonic()
        try:
            await self._services.llm.check(generation.params)  # a stream's head would come before a late refusal
        except InputError as error:
            raise in_terms_of(generation.request, error) from None
        if generation.timing is not None:
            generation.timing.checked(time.monotonic() - began)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._tasks:
            await end_all(self._tasks)

    async def each(self, take: Take) -> None:
        """Hand over every output and its prompt's index. Raises what ended a prompt.

        take: returns None, or a future: until that is done nothing more of this prompt is handed over.
        """
        prompts = self._generation.prompts
        if len(prompts) == 1:
            await self._run(0, prompts[0], take)
            return
        slots = asyncio.Semaphore(self._services.llm.config.scheduler.max_num_seqs)

        async def run(index: int, prompt: Prompt) -> None:
            async with slots:
                await self._run(index, prompt, take)

        self._tasks = [asyncio.create_task(run(index, prompt)) for index, prompt in enumerate(prompts)]
        for task in (await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION))[0]:
            task.result()

    async def collect(self, take: Callable[[int, RequestOutput], object]) -> None:
        """`each` for one that never waits."""

        def taken(index: int, output: RequestOutput) -> None:
            take(index, output)

        await self.each(taken)

    async def _run(self, index: int, prompt: Prompt, take: Take) -> None:
        try:
            await self._generate(index, prompt, take)
        except InputError as error:
            raise in_terms_of(self._generation.request, error) from None

    async def _generate(self, index: int, prompt: Prompt, take: Take) -> None:
        generation, request = self._generation, self._generation.request
        reads_tools = generation.parsing is not None and generation.parsing.tool is not None
        recorder = RequestRecorder(
            self._services.metrics.requests,
            generation.params,
            streaming=bool(request.stream),
            tools_of=generation.route if reads_tools else None,
        )
        finished = False

        alone = generation.echo_alone

        def taken(output: RequestOutput) -> asyncio.Future[None] | None:
            nonlocal finished
            recorder.take(output)
            if output.finished:
                finished = True
                if generation.timing is not None:
                    generation.timing.end(output, recorder.num_tokens)
            if output.error is not None:
                raise row_failure(output.error)
            return take(index, _without_answer(output) if alone else output)

        options: dict[str, Any] = {
            "request_id": f"{generation.internal}-{index}",
            "priority": request.priority or 0,
            "cache_salt": request.cache_salt or "",
            "parsing": generation.parsing,
        }
        try:
            await self._follow(prompt, taken, options)
            if not finished:
                raise RequestFailedError("the engine ended the request before it was finished; try again")
        except BaseException as error:
            refused = isinstance(error, InputError | OverloadedError) and recorder.num_tokens == 0
            if not finished and not refused:
                left = isinstance(error, asyncio.CancelledError | ClientGoneError)
                recorder.cut_off("abort" if left else "error")
            raise

    async def _follow(
        self, prompt: Prompt, taken: Callable[[RequestOutput], asyncio.Future[None] | None], options: dict[str, Any]
    ) -> None:
        generation, llm, ids = self._generation, self._services.llm, prompt.token_ids
        if generation.length_penalty is None:
            await llm.follow(ids, generation.params, taken, judged=generation.judged, **options)
        else:
            found = llm.beam_search(
                ids, generation.params, length_penalty=generation.length_penalty, width_name="n", **options
            )
            await hand_out(found, taken)


def _without_answer(output: RequestOutput) -> RequestOutput:
    """The output with what it tells of the prompt alone."""
    choices = [
        CompletionOutput(
            index=choice.index,
            text="",
            token_ids=[],
            logprobs=None if choice.logprobs is None else [],
            finish_reason=None if choice.finish_reason is None else "length",
        )
        for choice in output.outputs
    ]
    return replace(output, outputs=choices)


def _log_request(generation: Generation) -> None:
    """What was asked for, but for the prompts: how many tokens each has, and parameters that are not the defaults."""
    sizes = [len(prompt.token_ids) for prompt in generation.prompts]
    params = {name: value for name, value, usual in _params(generation) if value != usual}
    log.info(
        "request %s to %s: prompt tokens %s, %s",
        REQUEST_ID.get(),
        generation.route,
        sizes,
        repr(params)[:MOST_LOGGED],
        extra={"fields": lambda: {"route": generation.route, "model": generation.model, "prompt_tokens": sum(sizes)}},
    )


def _params(generation: Generation) -> Iterator[tuple[str, object, object]]:
    usual = SamplingParams()
    for name in SamplingParams.__struct_fields__:
        yield name, getattr(generation.params, name), getattr(usual, name)

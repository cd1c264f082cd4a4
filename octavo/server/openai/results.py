"""A Generation in; RequestOutputs of all its prompts, as they come, out. Leaving the `async with` aborts what goes on.

Nothing piles up here: a prompt's next output is asked for when the last one was taken, and the engine's front merges
what came in between. Each output is taken by the task that waited for it: a second one to wake would cost a token
as much as its text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import cast

from octavo.api.log import REQUEST_ID
from octavo.base.errors import InputError, RequestFailedError, row_failure
from octavo.base.metrics.registry import RequestRecorder
from octavo.base.types.output import RequestOutput
from octavo.base.types.sampling import SamplingParams
from octavo.server.openai.convert import Generation, Prompt, in_terms_of
from octavo.server.services import Services

log = logging.getLogger(__name__)

Take = Callable[[int, RequestOutput], Awaitable[None]]
Idle = Callable[[], Awaitable[float]]
MOST_LOGGED = 2000  # characters of a request's parameters


class Results:
    """The outputs of one HTTP request's prompts, merged. At most as many prompts run at once as fit into a step."""

    def __init__(self, services: Services, generation: Generation) -> None:
        self._services = services
        self._generation = generation
        self._slots = asyncio.Semaphore(min(len(generation.prompts), services.llm.config.scheduler.max_num_seqs))
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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def each(self, take: Take, *, wait_s: float | None = None, idle: Idle | None = None) -> None:
        """Hand over every output and its prompt's index, those of one prompt one by one. Raises what ended a prompt.

        idle: called after `wait_s` seconds, and again after the seconds that it returns.
        """
        self._tasks = [
            asyncio.create_task(self._run(index, prompt, take)) for index, prompt in enumerate(self._generation.prompts)
        ]
        going_on = set(self._tasks)
        while going_on:
            done, going_on = await asyncio.wait(going_on, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if going_on and idle is not None:
                wait_s = await idle()

    async def collect(self, take: Callable[[int, RequestOutput], object]) -> None:
        """`each` for one that never waits."""

        async def taken(index: int, output: RequestOutput) -> None:
            take(index, output)

        await self.each(taken)

    async def _run(self, index: int, prompt: Prompt, take: Take) -> None:
        try:
            async with self._slots:
                await self._generate(index, prompt, take)
        except InputError as error:
            raise in_terms_of(self._generation.request, error) from None

    async def _generate(self, index: int, prompt: Prompt, take: Take) -> None:
        generation, request = self._generation, self._generation.request
        reads_tools = generation.parsing is not None and generation.parsing.tool is not None
        recorder = RequestRecorder(
            self._services.metrics,
            generation.params,
            streaming=bool(request.stream),
            tools_of=generation.route if reads_tools else None,
        )
        llm, penalty = self._services.llm, generation.length_penalty
        generate = llm.generate if penalty is None else partial(llm.beam_search, length_penalty=penalty, width_name="n")
        outputs = generate(
            prompt.token_ids,
            generation.params,
            request_id=f"{generation.internal}-{index}",
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            parsing=generation.parsing,
            judged=generation.judged,
        )
        async with aclosing(cast("AsyncGenerator[RequestOutput, None]", outputs)):
            async for output in outputs:
                recorder.take(output)
                if output.finished and generation.timing is not None:
                    generation.timing.end(output, recorder.num_tokens)
                if output.error is not None:
                    raise row_failure(output.error)
                await take(index, output)
                if output.finished:
                    return
        raise RequestFailedError("the engine ended the request before it was finished; try again")


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
        extra={"fields": {"route": generation.route, "model": generation.model, "prompt_tokens": sum(sizes)}},
    )


def _params(generation: Generation) -> Iterator[tuple[str, object, object]]:
    usual = SamplingParams()
    for name in SamplingParams.__struct_fields__:
        yield name, getattr(generation.params, name), getattr(usual, name)

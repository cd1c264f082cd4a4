"""A Generation in; RequestOutputs of all its prompts, as they come, out. Leaving the `async with` aborts what goes on.

Nothing piles up here: a prompt's next output is asked for when the last one was taken, and the engine's front merges
what came in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import cast

from octavo.api.log import REQUEST_ID
from octavo.base.errors import InputError, RequestFailedError, row_failure
from octavo.base.types.output import RequestOutput
from octavo.base.types.sampling import SamplingParams
from octavo.server.metrics import RequestRecorder
from octavo.server.openai.convert import Generation, Prompt, in_terms_of
from octavo.server.services import Services

log = logging.getLogger(__name__)

Item = tuple[int, RequestOutput]
MOST_LOGGED = 2000  # characters of a request's parameters


class Results:
    """The outputs of one HTTP request's prompts, merged. At most as many prompts run at once as fit into a step."""

    def __init__(self, services: Services, generation: Generation) -> None:
        self._services = services
        self._generation = generation
        at_once = min(len(generation.prompts), services.llm.config.scheduler.max_num_seqs)
        self._slots = asyncio.Semaphore(at_once)
        self._queue: asyncio.Queue[Item | Exception] = asyncio.Queue(maxsize=at_once)
        self._tasks: list[asyncio.Task[None]] = []
        self._left = len(generation.prompts)

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
        self._tasks = [
            asyncio.create_task(self._run(index, prompt)) for index, prompt in enumerate(self._generation.prompts)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def finished(self) -> bool:
        """True once every prompt's last output has been taken."""
        return self._left == 0

    async def take(self, wait_s: float | None = None) -> Item | None:
        """The next output and its prompt's index; None if none came within `wait_s`. Raises what ended a prompt."""
        item: Item | Exception | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        if item is not None and item[1].finished:
            self._left -= 1
        return item

    async def _run(self, index: int, prompt: Prompt) -> None:
        try:
            async with self._slots:
                await self._generate(index, prompt)
        except InputError as error:
            await self._queue.put(in_terms_of(self._generation.request, error))
        except Exception as error:
            await self._queue.put(error)

    async def _generate(self, index: int, prompt: Prompt) -> None:
        generation, request = self._generation, self._generation.request
        reads_tools = generation.parsing is not None and generation.parsing.tool is not None
        recorder = RequestRecorder(
            self._services.metrics,
            generation.params,
            streaming=bool(request.stream),
            tools_of=generation.route if reads_tools else None,
        )
        outputs = self._services.llm.generate(
            prompt.token_ids,
            generation.params,
            request_id=f"{generation.internal}-{index}",
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            parsing=generation.parsing,
        )
        async with aclosing(cast("AsyncGenerator[RequestOutput, None]", outputs)):
            async for output in outputs:
                recorder.take(output)
                if output.finished and generation.timing is not None:
                    generation.timing.end(output, recorder.num_tokens)
                if output.error is not None:
                    raise row_failure(output.error)
                await self._queue.put((index, output))
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

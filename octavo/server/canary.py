"""A fixed prompt, asked for greedily when the server starts and again when it is idle; that its answer changed out.

Weights that changed in memory, a kernel gone wrong, an engine that came back with another model: none raises an error.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from octavo.base.errors import EngineDeadError, InputError, OctavoError, OverloadedError
from octavo.base.metrics.registry import Outcome
from octavo.base.types.sampling import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from octavo.api.async_llm import AsyncLLM
    from octavo.base.types.output import RequestOutput

log = logging.getLogger(__name__)

PROMPT = "The quick brown fox jumps over the lazy dog. One, two, three,"
TOKENS = tuple(range(1, 9))  # where there is no tokenizer
MAX_TOKENS = 8
POLL_S = 1.0  # between two looks at whether the server is idle


class Canary:
    """fault: what is wrong, None while nothing is. It is over only when a new engine process answers as the first did.

    idle: true while nothing runs and requests are let in.  count: told of each check.  interval: seconds, 0 is never.
    """

    def __init__(
        self, llm: AsyncLLM, *, idle: Callable[[], bool], count: Callable[[Outcome], None], interval: float
    ) -> None:
        self.fault: str | None = None
        self._llm, self._idle, self._count, self._interval = llm, idle, count, interval
        self._expected: list[int] | None = None
        self._wrong_pid: int | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch, in the running loop."""
        if self._interval:
            self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End it; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        try:
            self._llm.check_generates()
            await asyncio.sleep(min(POLL_S, self._interval))  # a first request goes first
            while True:
                idle = self._idle()
                if idle:
                    await self.check()
                await asyncio.sleep(self._interval if idle else min(POLL_S, self._interval))
        except InputError as error:  # a model that makes vectors, or whose context is shorter
            log.debug("no canary: %s", error.message)

    async def check(self) -> None:
        """Ask, and compare with the first answer. A wrong answer is believed when it is not right the second time."""
        for _ in range(2):
            answer = await self._ask()
            if answer is None:
                return
            if isinstance(answer, list) and self._expected is None:
                self._expected = answer
            if answer == self._expected:
                break
        if answer == self._expected:
            self._count("match")
            if self.fault is not None and self._llm.engine_pid != self._wrong_pid:
                log.warning("the canary prompt is answered as at the start again")
                self.fault = None
            return
        if isinstance(answer, str):
            self._count("failed")
            self.fault = f"the canary prompt failed: {answer}"
        else:
            self._count("mismatch")
            self.fault = f"the canary prompt was answered by tokens {answer}, at the start by {self._expected}"
        self._wrong_pid = self._llm.engine_pid
        log.error("%s; answers cannot be trusted until the engine is started again", self.fault)

    async def _ask(self) -> list[int] | str | None:
        """The answer's tokens; a text: why it failed; None: it cannot be asked now."""
        tokenizer = self._llm.tokenizer
        params = SamplingParams(
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = list(TOKENS) if tokenizer is None else tokenizer.encode(PROMPT)
        name = f"canary-{uuid.uuid4().hex}"
        # a salt of its own: nothing of it is found in the prefix cache, so all of it is computed
        outputs = self._llm.generate(prompt, params, request_id=name, cache_salt=name)
        try:
            async with aclosing(cast("AsyncGenerator[RequestOutput, None]", outputs)):
                async for output in outputs:
                    if output.finished:
                        return output.error or list(output.outputs[0].token_ids)
        except (OverloadedError, EngineDeadError):
            return None
        except InputError:
            raise
        except OctavoError as error:
            return error.message
        return None

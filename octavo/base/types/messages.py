"""Frames between the serving process and the engine process: length-prefixed msgpack of these tagged structs."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.base.types.output import Output
from octavo.base.types.request import Request


class Add(msgspec.Struct, tag=True, frozen=True):
    """Run this request.

    emitted: where an engine process that is gone had begun it, the output tokens of each of its params.n sequences, to
    be gone on from; None in place of those of a sequence that has ended.
    """

    request: Request
    emitted: list[list[int] | None] | None = None


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Forget these requests; ids that are not known are passed over. No Output follows."""

    request_ids: list[str]


class Call(msgspec.Struct, tag=True, frozen=True):
    """A rare thing by name (engine.Engine.call); answered by Reply with the same id."""

    id: int
    name: str
    arguments: dict[str, Any] = {}


class Stop(msgspec.Struct, tag=True, frozen=True):
    """End the engine process now."""


class Loading(msgspec.Struct, tag=True, frozen=True):
    """Start-up goes on: `done` of `total` of `what`."""

    what: str
    done: int
    total: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Start-up is over; `info` is what engine.info() tells (context length, blocks, device)."""

    info: dict[str, Any]


ITERATION_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """The engine at one moment; counters run from its start. kv_usage is 0..1.

    num_deferred: of num_waiting, those whose grammar is being compiled.  iteration_tokens: of all steps.
    iterations: steps of at most ITERATION_SIZES tokens each, and at last those of more; empty before the first.
    """

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    iteration_tokens: int = 0
    numerical_errors: int = 0
    num_deferred: int = 0
    iterations: list[int] = []


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """What a step brought, with the engine's state after it. Sent after steps, and every second as a heartbeat."""

    outputs: list[Output]
    stats: EngineStats


class Reply(msgspec.Struct, tag=True, frozen=True):
    """Answer to Call: a value, or an error's message."""

    id: int
    value: Any = None
    error: str | None = None


class Fatal(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start or go on; the process ends after this. `kind` is an error class of base.errors."""

    kind: str
    message: str


ToEngine = Add | Abort | Call | Stop
FromEngine = Loading | Ready | Outputs | Reply | Fatal

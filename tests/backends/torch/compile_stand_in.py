"""A script: cases of compile_only where the driver launches nothing. Prints a JSON object by case.

It has no `if __name__ == "__main__"`, as a user's script may have none: the processes that compile must not run it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import compile_stand_in_parts as parts
import torch
from triton import AsyncCompileMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from octavo.backends.torch.device import compile_workers
from octavo.backends.torch.device.compile import compile_only

driver.set_active(
    SimpleNamespace(
        utils=SimpleNamespace(
            load_binary=lambda *args: (1, 1, 32, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        ),
        launcher_cls=lambda source, metadata: lambda *args: launched.append(threading.current_thread().name),
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
)
told: list[str] = []
groups: list[int] = []
launched: list[str] = []
really_start, really_write = compile_workers._start, compile_workers._written


def start(connections: list[int]) -> Any:
    process = really_start(connections)
    groups.append(process.pid)
    return process


def refuse(connections: list[int]) -> Any:
    raise PermissionError("not in here")


def write_other(job: compile_workers.Job) -> bytes:
    return really_write(job._replace(variables={"OTHER": "1"}))


def kill_all() -> None:
    os.killpg(groups[-1], signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def launch_elsewhere() -> None:
    """Another thread launches, has a block of its own, launches what that left; then this one, still in its block."""

    def work() -> None:
        launch(11)
        with compile_only(0):
            launch(12)
        launch(12)

    with ThreadPoolExecutor(1, "other") as other:
        other.submit(work).result()
    launch(11)


def launch(value: float) -> None:
    parts.launch_both(torch.zeros(2, dtype=torch.int32), value)


def nothing() -> None:
    """The block has launched, and ends."""


def case(name: str, value: float, *, last: Callable[[], None] = nothing, workers: int = 2, **patches: Any) -> None:
    """Both kernels' variant of `value`, as if met for the first time in this process. patches: of compile_workers."""
    kept = {each: getattr(compile_workers, each) for each in patches}
    vars(compile_workers).update(patches)
    for kernel in (parts.first, parts.second):
        kernel.device_caches.clear()
    told.clear()
    groups.clear()
    launched.clear()
    raised = ""
    try:
        with compile_only(workers):
            launch(value)
            last()
    except BaseException as error:
        raised = type(error).__name__
    vars(compile_workers).update(kept)
    with AsyncCompileMode(None):  # type: ignore[arg-type]
        """No other one is active."""
    caches = [cache[0] for kernel in (parts.first, parts.second) for cache in kernel.device_caches.values()]
    absent = any(str(parts.ABSENT.value) in made.asm["ttir"] for cache in caches for made in cache.values())
    left = [process for group in groups for process in parts.living(group)]
    row = {"case": name, "raised": raised, "ready": [len(cache) for cache in caches], "started": len(groups)}
    print(json.dumps({**row, "left": left, "told": told, "absent": absent, "launched": launched}), flush=True)


handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("octavo").addHandler(handler)
logging.getLogger("octavo").setLevel(logging.INFO)
compile_workers._start = start

print(json.dumps({"case": "main"}))
case("processes", 1)
case("cached", 1)
case("cached, refused", 1, _start=refuse)
case("threads", 2, workers=0)
case("refused", 3, _start=refuse)
case("ends at once", 4, WORKER="this")
case("no answer", 5, WORKER="compile_stand_in_parts", PATIENCE_S=0.3)
case("killed", 6, last=kill_all)
case("another key", 7, _written=write_other)
case("cannot be written", math.inf)
case("interrupted", 9, last=interrupt)
case("other thread", 13, last=launch_elsewhere, workers=0)
with compile_only(2):
    launch(10)
    print(json.dumps({"case": "dies", "group": groups[-1]}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

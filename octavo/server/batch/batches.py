"""Batches under way: an input file in, an output and an error file out, a task each, through `run_lines`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Protocol

import msgspec

from octavo.base.errors import InputError
from octavo.base.files import write_whole
from octavo.server.batch.lines import BatchLine, BatchResult, LineError, cut_off, read_done, read_lines
from octavo.server.batch.run import Answer, run_lines
from octavo.server.batch.store import BatchStore, Kept, new_name, open_private, telling_full
from octavo.server.batch.types import BatchFault, BatchFaults, BatchObject, RequestCounts
from octavo.server.errors import HttpError

log = logging.getLogger(__name__)

WINDOW_S = 24 * 3600
READY_S = 1.0  # between two looks whether requests are let in


class AskFor(Protocol):
    """Answers a POST of a key's owner."""

    async def __call__(self, path: str, body: bytes, *, owner: bytes = b"") -> Answer: ...


class Batches:
    """Runs the batches of a store.

    ready: requests are let in; batches wait for it.  urls: what a batch may ask.  at_once: requests under way, over all
    batches, so that others find room, too.
    """

    def __init__(
        self,
        ask: AskFor,
        store: BatchStore,
        *,
        ready: Callable[[], bool],
        urls: Collection[str],
        at_once: int,
        max_body_bytes: int,
    ) -> None:
        self.store = store
        self._ready = ready
        self.urls = urls
        self._ask = ask
        self._at_once = at_once
        self._slots = asyncio.Semaphore(at_once)
        self._max_body_bytes = max_body_bytes
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Go on with what the last process left."""
        for kept in self.store.unfinished():
            if _batch(kept).status == "cancelling":
                self._cancelled(kept)
            else:
                self._start(kept)

    def add(self, kept: Kept) -> None:
        """Keep a new batch and begin with it."""
        self.store.add_batch(kept)
        self._start(kept)

    def cancel(self, kept: Kept) -> None:
        """End a batch soon; what it has done stays. One that has ended stays as it is."""
        batch = _batch(kept)
        task = self._tasks.get(batch.id)
        if task is not None and batch.status in ("validating", "in_progress"):
            batch.status, batch.cancelling_at = "cancelling", _now()
            task.cancel()
            self.store.save(kept)

    async def close(self) -> None:
        """End all tasks; a store that stays goes on with its batches in the next process. It is not closed."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, kept: Kept) -> None:
        name = _batch(kept).id
        self._tasks[name] = asyncio.create_task(self._run(kept))
        self._tasks[name].add_done_callback(lambda task: self._ended(kept, task))

    def _ended(self, kept: Kept, task: asyncio.Task[None]) -> None:
        """The last state, whatever ended the task; a closing server leaves it as it was."""
        batch = _batch(kept)
        if self._tasks.pop(batch.id, None) is None:
            return
        if task.cancelled():
            self._cancelled(kept)
            return
        if (error := task.exception()) is not None:
            log.error("batch %s failed", batch.id, exc_info=error)
            _fail(batch, BatchFault("server_error", "internal error; the server's log has it under the batch's id"))
            self._keep(kept)

    def _cancelled(self, kept: Kept) -> None:
        batch = _batch(kept)
        batch.status, batch.cancelled_at = "cancelled", _now()
        self._keep(kept)

    async def _run(self, kept: Kept) -> None:
        batch = _batch(kept)
        source = self.store.path(batch.input_file_id)
        done = await asyncio.to_thread(self._take_up, batch)
        try:
            batch.request_counts.total = await asyncio.to_thread(self._check, batch, source)
        except InputError as error:
            line = error.number if isinstance(error, LineError) else None
            _fail(batch, BatchFault("invalid_request", error.message, line, error.param))
            self._keep(kept)
            return
        except OSError:
            _fail(batch, BatchFault("invalid_file", "the input file is not there any more"))
            self._keep(kept)
            return
        batch.status, batch.in_progress_at = "in_progress", batch.in_progress_at or _now()
        try:
            self.store.save(kept)
            async with asyncio.timeout(batch.expires_at - time.time()):
                await self._answer(kept, source, done)
            batch.finalizing_at = batch.completed_at = _now()
            batch.status = "completed"
        except TimeoutError:
            batch.status, batch.expired_at = "expired", _now()
        except HttpError as error:
            _fail(batch, BatchFault("storage_full", error.message))
        self._keep(kept)

    def _check(self, batch: BatchObject, source: Path) -> int:
        """Lines of the input; LineError for the first that cannot be run."""
        total = sum(1 for _ in read_lines(source, max_body_bytes=self._max_body_bytes, url=batch.endpoint))
        if not total:
            raise InputError("the input file holds no request", param="input_file_id")
        return total

    def _take_up(self, batch: BatchObject) -> dict[str, bool]:
        """What the last process has answered, counted: custom_id -> whether it is a good answer."""
        done: dict[str, bool] = {}
        for path in self._results(batch):
            found = read_done(path)
            cut_off(path, found.end)
            done |= found.answers
        good = sum(done.values())
        batch.request_counts = RequestCounts(batch.request_counts.total, good, len(done) - good)
        return done

    async def _answer(self, kept: Kept, source: Path, done: dict[str, bool]) -> None:
        batch = _batch(kept)
        good, bad = self._results(batch)
        counts = batch.request_counts

        async def ask(path: str, body: bytes) -> Answer:
            async with self._slots:
                while not self._ready():  # noqa: ASYNC110 - it hangs on much, none of which tells
                    await asyncio.sleep(READY_S)
                return await self._ask(path, body, owner=kept.owner)

        with ExitStack() as files:
            outputs: dict[bool, FileIO] = {
                True: files.enter_context(open_private(good, "ab")),
                False: files.enter_context(open_private(bad, "ab")),
            }

            def write(result: BatchResult) -> None:
                fine = result.error is None
                with telling_full():
                    write_whole(outputs[fine], msgspec.json.encode(result) + b"\n")
                self.store.check_room(outputs[True].tell() + outputs[False].tell())
                counts.completed, counts.failed = counts.completed + fine, counts.failed + (not fine)

            await run_lines(ask, self._rest(source, done), write, urls=(batch.endpoint,), at_once=self._at_once)

    def _rest(self, source: Path, done: dict[str, bool]) -> Iterator[BatchLine]:
        lines = read_lines(source, max_body_bytes=self._max_body_bytes)
        return (line for line in lines if line.custom_id not in done)

    def _results(self, batch: BatchObject) -> tuple[Path, Path]:
        return self.store.path(f"{batch.id}_output"), self.store.path(f"{batch.id}_errors")

    def _keep(self, kept: Kept) -> None:
        """The last state; what was written becomes files that can be fetched. Where the disk takes neither, the next
        process finds all as it was."""
        batch = _batch(kept)
        good, bad = self._results(batch)
        try:
            batch.output_file_id = self._adopt(kept, good, f"{batch.id}_output.jsonl")
            batch.error_file_id = self._adopt(kept, bad, f"{batch.id}_errors.jsonl")
            self.store.save(kept)
        except HttpError as error:
            log.error("batch %s: %s; the next start goes on with it", batch.id, error.message)
            _fail(batch, BatchFault("storage_full", f"{error.message}; its next start goes on with the batch"))

    def _adopt(self, kept: Kept, path: Path, filename: str) -> str | None:
        name = new_name("file")
        if not path.exists() or not path.stat().st_size:
            path.unlink(missing_ok=True)
            return None
        path.rename(self.store.path(name))
        try:
            self.store.adopt(kept.owner, name, filename=filename, purpose="batch_output", keep_s=kept.keep_results_s)
        except BaseException:
            self.store.path(name).rename(path)  # else nothing tells of it, and the next start removes it
            raise
        return name


def _fail(batch: BatchObject, fault: BatchFault) -> None:
    batch.errors = BatchFaults(data=[fault])
    batch.status, batch.failed_at = "failed", _now()


def _batch(kept: Kept) -> BatchObject:
    if kept.batch is None:
        raise ValueError("this is no batch")
    return kept.batch


def _now() -> int:
    return int(time.time())

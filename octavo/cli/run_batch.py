"""`octavo run-batch -i IN -o OUT --model M`: a file of OpenAI's batch requests in, their results, a line each, out.

Started again, it goes on where it was broken off: lines that OUT holds are not asked for again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.api.arguments import OFF, SWITCH, Foreign
from octavo.base.config.config import EngineConfig, ServerConfig
from octavo.base.config.options import build_struct, options
from octavo.base.errors import ConfigError, EngineDeadError, InputError
from octavo.base.files import write_whole
from octavo.cli.flags import Parser, add_engine, add_model, add_options, take_engine
from octavo.cli.output import as_path, naming

if TYPE_CHECKING:
    from octavo.server.batch.lines import BatchLine, BatchResult
    from octavo.server.batch.run import Answer

FAILED = 1
OPTIONS = (
    "served_model_name",
    "max_body_bytes",
    "trust_request_chat_template",
    "tool_call_parser",
)
FOREIGN: dict[str, Foreign] = {
    "output_tmp_dir": Foreign((None,), "results are written as they come", harmless=True),
    "enable_metrics": Foreign(OFF, "there is no server to ask; see `octavo serve`"),
    "enable_auto_tool_choice": Foreign(SWITCH, "", harmless=True),
    "disable_log_requests": Foreign(SWITCH, "requests are not logged", harmless=True),
}


@dataclass
class _Count:
    lines: int
    done: int  # by earlier runs
    failed: int
    new: int = 0  # by this one
    left: int = 0  # without an answer: the engine was busy to the last
    seen: int = 0  # of the lines, when they were read for their answers


def main(arguments: list[str]) -> int:
    """Run the batch; exit code 1 if a line has an error."""
    parser = Parser("run-batch", "Answer a file of requests (OpenAI's batch JSONL) into another.", foreign=FOREIGN)
    add_model(parser)
    parser.add_argument("-i", "--input-file", metavar="FILE", required=True, help="one request a line")
    parser.add_argument("-o", "--output-file", metavar="FILE", required=True, help="one result a line, as they come")
    table = options(ServerConfig)
    add_options(parser.add_argument_group("request options"), [table[name] for name in OPTIONS])
    add_engine(parser)
    values = parser.parse(arguments)
    source, target = as_path(values.pop("input_file")), as_path(values.pop("output_file"))
    server: ServerConfig = build_struct(ServerConfig, {name: values.pop(name) for name in OPTIONS if name in values})
    config = take_engine(values)
    known = _check(source, target, server.max_body_bytes)
    with _claim(target) as file:
        count, skipped = _go_on(target, known)
        if count.done < count.lines:
            try:
                asyncio.run(_run(config, server, _lines(source, server, count, skipped), file, count))
            except BaseException as error:
                if answered := count.done + count.new:
                    told = f"{answered} of {count.lines} requests are answered, in {target}; run this again to go on"
                    error.add_note(told)
                raise
    return _conclude(count, source)


def _conclude(count: _Count, source: Path) -> int:
    if count.failed:
        print(f"{count.failed} of {count.lines} requests have errors; see the field error", file=sys.stderr)
    if count.left:
        print(f"{count.left} of {count.lines} requests found the engine busy; run this again for them", file=sys.stderr)
    changed = count.done < count.lines and count.seen < count.lines
    if changed:
        print(
            f"{source} was changed meanwhile: {count.seen} of {count.lines} requests were there; run this again",
            file=sys.stderr,
        )
    return FAILED if count.failed or count.left or changed else 0


def _check(source: Path, target: Path, max_body_bytes: int) -> set[str]:
    """The custom_ids, before anything is loaded or written: a line that is no request ends it here."""
    from octavo.server.batch.lines import read_lines

    try:
        if source.exists() and not (source.is_file() or source.is_dir()):
            raise ConfigError(f"{source} is no regular file, and is read twice; write the requests into a file first")
        if target.exists() and source.samefile(target):
            raise ConfigError(f"{target} is the input file, too; name another file for the results")
        if target.exists() and not (target.is_file() or target.is_dir() or target.is_char_device()):
            raise ConfigError(f"{target} is no regular file, and a later run reads its results; name a file")
        known = {line.custom_id for line in read_lines(source, max_body_bytes=max_body_bytes)}
    except OSError as error:
        raise ConfigError(f"{error.filename or source}: {error.strerror or error}") from None
    except InputError as error:
        raise ConfigError(f"{source}: {error.message}") from None
    if not known:
        raise ConfigError(f"{source} holds no request")
    return known


@contextmanager
def _claim(target: Path) -> Iterator[FileIO]:
    """The output, open for appending and unbuffered; a second run on it at the same time is refused."""
    try:
        file = target.open("ab", buffering=0)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror or error}") from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run writes to {target}; wait for its end, or name another file") from None
        except (ImportError, OSError):
            pass  # the system or the file system has no locks
        yield file


def _go_on(target: Path, known: set[str]) -> tuple[_Count, frozenset[str]]:
    """What the output holds already, without a torn last line."""
    from octavo.server.batch.lines import cut_off, read_done

    if target.is_char_device():  # /dev/null, a terminal: nothing was kept, and reading might not end
        return _Count(len(known), 0, 0), frozenset()
    try:
        found = read_done(target)
        if not found.answers.keys() <= known:
            raise ConfigError(f"{target} holds results of another batch; name another file, or remove it")
        cut_off(target, found.end)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror or error}") from None
    except InputError as error:
        raise ConfigError(error.message) from None
    done = found.answers
    if done:
        print(f"{len(done)} of {len(known)} requests are answered already", file=sys.stderr)
    return _Count(len(known), len(done), sum(not good for good in done.values())), frozenset(done)


def _lines(source: Path, server: ServerConfig, count: _Count, skipped: frozenset[str]) -> Iterator[BatchLine]:
    from octavo.server.batch.lines import read_lines

    for line in read_lines(source, max_body_bytes=server.max_body_bytes):
        count.seen += 1
        if line.custom_id not in skipped:
            yield line


async def _run(
    config: EngineConfig, server: ServerConfig, lines: Iterator[BatchLine], file: FileIO, count: _Count
) -> None:
    import msgspec

    from octavo.api.async_llm import AsyncLLM
    from octavo.api.log import set_up_logging
    from octavo.server.app import WORK, App
    from octavo.server.batch.run import is_busy, run_lines

    set_up_logging("WARNING")
    llm = AsyncLLM(config)
    app = App(llm, server)
    bar = _bar(count)

    async def ask(path: str, body: bytes) -> Answer:
        answer = await app.ask(path, body)
        if answer.status >= 500 and llm.state == "dead":
            raise EngineDeadError("the engine has ended and does not come back")
        return answer

    def write(result: BatchResult) -> None:
        if is_busy(result):  # the next run asks for it again
            count.left += 1
            return
        with naming(file.name):
            write_whole(file, msgspec.json.encode(result) + b"\n")
        count.new += 1
        count.failed += result.error is not None
        bar.update()

    try:
        await llm.start()
        # twice as many as run, so that the engine never waits for one
        await run_lines(ask, lines, write, urls=WORK.keys(), at_once=2 * config.scheduler.max_num_seqs)
    finally:
        bar.close()
        await llm.close(0)


def _bar(count: _Count) -> Any:
    from tqdm import tqdm

    shown = sys.stderr.isatty()
    return tqdm(total=count.lines, initial=count.done, desc="Requests", dynamic_ncols=True, disable=not shown)

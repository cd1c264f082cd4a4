"""The process behind checker.py: `python -m octavo.engine.grammar.checker_main FD`. It ends with its connection.

Its vocabulary is the bytes and the model's control tokens: enough to tell whether a grammar can be compiled.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import msgspec
from llguidance import LLTokenizer

from octavo.base.errors import OctavoError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker import MAX_MEMORY, Verdict
from octavo.engine.grammar.compiler import STACK_BYTES
from octavo.engine.grammar.following import check_followable
from octavo.engine.grammar.grammar import GrammarError, Vocabulary
from octavo.engine.grammar.llguidance import LlguidanceGrammar, compile_matcher, make_tokenizer

SMALLER_STACK = STACK_BYTES // 4
"""What passes here leaves the engine's threads the rest."""
_IDS = re.compile(r"<\[[\^0-9, \-]+\]>")
_DIGITS = 10


def small_vocabulary(special: dict[str, int]) -> Vocabulary:
    """The bytes, then the control tokens under other ids, then one that ends the text."""
    spellings = sorted(special)
    tokens = [bytes([byte]) for byte in range(256)] + [spelling.encode() for spelling in spellings] + [b""]
    ids = {spelling: 256 + i for i, spelling in enumerate(spellings)}
    return Vocabulary(tokens, ids, (len(tokens) - 1,), len(tokens))


def with_small_ids(params: StructuredOutputsParams, size: int, known: int) -> StructuredOutputsParams:
    """Ids of the model's tokens, `size` of them, that a grammar names (<[12-34]>), as ids of the `known` ones here.

    The last one here stands for those that are named nowhere, so that <[^0-9000]> admits some.
    """
    if params.grammar is None or "<[" not in params.grammar:
        return params

    def smaller(number: re.Match[str]) -> str:
        there = len(number[0]) < _DIGITS and int(number[0]) < size
        return str(min(int(number[0]), known - 2)) if there else number[0]

    named = _IDS.sub(lambda ids: re.sub("[0-9]+", smaller, ids[0]), params.grammar)
    return msgspec.structs.replace(params, grammar=named)


def try_out(tokenizer: LLTokenizer, special: dict[str, int], params: StructuredOutputsParams) -> Verdict:
    """Compile, find what may come first, and follow its regexes."""
    try:
        if params.lenient:
            _validation().make_validator(params)
        matcher = compile_matcher(tokenizer, params, special.keys())
        LlguidanceGrammar(matcher, 0).mask()
        check_followable(params, tokenizer)
    except GrammarError as error:
        return Verdict("InputError", error.message, "structured_outputs")
    except OctavoError as error:
        return Verdict(type(error).__name__, error.message, error.param)
    return Verdict()


def _validation() -> ModuleType:
    from octavo.engine.grammar import validation  # few processes need it

    return validation


def limit_memory() -> None:
    """At most MAX_MEMORY more than now, where the system counts."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
        most = used + MAX_MEMORY + SMALLER_STACK
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(connection: Connection) -> None:
    """Answer until the other end is closed; SIGPROF ends it in a question that takes longer than the deadline."""
    special, size, deadline = msgspec.msgpack.decode(connection.recv_bytes(), type=tuple[dict[str, int], int, float])
    tokenizer = make_tokenizer(small_vocabulary(special))
    connection.send_bytes(b"ready")
    limit_memory()
    while True:
        body = connection.recv_bytes()
        # of this process alone: how busy the machine is does not count, and no code of the library's outlives its end
        signal.setitimer(signal.ITIMER_PROF, deadline)
        params, text = msgspec.msgpack.decode(body, type=tuple[StructuredOutputsParams, str | None])
        if text is None:
            verdict = try_out(tokenizer, special, with_small_ids(params, size, tokenizer.vocab_size))
        else:
            verdict = Verdict("" if _validation().is_valid(params, text) else "InvalidJSON")
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(msgspec.msgpack.encode(verdict))


def main(fd: int) -> int:
    """Serve on the connection `fd`, on a thread with a stack of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    threading.stack_size(SMALLER_STACK)

    def work() -> None:
        with Connection(fd) as connection, suppress(EOFError, ConnectionError):
            serve(connection)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

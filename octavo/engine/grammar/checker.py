"""Grammars tried out in a process of their own: StructuredOutputsParams in, an error out where they cannot be taken.

A grammar can be a bomb: of time, of memory, of the stack of the library that compiles it. There it ends that process
alone, which is started again. What has passed is compiled again by the engine, under the same limits but for the clock.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from octavo.base import errors
from octavo.base.errors import InputError, OctavoError, OverloadedError
from octavo.base.types.structured import StructuredOutputsParams

if TYPE_CHECKING:
    import subprocess
    from multiprocessing.connection import Connection

DEADLINE_S = 2.0  # of a processor's time
PATIENCE_S = 10.0  # until a process that has used less of it is given up
MAX_MEMORY = 64 << 20
START_S = 30.0
QUEUE_S = 10.0  # until a check that waits for others gives up
MAX_KNOWN = 1024


class Verdict(msgspec.Struct, array_like=True):
    """The child's answer: nothing, or the error's class, message and field."""

    kind: str = ""
    message: str = ""
    param: str | None = None


class Checker:
    """Checks one after the other, from any thread; the process starts with the first. Remembers what has passed.

    special: control tokens, spelling -> id, which grammars may name.  size: of the vocabulary, whose ids they may name.
    """

    def __init__(self, special: Mapping[str, int], *, size: int = 0) -> None:
        self._vocabulary = dict(special), size
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def check(self, params: StructuredOutputsParams) -> None:
        """InputError naming the field where no grammar can be made. OverloadedError where too many wait."""
        body = msgspec.msgpack.encode((params, None))
        key = hashlib.sha256(body).digest()
        if key in self._known:
            return
        if not self._lock.acquire(timeout=QUEUE_S):
            raise OverloadedError("many new grammars wait to be checked; try again", retry_after=2)
        try:
            self._check(body, f"structured_outputs.{params.kind}")
        finally:
            self._lock.release()
        self._known[key] = None
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def holds(self, params: StructuredOutputsParams, text: str) -> bool:
        """Whether the text is valid by params.json; False too where that takes too long, or too much memory."""
        body = msgspec.msgpack.encode((params, text))
        if not self._lock.acquire(timeout=QUEUE_S):
            return False
        try:
            answer = self._ask(body, "structured_outputs.json") or self._ask(body, "structured_outputs.json")
        except OctavoError:
            return False
        finally:
            self._lock.release()
        return answer is not None and not msgspec.msgpack.decode(answer, type=Verdict).kind

    def close(self) -> None:
        """End the process; idempotent. Another check would start it again."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def _check(self, body: bytes, param: str) -> None:
        answer = self._ask(body, param)
        if answer is None:  # of a process that has served others: its memory may have been used up by them
            answer = self._ask(body, param)
        if answer is None:
            most = MAX_MEMORY >> 20
            raise InputError(f"{param}: it nests too deeply, or takes more than {most} MB to compile", param=param)
        verdict = msgspec.msgpack.decode(answer, type=Verdict)
        if verdict.kind:
            kind = getattr(errors, verdict.kind, InputError)
            if isinstance(kind, type) and issubclass(kind, OctavoError):
                raise kind(verdict.message, param=verdict.param)
            raise InputError(verdict.message, param=verdict.param)

    def _ask(self, body: bytes, param: str) -> bytes | None:
        """The child's answer; None where it died of the question, after which there is none.

        InputError where it ended after DEADLINE_S, OverloadedError where it got too little of a processor to.
        """
        try:
            connection = self._connection or self._start()
            connection.send_bytes(body)
            if connection.poll(PATIENCE_S):
                return connection.recv_bytes()
        except (EOFError, ConnectionError):
            process = self._process
            self.close()
            if process is not None and process.returncode == -signal.SIGPROF:
                message = f"{param}: compiling it takes more than {DEADLINE_S:g} s; make it simpler"
                raise InputError(message, param=param) from None
            return None
        self.close()
        raise OverloadedError("the machine is too busy to check a grammar; try again", retry_after=2)

    def _start(self) -> Connection:
        import subprocess  # here, as few processes come to it
        from multiprocessing.connection import Pipe

        ours, theirs = Pipe()
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "octavo.engine.grammar.checker_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a fault of the library's prints what a client sent
                env=environment,
            )
        self._connection = ours
        try:
            ours.send_bytes(msgspec.msgpack.encode((*self._vocabulary, DEADLINE_S)))
            started = ours.poll(START_S) and ours.recv_bytes()
        except (EOFError, ConnectionError):  # it has ended, but of no question
            started = False
        if not started:
            self.close()
            raise OverloadedError("the process that checks grammars does not start; try again", retry_after=2)
        return ours

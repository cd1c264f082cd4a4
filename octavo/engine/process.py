"""The engine process: frames from the serving process in, frames out, a step whenever there is work.

Frame: 4-byte little-endian length, then msgpack of one message (base/types/messages.py). Nothing listens anywhere.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import msgspec

from octavo.base import faults
from octavo.base.collector import settle_collector
from octavo.base.errors import (
    EngineDeadError,
    InputError,
    ModelFormatError,
    OctavoError,
    OverloadedError,
    RequestFailedError,
)
from octavo.base.types.messages import (
    Abort,
    Add,
    Call,
    Fatal,
    FromEngine,
    Loading,
    Outputs,
    Ready,
    Reply,
    Stop,
    ToEngine,
)
from octavo.base.types.output import Output
from octavo.base.types.ports import Progress
from octavo.engine.engine import Engine, Tell

MAX_FRAME = 1 << 30
LOGPROB_BYTES = 14  # of a frame, at most, for one log probability and its token
HEARTBEAT = 1.0  # seconds between frames of an idle engine
_BACKLOG = 64 << 20  # unsent bytes at which the engine waits for the other side
HEAD = 4  # bytes of a frame's length
_LAST_WORDS = 5.0  # seconds that the other side has to read why the process ends

Message = TypeVar("Message")
_log = logging.getLogger(__name__)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One message's frame."""
    return frame(msgspec.msgpack.encode(message))


def frame(body: bytes) -> bytes:
    """The body with its length before it."""
    return len(body).to_bytes(HEAD, "little") + body


class Decoder(Generic[Message]):
    """Bytes in any portions in, whole messages out. ModelFormatError for a frame that is not one.

    instead(body, reason): what to take in place of a frame that is msgpack but breaks its types' rules, or None.
    """

    def __init__(self, kind: Any, *, instead: Callable[[bytes, str], Message | None] | None = None) -> None:
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._instead = instead

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages completed by `data`, each decoded when it is asked for."""
        self._buffer += data
        return iter(self._take, None)

    def _take(self) -> Message | None:
        if len(self._buffer) < HEAD:
            return None
        size = int.from_bytes(self._buffer[:HEAD], "little")
        if size > MAX_FRAME:
            raise ModelFormatError(f"a frame of {size} bytes is announced, at most {MAX_FRAME} are taken")
        if len(self._buffer) < HEAD + size:
            return None
        body = bytes(self._buffer[HEAD : HEAD + size])
        del self._buffer[: HEAD + size]
        return self._decode(body)

    def _decode(self, body: bytes) -> Message:
        try:
            return cast(Message, self._decoder.decode(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            valid = isinstance(error, msgspec.ValidationError)
            other = self._instead(body, str(error)) if valid and self._instead is not None else None
            if other is None:
                raise ModelFormatError(f"a frame is not a message: {error}") from error
            return other


class _GoneError(Exception):
    """The serving process is gone. Not OSError: the same from a download or a device is a fault of its own."""


class _Connection:
    """The socket with an out-buffer, so that a slow reader never stops a step. `send` may be called by any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._out = bytearray()
        self._lock = threading.Lock()
        self._decoder: Decoder[ToEngine | Output] = Decoder(ToEngine, instead=_refused_add)
        # no select(): it takes no descriptor above 1023, and the process inherits its number from a busy server
        self._selector = selectors.DefaultSelector()
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ)

    @property
    def congested(self) -> bool:
        return len(self._out) > _BACKLOG

    def send(self, message: FromEngine) -> None:
        self.write(encode(message))

    def write(self, data: bytes) -> None:
        """Send a frame."""
        if faults.ON and faults.hit("frame") == "truncate":
            self.sock.sendall(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        with self._lock:
            self._out += data
            self._flush()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise _GoneError from error
            del self._out[:sent]

    def say_last(self, message: Fatal) -> None:
        """Send, waiting a little until the other side has taken all; it may be gone already."""
        try:
            self.send(message)
            end = time.monotonic() + _LAST_WORDS
            self._selector.modify(self.sock, selectors.EVENT_WRITE)
            while self._out and time.monotonic() < end:
                self._selector.select(0.1)
                self.flush()
        except _GoneError:
            return

    def wait(self, seconds: float) -> None:
        """Until something can be read, or `flush` can write."""
        self._selector.modify(self.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0))
        self._selector.select(seconds)

    def close(self) -> None:
        """Stop watching the socket; it stays its owner's to close."""
        self._selector.close()

    def receive(self) -> list[ToEngine | Output]:
        """Messages that have arrived, and refusals of what may not be added. Raises _GoneError."""
        messages: list[ToEngine | Output] = []
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return messages
            except ConnectionError as error:
                raise _GoneError from error
            if not data and messages:
                return messages  # its last words first: a Stop among them is an orderly end
            if not data:
                raise _GoneError
            messages += self._decoder.feed(data)


def run(engine_factory: Callable[[Progress], Engine], sock: socket.socket) -> int:
    """Build the engine, then serve until Stop or until the other side is gone. The process's exit code:

    0 told to stop, 1 the other side is gone, 2 the engine cannot start, 3 it cannot go on (a damaged stream, a fault
    of its own); before 2 and 3 a Fatal says why.
    """
    connection = _Connection(sock)
    code = 2
    try:
        engine = engine_factory(lambda what, done, total: connection.send(Loading(what, done, total)))
        code = 3
        try:
            settle_collector()
            connection.send(Ready(engine.info()))
            _serve(engine, connection)
        finally:
            engine.close()
    except _GoneError:
        return 1
    except Exception as error:
        connection.say_last(_last_words(error, started=code == 3))
        return code
    finally:
        connection.close()
    return 0


def _last_words(error: Exception, *, started: bool) -> Fatal:
    if isinstance(error, OctavoError):
        kind = EngineDeadError if started else type(error)
        return Fatal(kind.__name__, f"the engine cannot go on: {error.message}" if started else error.message)
    _log.error("the engine process ends", exc_info=error)
    what = "cannot go on" if started else "cannot start"
    return Fatal(EngineDeadError.__name__, f"the engine {what}: {type(error).__name__}: {error}")


def _serve(engine: Engine, connection: _Connection) -> None:
    def tell(outputs: list[Output]) -> None:
        _tell(engine, connection, outputs)

    beat = time.monotonic()
    checked = True
    while True:
        busy = engine.has_work() and not connection.congested
        if not busy:
            connection.wait(HEARTBEAT)
        messages = connection.receive()
        if not (checked or messages or engine.has_work()) and time.monotonic() - beat >= HEARTBEAT:
            engine.check()  # not at once: with many blocks it takes long, and a request may follow
            checked = True
        for message in messages:
            if isinstance(message, Stop):
                return
            for out in _handle(engine, connection, message, tell):
                tell([out])
        outputs = engine.step(tell) if busy else []
        checked = checked and not busy
        now = time.monotonic()
        if outputs or now - beat >= HEARTBEAT or (busy and not engine.has_work()):
            tell(outputs)
            beat = now
        else:
            connection.flush()


def _tell(engine: Engine, connection: _Connection, outputs: list[Output]) -> None:
    """Send outputs in as many frames as they take. One that no frame holds ends its request."""
    body = msgspec.msgpack.encode(Outputs(outputs, engine.stats()))
    if len(body) <= MAX_FRAME:
        connection.write(frame(body))
    elif len(outputs) > 1:
        half = len(outputs) // 2
        _tell(engine, connection, outputs[:half])
        _tell(engine, connection, outputs[half:])
    else:
        request_id = outputs[0].request_id
        engine.abort([request_id])
        error = InputError(
            f"the answer's {len(body)} bytes are more than the {MAX_FRAME} that an engine process can send at once; "
            "shorten the prompt or ask for fewer log probabilities"
        )
        _tell(engine, connection, [_refusal(request_id, error)])


def _handle(engine: Engine, connection: _Connection, message: ToEngine | Output, tell: Tell) -> list[Output]:
    """Carry one message out; what it refuses becomes the request's own output. tell: as Engine.add's."""
    if isinstance(message, Output):
        return [message]
    if isinstance(message, Add):
        try:
            engine.add(message.request, message.emitted, tell=tell)
        except OctavoError as error:
            return [_refusal(message.request.request_id, error)]
        except _GoneError:
            raise
        except Exception as error:  # one request's fault is its own
            _log.exception("a request was not taken")
            failed = RequestFailedError(f"the request was not taken ({type(error).__name__})")
            return [_refusal(message.request.request_id, failed)]
    elif isinstance(message, Abort):
        engine.abort(message.request_ids)
    elif isinstance(message, Call):
        try:
            connection.send(Reply(message.id, value=engine.call(message.name, message.arguments)))
        except _GoneError:
            raise
        except Exception as error:  # one call's fault is its caller's to hear
            connection.send(Reply(message.id, error=str(error) or type(error).__name__))
    return []


def _refused_add(body: bytes, reason: str) -> Output | None:
    """The end of a request that breaks its types' rules (a NaN temperature, say); None where the body adds none."""
    try:
        message = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return None
    match message:
        case {"type": "Add", "request": {"request_id": str(request_id)}}:
            return _refusal(request_id, InputError(reason))
    return None


def _refusal(request_id: str, error: OctavoError) -> Output:
    return Output(
        request_id=request_id,
        finish_reason="error",
        error=error.message,
        error_kind=type(error).__name__,
        retry_after=error.retry_after if isinstance(error, OverloadedError) else 0,
    )

"""The engine process over a socketpair: what it says, when it ends, and that no frame ends it in another way."""

from __future__ import annotations

import math
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from simulation import VOCAB, Shape, make_engine, make_request, oracle

from octavo.base.errors import ModelFormatError, ModelNotFoundError
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
from octavo.base.types.plan import StepPlan
from octavo.base.types.ports import Progress
from octavo.base.types.request import Request
from octavo.engine import process
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor
from octavo.engine.process import MAX_FRAME, Decoder, encode, run

SHAPE = Shape(num_blocks=64, max_num_seqs=8, max_num_tokens=64)
PATIENCE = 20.0  # seconds until a test gives up


class Executor(ScriptedExecutor):
    """Counts; with `gate`, a step waits for a permit."""

    def __init__(self, shape: Shape = SHAPE) -> None:
        super().__init__(num_blocks=shape.num_blocks, block_size=shape.block_size, vocab_size=VOCAB)
        self.gate: threading.Semaphore | None = None
        self.num_closed = 0

    def begin(self, plan: StepPlan) -> None:
        if self.gate is not None:
            assert self.gate.acquire(timeout=PATIENCE)
        super().begin(plan)

    def call(self, name: str, **arguments: Any) -> Any:
        if name == "crash":
            raise RuntimeError("a fault of the backend")
        if name == "strange":
            return object()
        return super().call(name, **arguments)

    def close(self) -> None:
        self.num_closed += 1


class Peer:
    """The serving side of the socket, with the engine's loop in a thread."""

    def __init__(self, factory: Callable[[Progress], Engine] | None = None) -> None:
        self.executor = Executor()
        self.sock, self.theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE)
        self.decoder: Decoder[FromEngine] = Decoder(FromEngine)
        self.messages: list[FromEngine] = []
        self.code: int | BaseException | None = None
        make = factory or (lambda progress: make_engine(SHAPE, self.executor))
        self.thread = threading.Thread(target=self._run, args=(make,), daemon=True)
        self.thread.start()

    def _run(self, factory: Callable[[Progress], Engine]) -> None:
        try:
            self.code = run(factory, self.theirs)
        except BaseException as error:
            self.code = error
        finally:
            self.theirs.close()

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            self.sock.sendall(encode(message))

    def until(self, found: Callable[[FromEngine], Any]) -> Any:
        """Read on; the first message (of those not yet read) for which `found` is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while self.messages:
                message = self.messages.pop(0)
                if found(message):
                    return message
            data = self.sock.recv(1 << 16)
            assert data, f"the engine ended with {self.code}"
            self.messages += self.decoder.feed(data)
        raise TimeoutError("only heartbeats came")

    def ready(self) -> Ready:
        return self.until(lambda m: isinstance(m, Ready))  # type: ignore[no-any-return]

    def outputs(self, name: str) -> list[Output]:
        """All outputs of a request, to its end."""
        found: list[Output] = []
        while not found or found[-1].finish_reason is None:
            message = self.until(lambda m: isinstance(m, Outputs) and any(o.request_id == name for o in m.outputs))
            found += [out for out in message.outputs if out.request_id == name]
            rest = [out for out in message.outputs if out.request_id != name]
            self.messages.insert(0, Outputs(rest, message.stats)) if rest and found[-1].finish_reason else None
        return found

    def reply(self, number: int) -> Reply:
        return self.until(lambda m: isinstance(m, Reply) and m.id == number)  # type: ignore[no-any-return]

    def rest(self) -> list[FromEngine]:
        """Everything up to the end of the stream."""
        found, self.messages = self.messages, []
        while data := self.sock.recv(1 << 16):
            found += self.decoder.feed(data)
        return found

    def exit_code(self) -> int | BaseException | None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the engine's loop did not end"
        return self.code

    def close(self) -> None:
        self.sock.close()
        self.thread.join(PATIENCE)


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(factory: Callable[[Progress], Engine] | None = None) -> Peer:
        made.append(Peer(factory))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def tokens(outputs: list[Output]) -> list[int]:
    return [token for out in outputs for token in out.token_ids]


def right(request: Request) -> list[int]:
    return oracle(request, 0)[0]


# ---- the ordinary way


def test_loading_ready_outputs_stop(peers: Callable[..., Peer]) -> None:
    executor = Executor()

    def factory(progress: Progress) -> Engine:
        progress("weights", 1, 2)
        progress("weights", 2, 2)
        return make_engine(SHAPE, executor)

    peer = peers(factory)
    assert peer.until(lambda m: True) == Loading("weights", 1, 2)
    assert peer.until(lambda m: True) == Loading("weights", 2, 2)
    assert peer.until(lambda m: True).info["block_size"] == 4
    request = make_request("a", [1, 0, 1], max_tokens=9)
    peer.send(Add(request))
    found = peer.outputs("a")
    assert tokens(found) == right(request)
    assert found[-1].finish_reason == "length"
    peer.send(Stop())
    assert peer.exit_code() == 0
    assert executor.num_closed == 1


def test_a_crowd_at_once(peers: Callable[..., Peer]) -> None:
    peer = peers()
    requests = [make_request(f"r{i}", [i % 2] * (i % 9 + 1), max_tokens=i % 11 + 1) for i in range(40)]
    peer.send(*map(Add, requests))
    got: dict[str, list[int]] = {request.request_id: [] for request in requests}
    ended: set[str] = set()
    while len(ended) < 40:
        for out in peer.until(lambda m: isinstance(m, Outputs)).outputs:
            got[out.request_id] += out.token_ids
            ended |= {out.request_id} if out.finish_reason else set()
    assert got == {request.request_id: right(request) for request in requests}


def test_frames_may_arrive_byte_by_byte(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.ready()
    request = make_request("a", [1, 0, 1], max_tokens=3)
    for byte in encode(Add(request)):
        peer.sock.sendall(bytes([byte]))
    assert tokens(peer.outputs("a")) == right(request)


def test_progress_may_come_from_any_thread(peers: Callable[..., Peer]) -> None:
    def factory(progress: Progress) -> Engine:
        threads = [
            threading.Thread(target=lambda i=i: [progress(f"t{i}" + "x" * 500, done, 300) for done in range(300)])
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return make_engine(SHAPE, Executor())

    peer = peers(factory)
    seen: dict[str, list[int]] = {}
    while isinstance(message := peer.until(lambda m: True), Loading):
        seen.setdefault(message.what, []).append(message.done)
    assert isinstance(message, Ready)
    assert len(seen) == 4
    assert all(done == list(range(300)) for done in seen.values())


def test_calls_are_answered_and_their_faults_are_their_own(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.send(Call(1, "check", {"surplus": 1}), Call(2, "nothing"), Call(3, "crash"), Call(4, "strange"))
    peer.send(Call(5, "crash", {"name": 1}), Call(6, "reset_prefix_cache"))
    assert peer.reply(1) == Reply(1, value=True)
    assert "nothing" in (peer.reply(2).error or "")
    assert peer.reply(3).error == "a fault of the backend"
    assert "object" in (peer.reply(4).error or "")
    assert "name" in (peer.reply(5).error or "")
    assert peer.reply(6) == Reply(6, value=True)


def test_refusals_are_the_requests_own_outputs(peers: Callable[..., Peer]) -> None:
    executor = Executor(Shape(max_queued=1))
    executor.gate = threading.Semaphore(0)
    peer = peers(lambda progress: make_engine(Shape(max_queued=1, max_num_seqs=1), executor))
    peer.send(Add(make_request("runs", [1], max_tokens=4)))
    executor.gate.release(2)
    peer.until(lambda m: isinstance(m, Outputs) and m.stats.num_running)
    # the loop stands in a step, so these are handled together after it
    for name, length in (("waits", 1), ("long", 90), ("late", 1), ("waits", 1)):
        peer.send(Add(make_request(name, [1] * length, max_tokens=2)))
    executor.gate.release(10)
    ended: dict[str, list[Output]] = {}
    while set(ended) < {"runs", "waits", "long", "late"} or not any(
        o.finish_reason == "length" for o in ended["waits"]
    ):
        for out in peer.until(lambda m: isinstance(m, Outputs)).outputs:
            if out.finish_reason:
                ended.setdefault(out.request_id, []).append(out)
    assert [out.error_kind for out in ended["long"]] == ["InputError"]
    assert [(out.error_kind, out.retry_after) for out in ended["late"]] == [("OverloadedError", 1)]
    assert {out.error_kind for out in ended["waits"]} == {None, "InputError"}
    assert [out.finish_reason for out in ended["runs"]] == ["length"]


def test_a_request_that_cannot_be_taken_in_ends_alone(peers: Callable[..., Peer]) -> None:
    def factory(progress: Progress) -> Engine:
        made = make_engine(SHAPE, Executor())
        add = made.add

        def fault(request: Request, emitted: Any = None, **more: Any) -> None:
            if request.request_id == "odd":
                raise MemoryError
            add(request, emitted, **more)

        made.add = fault  # type: ignore[method-assign]
        return made

    peer = peers(factory)
    peer.send(Add(make_request("odd", [1])), Add(make_request("a", [1], max_tokens=3)))
    refused = peer.outputs("odd")[-1]
    assert (refused.finish_reason, refused.error_kind) == ("error", "RequestFailedError")
    assert refused.error == "the request was not taken (MemoryError)"
    assert tokens(peer.outputs("a")) == right(make_request("a", [1], max_tokens=3))


def test_more_than_a_frame_holds_goes_in_several(peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_FRAME", 500)
    peer = peers()
    gate = peer.executor.gate = threading.Semaphore(0)
    requests = [make_request(f"request number {i}", [1], max_tokens=3, logprobs=0) for i in range(8)]
    peer.send(*map(Add, requests))
    gate.release(100)
    got: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while got != {request.request_id: right(request) for request in requests}:
        for out in peer.until(lambda m: isinstance(m, Outputs)).outputs:
            assert out.error is None
            got[out.request_id] += out.token_ids


def test_an_answer_that_no_frame_holds_ends_alone(peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_FRAME", 400)
    peer = peers()
    peer.send(Add(make_request("a", [1], max_tokens=20)), Add(make_request("b", [1] * 30, prompt_logprobs=0)))
    got: dict[str, list[Output]] = {"a": [], "b": []}
    while not all(found and found[-1].finish_reason for found in got.values()):
        for out in peer.until(lambda m: isinstance(m, Outputs)).outputs:
            got[out.request_id].append(out)
    refused = got["b"][-1]
    assert (refused.finish_reason, refused.error_kind) == ("error", "InputError")
    assert "bytes are more than the 400 that" in (refused.error or "")
    assert tokens(got["a"]) == right(make_request("a", [1], max_tokens=20))
    peer.send(Call(1, "check"))
    assert peer.reply(1) == Reply(1, value=True)
    assert peer.until(lambda m: isinstance(m, Outputs)).stats.num_running == 0


def test_abort_frees_within_one_step(peers: Callable[..., Peer]) -> None:
    peer = peers()
    gate = peer.executor.gate = threading.Semaphore(0)
    peer.send(Add(make_request("a", [1] * 9, max_tokens=30)))
    gate.release(3)
    peer.until(lambda m: isinstance(m, Outputs) and m.outputs)
    peer.send(Abort(["a"]))
    # the loop stands in the next begin: that step is the last, and what it brings is thrown away
    gate.release(2)
    last = peer.until(lambda m: isinstance(m, Outputs) and m.stats.num_running == 0)
    assert last.outputs == []
    assert last.stats.kv_usage == 0.0
    peer.send(Call(1, "check"))
    assert peer.reply(1).value is True
    assert len(peer.executor.plans) <= 5


def test_an_idle_engine_beats(peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HEARTBEAT", 0.02)
    peer = peers()
    peer.ready()
    for _ in range(3):
        beat = peer.until(lambda m: isinstance(m, Outputs))
        assert beat.outputs == []
        assert beat.stats.num_running == 0


# ---- a reader that does not read


def test_a_slow_reader_stops_steps_only_at_the_bound(
    peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_BACKLOG", 1 << 20)
    monkeypatch.setattr(process, "HEARTBEAT", PATIENCE)  # nothing goes out because of one
    shape = Shape(num_blocks=8 * 2500, max_model_len=10_000, max_num_seqs=8, max_num_tokens=64, prefix_caching=False)
    executor = Executor(shape)
    peer = peers(lambda progress: make_engine(shape, executor))
    peer.ready()
    requests = [make_request(f"{'r' * 200}{i}", [i], max_tokens=3000) for i in range(8)]
    peer.send(*map(Add, requests))
    stood, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5:
        if len(executor.plans) != stood:
            stood, since = len(executor.plans), time.monotonic()
        time.sleep(0.01)
    frame = 8 * 220  # bytes a step, at least
    assert (1 << 20) / (frame * 2) < stood < 3000, "steps went on to the bound, and no further"
    assert peer.thread.is_alive()
    got: dict[str, list[int]] = {}
    ended = 0
    while ended < 8:
        for out in peer.until(lambda m: isinstance(m, Outputs)).outputs:
            got.setdefault(out.request_id, []).extend(out.token_ids)
            ended += out.finish_reason is not None
    assert got == {request.request_id: right(request) for request in requests}


def test_an_engine_that_waits_for_its_reader_still_listens(
    peers: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_BACKLOG", -1)
    peer = peers()
    peer.ready()
    peer.send(Add(make_request("a", [1], max_tokens=5)), Call(1, "check"))
    peer.reply(1)
    assert peer.executor.plans == []
    peer.send(Stop())
    assert peer.exit_code() == 0


# ---- how it ends


def test_the_other_side_is_gone(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.ready()
    peer.send(Add(make_request("a", [1], max_tokens=30)))
    peer.sock.close()
    assert peer.exit_code() == 1
    assert peer.executor.num_closed == 1


def test_the_other_side_is_gone_with_what_it_had_not_read(peers: Callable[..., Peer]) -> None:
    """The socket then says that the connection was reset, instead of that it is at its end."""
    peer = peers()
    assert peer.sock.recv(1, socket.MSG_PEEK)
    peer.sock.close()
    assert peer.exit_code() == 1


def test_a_stop_counts_though_nobody_waits_for_the_end(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.ready()
    peer.sock.sendall(encode(Abort(["a"])) + encode(Stop()))
    peer.sock.close()
    assert peer.exit_code() == 0


def test_the_other_side_is_gone_while_loading(peers: Callable[..., Peer]) -> None:
    gone = threading.Event()

    def factory(progress: Progress) -> Engine:
        assert gone.wait(PATIENCE)
        progress("weights", 1, 2)
        raise AssertionError("unreachable")

    peer = peers(factory)
    peer.sock.close()
    gone.set()
    assert peer.exit_code() == 1


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (ModelNotFoundError("no such model: x"), Fatal("ModelNotFoundError", "no such model: x")),
        (ConnectionResetError("hub"), Fatal("EngineDeadError", "the engine cannot start: ConnectionResetError: hub")),
        (EOFError(), Fatal("EngineDeadError", "the engine cannot start: EOFError: ")),
        (MemoryError("too big"), Fatal("EngineDeadError", "the engine cannot start: MemoryError: too big")),
    ],
)
def test_an_engine_that_cannot_start_says_why(peers: Callable[..., Peer], error: Exception, fatal: Fatal) -> None:
    def factory(progress: Progress) -> Engine:
        raise error

    peer = peers(factory)
    assert peer.rest() == [fatal]
    assert peer.exit_code() == 2


@pytest.mark.parametrize("broken", ["step", "check", "stats"])
def test_an_engine_that_cannot_go_on_says_why(peers: Callable[..., Peer], broken: str) -> None:
    def fault(*_: Any) -> Any:
        raise ValueError("block 3: 1 references, 0 holders")

    executor = Executor()

    def factory(progress: Progress) -> Engine:
        made = make_engine(SHAPE, executor)
        setattr(made, broken, fault)
        return made

    peer = peers(factory)
    peer.send(Add(make_request("a", [1], max_tokens=3)))
    last = peer.rest()[-1]
    assert isinstance(last, Fatal)
    assert last.kind == "EngineDeadError"
    assert "cannot go on: ValueError: block 3" in last.message
    assert peer.exit_code() == 3
    assert executor.num_closed == 1


@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME + 1).to_bytes(4, "little"),
        b"\xff" * 64,
        b"\0\0\0\0",
        b"\x01\0\0\0\xc1",
        encode(Ready({})),  # type: ignore[arg-type]
        b"\x05\0\0\0\xdd\xff\xff\xff\xff",
        len(b := b"\x82\xa4type\xa5Abort\xabrequest_ids\x91\xa2\xff\xff").to_bytes(4, "little") + b,
        len(b := b"\x82\xa4type\xa4Call\xa9arguments" + b"\x81\xa1a" * 9000).to_bytes(4, "little") + b,
    ],
    ids=["too long", "noise", "empty", "reserved byte", "not ours", "long array", "no utf-8", "deep"],
)
def test_a_damaged_stream_ends_the_process_with_a_reason(peers: Callable[..., Peer], data: bytes) -> None:
    peer = peers()
    peer.ready()
    peer.sock.sendall(data)
    last = peer.rest()[-1]
    assert isinstance(last, Fatal)
    assert last.kind == "EngineDeadError"
    assert "frame" in last.message
    assert peer.exit_code() == 3


def test_a_torn_frame_is_only_an_end(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.ready()
    peer.sock.sendall(encode(Add(make_request("a", [1])))[:-3])
    peer.sock.shutdown(socket.SHUT_WR)
    assert peer.exit_code() == 1


def test_any_descriptor_will_do(peers: Callable[..., Peer]) -> None:
    """A busy server's socketpair has a number that select() does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= 1500:
        if hard != resource.RLIM_INFINITY and hard <= 1500:
            pytest.skip(f"only {hard} descriptors are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1600, hard))
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=os.dup2(theirs.detach(), 1500))
    with ours, high:
        ours.sendall(encode(Stop()))
        assert run(lambda progress: make_engine(SHAPE, Executor()), high) == 0


CHILD = """
import socket, sys
from octavo.base.config.config import CacheConfig, SchedulerConfig
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor
from octavo.engine.process import run
def factory(progress):
    executor, cache = ScriptedExecutor(num_blocks=64, block_size=8, vocab_size=7), CacheConfig(block_size=8)
    return Engine(executor, scheduler=SchedulerConfig(), cache=cache, num_blocks=64, max_model_len=512)
with socket.socket(fileno=int(sys.argv[1])) as sock:
    sys.exit(run(factory, sock))
"""


@pytest.mark.parametrize(
    ("end", "code"), [(encode(Stop()), 0), (b"", 1), (b"\xff" * 8, 3)], ids=["stop", "gone", "noise"]
)
def test_in_a_child_process(end: bytes, code: int) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-c", CHILD, str(theirs.fileno())]
            environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
            child = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stderr=subprocess.DEVNULL)
        ours.settimeout(PATIENCE)
        request = make_request("a", [1, 0, 1], max_tokens=9)
        ours.sendall(encode(Add(request)))
        decoder: Decoder[FromEngine] = Decoder(FromEngine)
        found: list[Output] = []
        while not found or found[-1].finish_reason is None:
            for message in decoder.feed(ours.recv(1 << 16)):
                found += message.outputs if isinstance(message, Outputs) else []
        assert tokens(found) == right(request)
        ours.sendall(end)
        ours.shutdown(socket.SHUT_WR) if not end else None
        assert child.wait(PATIENCE) == code


# ---- values that no type or rule allows

HOSTILE: list[dict[str, Any]] = [
    {"params": {"temperature": math.nan}},
    {"params": {"temperature": math.inf}},
    {"params": {"top_p": math.nan}},
    {"params": {"min_p": -1.0}},
    {"params": {"presence_penalty": math.nan}},
    {"params": {"n": 0}},
    {"params": {"n": 2**31}},
    {"params": {"n": -1}},
    {"params": {"max_tokens": 0}},
    {"params": {"min_tokens": 2**63}},
    {"params": {"logit_bias": {1: math.nan}}},
    {"params": {"logit_bias": {-1: 1.0}}},
    {"params": {"stop_token_ids": [-1]}},
    {"params": {"allowed_token_ids": []}},
    {"params": {"no_such_field": 1}},
    {"params": {"temperature": "hot"}},
    {"params": []},
    {"params": None},
    {"prompt_token_ids": []},
    {"prompt_token_ids": [-1]},
    {"prompt_token_ids": [2**63]},
    {"prompt_token_ids": [2**64 - 1]},
    {"prompt_token_ids": [1.5]},
    {"prompt_token_ids": [None]},
    {"prompt_token_ids": "text"},
    {"prompt_token_ids": [1] * 100_000},
    {"max_tokens": 0},
    {"max_tokens": -(2**63)},
    {"max_tokens": 2**64 - 1},
    {"max_tokens": None},
    {"seed": "x"},
    {"eos_token_ids": [[1]]},
    {"cache_salt": 5},
    {"priority": None},
]
HARMLESS: list[dict[str, Any]] = [
    {"priority": -(2**63)},
    {"priority": 2**64 - 1},
    {"seed": -(2**63)},
    {"seed": 2**64 - 1},
    {"eos_token_ids": [-1, 2**64 - 1]},
    {"bad_words_ids": [[2**64 - 1], []]},
    {"arrival": math.nan},
    {"arrival": -math.inf},
    {"cache_salt": "\0" * 10_000},
    {"params": {"min_tokens": 2**63 - 1, "max_tokens": None}},
    {"params": {"seed": -(2**63), "top_k": 2**63 - 1}},
]


def raw_add(name: str, changes: dict[str, Any]) -> bytes:
    """An Add as no Request would allow it to be built."""
    request = msgspec.to_builtins(make_request(name, [1, 0, 1], max_tokens=4))
    params = changes.get("params", {})
    merged = {**request["params"], **params} if isinstance(params, dict) else params
    body = msgspec.msgpack.encode({"type": "Add", "request": {**request, **changes, "params": merged}})
    return len(body).to_bytes(4, "little") + body


def test_values_out_of_range_end_their_own_request(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.ready()
    victim = make_request("victim", [1, 0, 0, 1], max_tokens=36)
    peer.send(Add(victim))
    for i, changes in enumerate(HOSTILE):
        peer.sock.sendall(raw_add(f"h{i}", changes))
    peer.send(Call(1, "check"))
    seen: dict[str, list[Output]] = {}
    while "victim" not in seen or seen["victim"][-1].finish_reason is None or len(seen) <= len(HOSTILE):
        for out in peer.until(lambda m: isinstance(m, Outputs)).outputs:
            seen.setdefault(out.request_id, []).append(out)
    assert tokens(seen.pop("victim")) == right(victim)
    assert sorted(seen) == sorted(f"h{i}" for i in range(len(HOSTILE)))
    for outputs in seen.values():
        assert [(out.finish_reason, out.error_kind, out.token_ids) for out in outputs] == [("error", "InputError", [])]
        assert outputs[0].error
        assert len(outputs[0].error) < 300


def test_values_that_are_odd_but_allowed_run(peers: Callable[..., Peer]) -> None:
    peer = peers()
    for i, changes in enumerate(HARMLESS):
        peer.sock.sendall(raw_add(f"h{i}", changes))
        assert tokens(peer.outputs(f"h{i}")) == right(make_request("x", [1, 0, 1], max_tokens=4))
    peer.send(Call(1, "check"))
    assert peer.reply(1).value is True


# ---- noise

CORPUS = [
    encode(Add(make_request("a", [1, 2, 300, 70_000], n=3, temperature=0.5, stop=["x", "yy"], logit_bias={4: 1.5}))),
    encode(Add(make_request("b" * 40, list(range(200)), cache_salt="salt", seed=2**62, logprobs=5))),
    encode(Abort(["a", "b:1"])),
    encode(Call(7, "reset_prefix_cache", {"deep": [{"x": [1, 2.5, None, "s"]}]})),
    encode(Stop()),
]


def mutate(rng: random.Random) -> bytes:
    """One to three frames, damaged in a few places; or noise behind a true length."""
    if rng.random() < 0.15:
        body = rng.randbytes(rng.randint(0, 60))
        return len(body).to_bytes(4, "little") + body
    data = bytearray(b"".join(rng.choices(CORPUS, k=rng.randint(1, 3))))
    head = len(data) - 4
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(4 if rng.random() < 0.9 else 0, len(data))
        act = rng.randrange(5)
        if act == 0:
            data[at] = rng.randrange(256)
        elif act == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif act == 2:
            data[at:at] = rng.choice((b"\xdf", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x91" * 200, rng.randbytes(5)))
        elif act == 3:
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at:] = data[: rng.randint(0, 40)]
        if len(data) < 5:
            break
    if rng.random() < 0.5 and len(data) >= 4 and len(data) - 4 != head:
        data[:4] = max(0, len(data) - 4).to_bytes(4, "little")  # so that the damage is met, not only the length
    return bytes(data)


def test_the_decoder_meets_noise_with_one_error_and_bounded_memory() -> None:
    rng = random.Random(7)
    frames = [mutate(rng) for _ in range(20_000)]
    whole = errors = waiting = 0
    tracemalloc.start()
    for data in frames:
        decoder: Decoder[ToEngine] = Decoder(ToEngine)
        at = 0
        try:
            while at < len(data):
                size = rng.choice((1, 7, 100, 5000))
                messages = list(decoder.feed(data[at : at + size]))
                assert all(isinstance(message, Add | Abort | Call | Stop) for message in messages)
                whole += len(messages)
                at += size
            waiting += 1
        except ModelFormatError:
            errors += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert errors + waiting == 20_000
    assert min(whole, errors, waiting) > 1000, "the noise is to be of all kinds"
    assert peak < 8 << 20


def test_the_process_meets_noise_with_an_end(peers: Callable[..., Peer]) -> None:
    """Every stream ends the loop by Stop, by its end or by a Fatal: never by an exception, never not at all."""
    rng = random.Random(11)
    codes: dict[Any, int] = {}
    for _ in range(150):
        peer = peers()
        try:
            peer.sock.sendall(mutate(rng))
            peer.sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        code = peer.exit_code()
        last = peer.rest()[-1:]
        assert code in (0, 1, 3)
        assert (code == 3) == bool(last and isinstance(last[0], Fatal))
        codes[code] = codes.get(code, 0) + 1
        peer.close()
    assert {1, 3} <= set(codes)

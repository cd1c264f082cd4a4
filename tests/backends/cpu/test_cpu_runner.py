"""The cpu backend as a whole, over a hand-made model: logits, the port's rules, failures that stay in their row."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cpu_tiny
import numpy as np
import processes
import pytest
from parity.drive import EVERYTHING, Drive, Seq, check_against

from octavo.backends.cpu import runner
from octavo.backends.cpu.host import take_threads
from octavo.backends.cpu.machine import Machine
from octavo.backends.cpu.native import library
from octavo.backends.cpu.native_machine import NativeMachine
from octavo.backends.cpu.rows import Rows
from octavo.backends.cpu.runner import CpuBackend
from octavo.backends.cpu.sampler import Draw
from octavo.base.errors import NOT_FINITE, ConfigError, ModelFormatError, OctavoError, UnsupportedError
from octavo.base.types.plan import BlockUpdate, RowBegin, RowSampling, RowStep, StepPlan
from octavo.models.spec import Head

SPEC = cpu_tiny.spec()
WEIGHTS = cpu_tiny.arrays(SPEC)
NUM_BLOCKS = 32
GREEDY = RowSampling()


@pytest.fixture(params=["native", "numpy"])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    native = request.param == "native"
    if native and library() is None:
        pytest.skip("nothing was compiled")
    made = cpu_tiny.backend(SPEC, WEIGHTS, num_blocks=NUM_BLOCKS, native=native)
    assert made.call("describe")["native"] is native
    yield made
    made.close()


@pytest.fixture
def drive(backend: CpuBackend) -> Drive:
    return Drive(backend, num_blocks=NUM_BLOCKS, block_size=4, num_rows=4)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, cpu_tiny.VOCAB, length).tolist()


def check(*seqs: Seq, spec: Any = SPEC) -> None:
    for seq in seqs:
        check_against(seq, cpu_tiny.forward(spec, WEIGHTS, seq.tokens))


def test_every_word_of_the_vocabulary(drive: Drive) -> None:
    first, second = drive.add(prompt(19)), drive.add(prompt(7, seed=1))
    drive.prefill(first, second, chunk=8)
    drive.decode(first, second, steps=12)
    check(first, second)


def test_steps_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op that can be cut is: the model is far too small for it otherwise."""
    monkeypatch.setattr("octavo.backends.cpu.team.WORTHWHILE", 1)
    backend = cpu_tiny.backend(SPEC, WEIGHTS, num_blocks=NUM_BLOCKS, threads=3, native=False)
    drive = Drive(backend, num_blocks=NUM_BLOCKS, block_size=4, num_rows=4)
    drive.shuffle(2)
    seqs = [drive.add(prompt(5 + 4 * n, seed=n)) for n in range(4)]
    drive.prefill(*seqs, chunk=7)
    drive.decode(*seqs, steps=6)
    check(*seqs)
    backend.close()


def test_tied_head() -> None:
    spec = replace(SPEC, head=Head(tied=True))
    backend = cpu_tiny.backend(spec, {name: array for name, array in WEIGHTS.items() if name != "head"})
    seq = Drive(backend, num_blocks=32, block_size=4, num_rows=4).add(prompt(9))
    drive = Drive(backend, num_blocks=32, block_size=4, num_rows=4)
    drive.prefill(seq)
    check(seq, spec=spec)
    backend.close()


def test_logits_come_in_tiles(drive: Drive) -> None:
    """More positions than fit into the logits' register at once."""
    drive.backend._machine.tail_rows = 3
    seqs = [drive.add(prompt(11, seed=n)) for n in range(3)]
    drive.prefill(*seqs)
    drive.decode(*seqs, steps=2)
    check(*seqs)


def test_sampled_tokens_do_not_depend_on_neighbours(drive: Drive) -> None:
    sampling = RowSampling(temperature=1.0, seed=3, top_p=0.95, repetition_penalty=1.2)
    alone = drive.add(prompt(6), sampling)
    drive.prefill(alone)
    drive.decode(alone, steps=15)
    drive.end(alone)
    drive.shuffle(1)
    others = [drive.add(prompt(5 + n, seed=n), RowSampling(temperature=0.7, seed=n)) for n in range(3)]
    drive.prefill(*others, chunk=2)
    again = drive.add(prompt(6), sampling)
    drive.prefill(again, chunk=4)
    drive.decode(others[0], again, *others[1:], steps=15)
    assert again.tokens == alone.tokens
    assert len(set(alone.outputs)) > 3


def test_stop_ids_and_min_tokens_in_steps(drive: Drive) -> None:
    free = drive.add(prompt(6), GREEDY)
    drive.prefill(free)
    drive.decode(free, steps=5)
    held = drive.add(prompt(6), RowSampling(stop_token_ids=[free.outputs[0]], min_tokens=3))
    drive.prefill(held)
    drive.decode(held, steps=5)
    assert free.outputs[0] not in held.outputs[:3]


def test_blocks_trade_places(drive: Drive) -> None:
    """All sources of a plan's copies are read before any destination is written."""
    seq = drive.add(prompt(13))
    drive.prefill(seq)
    a, b = seq.blocks[:2]
    drive.copies = [(a, b), (b, a)]
    drive.updates = [BlockUpdate(seq.row, 0, [b, a])]
    drive.decode(seq, steps=3)
    check(seq)


def test_prompt_logprobs_alone(drive: Drive) -> None:
    """Chunks tell of their own tokens and of the one after them; nothing is told of outputs, or by other rows."""
    asks = drive.add(prompt(9), RowSampling(prompt_logprobs=2))
    other = drive.add(prompt(9), GREEDY)
    result = drive.step([(other, 4), (asks, 4)])
    first, entries = result.prompt_logprobs[asks.row]
    assert (first, len(entries)) == (1, 4)
    result = drive.step([(other, 5), (asks, 5)])
    first, entries = result.prompt_logprobs[asks.row]
    assert (first, len(entries)) == (5, 4)
    assert all(len(entry.token_ids) == 3 for entry in entries)
    assert set(result.prompt_logprobs) == {asks.row}
    assert result.logprobs == [None, None]
    assert drive.step([(asks, 1)]).prompt_logprobs == {}


# what may go wrong for one row


def poison(drive: Drive, seq: Seq, position: int) -> None:
    """Make the value of one cached token NaN."""
    place = seq.blocks[position // 4], position % 4
    drive.backend._machine._caches["values.1"].data[:, *place] = np.nan


def test_nan_row_fails_alone(drive: Drive) -> None:
    good, bad = drive.add(prompt(10)), drive.add(prompt(10, seed=1))
    drive.prefill(good, bad)
    poison(drive, bad, 4)
    result = drive.step([(bad, 1), (good, 1)])
    assert set(result.failed) == {bad.row}
    assert "finite" in result.failed[bad.row]
    assert len(result.tokens) == 2
    # a step begun before the engine knew fails the row again
    assert set(drive.step([(good, 1), (bad, 1)]).failed) == {bad.row}
    drive.end(bad)
    # its row and its blocks, NaN and all, serve another
    heir = drive.add(prompt(6, seed=2))
    assert heir.row == bad.row
    drive.prefill(heir)
    assert heir.blocks[0] == bad.blocks[0]
    drive.decode(heir, good, steps=6)
    check(good, heir)


def test_nan_anywhere_in_a_chunk_fails_the_row(drive: Drive) -> None:
    """Token 5 of the embedding is NaN: the chunk's own last token may not see it (window), the row still fails."""
    machine = drive.backend._machine
    if isinstance(machine, NativeMachine):
        (embed,) = machine._packed.matrices["embed"]
        embed.data.view(np.float32).reshape(-1, embed.k, 16)[0, :, 5] = np.nan  # panels of 16 rows, turned
    else:
        machine._weights["embed"][:, 5] = np.nan
    good, bad = drive.add([1, 2, 3, 4]), drive.add([1, 5, 3, 4, 2, 2, 2, 2, 2])
    result = drive.step([(bad, 8), (good, 4)])
    assert set(result.failed) == {bad.row}
    assert len(result.logprobs) == 1
    assert set(result.prompt_logprobs) == {good.row}


def test_one_infinite_number_in_a_chunk_fails_the_row(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = drive.backend._machine
    exact = machine.forward

    def forward(batch: Any) -> Any:
        finite = np.ones(batch.num_tokens, np.bool_)
        finite[2] = False
        return finite, exact(batch)[1]

    monkeypatch.setattr(machine, "forward", forward)
    bad, good = drive.add(prompt(6)), drive.add(prompt(6, seed=1))
    result = drive.step([(bad, 5), (good, 6)])
    assert set(result.failed) == {bad.row}
    check(good)


def test_infinite_logits_fail_the_row(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = drive.backend._machine
    exact = machine.forward

    def forward(batch: Any) -> Any:
        finite, heads = exact(batch)
        heads.finite[0] = False
        return finite, heads

    monkeypatch.setattr(machine, "forward", forward)
    first, second = drive.add([1, 2], GREEDY), drive.add([1, 2], GREEDY)
    result = drive.step([(first, 2), (second, 2)])
    assert list(result.failed) == [first.row]
    assert result.failed[first.row] == NOT_FINITE


def test_unexpected_error_in_sampling_fails_the_row(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = drive.backend._machine
    exact = machine.draw

    def draw(draws: list[Draw]) -> list[int]:
        return exact([draw for draw in draws if draw.temperature != 1.5 or 1 // 0])

    monkeypatch.setattr(machine, "draw", draw)
    good, warm = drive.add(prompt(5), GREEDY), drive.add(prompt(5), RowSampling(temperature=0.5))
    bad = drive.add(prompt(5), RowSampling(temperature=1.5))
    result = drive.step([(bad, 5), (good, 5), (warm, 5)])
    assert result.failed == {bad.row: "ZeroDivisionError: integer division or modulo by zero"}
    drive.decode(good, warm, steps=3)
    assert good.failed is None
    assert warm.failed is None


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        (RowSampling(logit_bias={cpu_tiny.VOCAB: 1.0}), "logit_bias"),
        (RowSampling(allowed_token_ids=[-1]), "allowed_token_ids"),
        (RowSampling(bad_words_ids=[[2**70]]), "int"),
        (RowSampling(allowed_token_ids=[4], bad_words_ids=[[4]]), "leave no token"),
    ],
)
def test_sampling_parameters_fail_the_row(drive: Drive, sampling: RowSampling, reason: str) -> None:
    good, bad = drive.add(prompt(5)), drive.add(prompt(5), sampling)
    result = drive.step([(bad, 5), (good, 5)])
    assert list(result.failed) == [bad.row]
    assert reason in result.failed[bad.row]
    drive.decode(good, steps=2)
    check(good)


def begin(row: int, tokens: list[int], blocks: list[int]) -> RowBegin:
    return RowBegin(row, tokens, len(tokens), blocks, GREEDY)


BAD_PLANS: dict[str, tuple[int, StepPlan]] = {
    "row never begun": (2, StepPlan(step=9, rows=[RowStep(2, 0, 1, True)])),
    "row that is none": (9, StepPlan(step=9, rows=[RowStep(9, 0, 1, True)])),
    "begin of a row that is none": (-1, StepPlan(step=9, rows=[], begins=[begin(-1, [1], [9])])),
    "token outside": (2, StepPlan(step=9, rows=[RowStep(2, 0, 1, True)], begins=[begin(2, [cpu_tiny.VOCAB], [9])])),
    "negative token": (2, StepPlan(step=9, rows=[RowStep(2, 0, 1, True)], begins=[begin(2, [-1], [9])])),
    "too long": (2, StepPlan(step=9, rows=[], begins=[begin(2, [1] * 66, [9])])),
    "block outside": (2, StepPlan(step=9, rows=[RowStep(2, 0, 1, True)], begins=[begin(2, [1], [NUM_BLOCKS])])),
    "too few blocks": (2, StepPlan(step=9, rows=[RowStep(2, 0, 5, True)], begins=[begin(2, [1] * 5, [9])])),
    "too many blocks": (2, StepPlan(step=9, rows=[], begins=[begin(2, [1], [9] * 18)])),
    "unknown tokens": (2, StepPlan(step=9, rows=[RowStep(2, 0, 3, True)], begins=[begin(2, [1, 2], [9])])),
    "no tokens": (2, StepPlan(step=9, rows=[RowStep(2, 0, 0, True)], begins=[begin(2, [1, 2], [9])])),
    "blocks with a gap": (
        2,
        StepPlan(step=9, rows=[], begins=[begin(2, [1, 2], [9])], updates=[BlockUpdate(2, 2, [10])]),
    ),
}


@pytest.mark.parametrize(("row", "plan"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_bad_plan_for_one_row(drive: Drive, row: int, plan: StepPlan) -> None:
    good = drive.add(prompt(9))
    drive.prefill(good)
    drive.backend.begin(StepPlan(step=9, rows=plan.rows, begins=plan.begins, updates=plan.updates))
    result = drive.backend.finish()
    assert list(result.failed) == [row]
    assert result.failed[row]
    assert len(result.tokens) == len(plan.rows)
    drive.decode(good, steps=3)
    check(good)


def test_context_can_be_filled_to_the_end(drive: Drive) -> None:
    seq = drive.add(prompt(60))
    drive.prefill(seq)
    drive.decode(seq, steps=4)
    assert len(seq.tokens) == 65  # one ahead of the context of 64, as a step in flight may be
    check(seq)


# the port's rules


def test_begin_returns_at_once_and_steps_keep_their_order(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, gate = drive.backend, threading.Event()
    forward = backend._machine.forward

    def held(batch: Any) -> np.ndarray:
        assert gate.wait(20)
        return forward(batch)

    monkeypatch.setattr(backend._machine, "forward", held)
    seq = drive.add(prompt(5), GREEDY)
    drive.launch([(seq, 5)])
    drive.launch([(seq, 1)])
    with pytest.raises(RuntimeError, match="2 steps"):
        backend.begin(StepPlan(step=3, rows=[]))
    gate.set()
    assert drive.collect().step == 1
    assert drive.collect().step == 2
    with pytest.raises(RuntimeError, match="without begin"):
        backend.finish()


def test_error_of_a_whole_step_comes_out_of_finish(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after it runs; rows whose token never came fail."""
    seq, other = drive.add(prompt(5)), drive.add(prompt(4), EVERYTHING)
    drive.step([(other, 4)])

    def broken(_batch: Any) -> np.ndarray:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(drive.backend._machine, "forward", broken)
        drive.launch([(seq, 5)])
        with pytest.raises(MemoryError, match="no room"):
            drive.backend.finish()
    drive.launched.clear()
    result = drive.step([(seq, 1), (other, 1)])
    assert list(result.failed) == [seq.row]
    check(other)


def test_step_with_too_many_tokens(drive: Drive) -> None:
    seqs = [drive.add(prompt(49, seed=n)) for n in range(2)]
    drive.launch([(seq, 49) for seq in seqs])
    with pytest.raises(ValueError, match="max_num_batched_tokens is 96"):
        drive.collect()


def test_empty_plan(backend: CpuBackend) -> None:
    backend.begin(StepPlan(step=4, rows=[], ended=[0, 3, 77]))
    result = backend.finish()
    assert (result.step, result.tokens, result.failed) == (4, [], {})


def test_memory(backend: CpuBackend) -> None:
    memory = backend.memory()
    weights = sum(array.nbytes for name, array in WEIGHTS.items() if "q_norm" not in name and "k_norm" not in name)
    # qk norms are repeated for each head; native matrices are filled up to 16 rows
    most = weights + 4096 if isinstance(backend._machine, Machine) else weights * 1.4
    assert weights < memory.weights < most
    assert 0 < memory.free < memory.total


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_told_that_it_has_no_threads(backend: CpuBackend, drive: Drive) -> None:
    seq = drive.add(prompt(5))
    drive.prefill(seq, chunk=8)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends it where it would wait for ever
        try:
            backend.begin(StepPlan(step=9, rows=[]))
            backend.finish()
        except OctavoError as error:
            os.write(writing, error.message.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told_by_child:
        assert "fork" in told_by_child.read()
    assert os.waitpid(child, 0)[1] == 0
    drive.decode(seq, steps=2)
    check(seq)


@pytest.mark.parametrize("length", [1 << 36, 1 << 50])
def test_more_rows_than_memory_are_an_error(length: int) -> None:
    with pytest.raises(ConfigError, match=f"max_num_seqs=16384 .* max_model_len={length} .*--max-num-seqs"):
        Rows(1 << 14, max_model_len=length, block_size=16, num_blocks=4, vocab_size=9)


@pytest.mark.parametrize("native", [True, False])
def test_steps_larger_than_memory_are_an_error(native: bool) -> None:
    """Told before the weights are packed."""
    sizes = {"max_num_seqs": 1, "max_model_len": 8, "block_size": 8, "threads": 1, "native": native}
    made = CpuBackend(max_num_batched_tokens=1 << 40, **sizes)
    stored = {name: cpu_tiny.stored(name, array) for name, array in WEIGHTS.items()}
    progress: list[Any] = []
    with pytest.raises(ConfigError, match=f"max_num_batched_tokens={1 << 40}: .*--max-num-batched-tokens"):
        made.load(SPEC, stored, lambda *told: progress.append(told))
    assert progress == []
    made.close()


@pytest.mark.skipif(library() is None or not processes.KNOWN, reason="Linux and compiled kernels")
@pytest.mark.parametrize("where", ["weights", "machine"])
def test_a_load_that_fails_leaves_no_thread(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError

    if where == "machine":
        monkeypatch.setattr(runner, "NativeMachine", fail)
    take_threads(1)  # a fork, as another test makes, ends BLAS's thread, and this brings it back
    before = len(os.listdir("/proc/self/task"))
    made = CpuBackend(max_num_seqs=1, max_model_len=8, max_num_batched_tokens=8, block_size=8, threads=3)
    stored = {name: cpu_tiny.stored(name, array) for name, array in WEIGHTS.items()}
    with pytest.raises(MemoryError):
        made.load(SPEC, stored, fail if where == "weights" else None)
    made.close()
    for _ in range(200):  # the system may list a thread for a moment after it was joined
        if len(os.listdir("/proc/self/task")) == before:
            return
        time.sleep(0.01)
    raise AssertionError(len(os.listdir("/proc/self/task")) - before)


@pytest.mark.parametrize("name", ["reset_cache", "load", "close"])
def test_unknown_call(backend: CpuBackend, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        backend.call(name, level=1)


def test_order_of_calls() -> None:
    sizes = {"max_num_seqs": 1, "max_model_len": 8, "max_num_batched_tokens": 8, "block_size": 8}
    backend = CpuBackend(**sizes)
    for early in (backend.memory, lambda: backend.allocate(1)):
        with pytest.raises(RuntimeError, match="load"):
            early()
    backend.load(SPEC, {name: cpu_tiny.stored(name, array) for name, array in WEIGHTS.items()})
    with pytest.raises(RuntimeError, match="allocate"):
        backend.begin(StepPlan(step=1, rows=[]))
    with pytest.raises(ConfigError, match="0 blocks"):
        backend.allocate(0)
    backend.close()
    backend.close()


def test_wrong_weights() -> None:
    backend = CpuBackend(max_num_seqs=1, max_model_len=8, max_num_batched_tokens=8, block_size=8)
    with pytest.raises(ModelFormatError, match="embed"):
        backend.load(SPEC, {})
    backend.close()


@pytest.mark.parametrize("dtype", ["float16", "fp8"])
def test_other_cache_dtypes(dtype: str) -> None:
    with pytest.raises(UnsupportedError, match=f"kv_cache_dtype={dtype} .* bfloat16"):
        CpuBackend(max_num_seqs=1, max_model_len=8, max_num_batched_tokens=8, block_size=8, kv_cache_dtype=dtype)


def test_close_waits_for_the_step_that_runs(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    forward: Callable[[Any], np.ndarray] = drive.backend._machine.forward

    def slow(batch: Any) -> np.ndarray:
        time.sleep(0.05)
        found = forward(batch)
        ended.append(True)
        return found

    monkeypatch.setattr(drive.backend._machine, "forward", slow)
    seq = drive.add(prompt(3))
    drive.launch([(seq, 3)])
    drive.backend.close()
    assert ended == [True]


def test_int8_needs_the_kernels() -> None:
    with pytest.raises(ConfigError, match="activation_dtype=int8 needs the native kernels"):
        cpu_tiny.backend(SPEC, WEIGHTS, num_blocks=NUM_BLOCKS, native=False, activation_dtype="int8")

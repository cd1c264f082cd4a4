"""The backend port: batches, rows, blocks, steps ahead of their results, and failures that stay with their row."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch_driver import BLOCK, MAX_LEN, VOCAB, Driver, arrays, close, layer, spec, vector
from torch_forward import forward, log_softmax

from octavo.backends.torch import runner as runner_module
from octavo.backends.torch import step as step_module
from octavo.backends.torch.device.device import resolve_cache_dtype
from octavo.backends.torch.device.memory import activation_bytes
from octavo.backends.torch.device.transfer import Download, Staging, take
from octavo.backends.torch.runner import InPlace, TorchBackend
from octavo.backends.torch.step import Launched
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.types.plan import BlockUpdate, RowBegin, StepPlan, StepResult
from octavo.models.spec import ModelSpec

MODEL = spec(layer({"window": 9}), layer())
WEIGHTS = arrays(MODEL)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver(MODEL, WEIGHTS)
    yield made
    made.backend.close()


@torch.inference_mode()
def poison(driver: Driver, slots: slice) -> None:
    """NaN into these slots of every layer."""
    runner = driver.backend._runner
    assert runner is not None
    for index in range(len(MODEL.layers)):
        runner._cache.slots(index)[:, slots] = float("nan")


@pytest.mark.parametrize("asked", [-1, None])
def test_mixed_batch_against_the_forward_pass(driver: Driver, asked: int | None) -> None:
    """Decode, a chunk with history, a first chunk and a whole prompt in one step, over a poisoned cache."""
    poison(driver, slice(None))
    a, b, c, d = (prompt(length, seed) for seed, length in enumerate((17, 30, 12, 1)))
    driver.step([(5, 0, 17, True), (0, 0, 11, False)], [driver.begin(5, a), driver.begin(0, b, prompt_logprobs=asked)])
    first = driver.step(
        [(2, 0, 7, False), (5, 17, 1, True), (0, 11, 19, True), (7, 0, 1, True)],
        [driver.begin(2, c), driver.begin(7, d)],
    )
    second = driver.step([(7, 1, 1, True), (2, 7, 5, True), (0, 30, 1, True)])
    assert not first.failed
    assert len(first.tokens) == len(first.logprobs) == 3
    a_next = int(forward(MODEL, WEIGHTS, a)[-1].argmax())
    close(first.logprobs[0], forward(MODEL, WEIGHTS, [*a, a_next])[-1])
    close(first.logprobs[1], forward(MODEL, WEIGHTS, b)[-1])
    close(first.logprobs[2], forward(MODEL, WEIGHTS, d)[-1])
    assert list(first.prompt_logprobs) == ([0] if asked else [])
    for position, entries in first.prompt_logprobs.values():
        assert (position, len(entries)) == (12, 18)
        for entry, logits in zip(entries, forward(MODEL, WEIGHTS, b)[11:], strict=False):
            close(entry, logits)
    close(second.logprobs[0], forward(MODEL, WEIGHTS, [*d, first.tokens[2]])[-1])
    close(second.logprobs[1], forward(MODEL, WEIGHTS, c)[-1])
    close(second.logprobs[2], forward(MODEL, WEIGHTS, [*b, first.tokens[1]])[-1])


def test_steps_run_ahead_of_their_results(driver: Driver) -> None:
    """Greedy decoding two steps ahead to the very end of the context."""
    ids = prompt(40)
    driver.launch([(1, 0, 40, True)], [driver.begin(1, ids, logprobs=None)])
    for position in range(40, MAX_LEN):
        driver.launch([(1, position, 1, True)])
        result = driver.backend.finish()
        assert result.logprobs == [None]
        ids += result.tokens
    ids += driver.backend.finish().tokens
    assert len(ids) == MAX_LEN + 1
    logits = forward(MODEL, WEIGHTS, ids[:-1])
    assert ids[40:] == logits[39:].argmax(-1).tolist()


def test_at_most_two_unfinished(driver: Driver) -> None:
    driver.launch([(0, 0, 3, False)], [driver.begin(0, prompt(9))])
    driver.launch([(0, 3, 3, False)])
    with pytest.raises(RuntimeError, match="finish"):
        driver.launch([(0, 6, 3, True)])
    assert [driver.backend.finish().step, driver.backend.finish().step] == [1, 2]
    with pytest.raises(RuntimeError, match="begin"):
        driver.backend.finish()


def test_row_is_reused_in_the_plan_that_ends_it(driver: Driver) -> None:
    driver.run(prompt(60, 1), row=0, repetition_penalty=3.0, allowed_token_ids=[4])
    short = prompt(5, 2)
    result = driver.step([(0, 0, 5, True)], [driver.begin(0, short)], ended=[0])
    close(result.logprobs[0], forward(MODEL, WEIGHTS, short)[-1])
    assert result.tokens == [int(forward(MODEL, WEIGHTS, short)[-1].argmax())]


def test_blocks_appended_shared_and_copied(driver: Driver) -> None:
    """Row 1 shares row 0's first block, takes a copy of its half-full second one and goes on from there."""
    ids = prompt(2 * BLOCK - 3)
    own = driver.spare
    begin = driver.begin(0, ids)
    begin = RowBegin(0, ids, len(ids), own[:1], begin.sampling)
    driver.step([(0, 0, len(ids), True)], [begin], updates=[BlockUpdate(0, 1, own[1:2])])
    branch = [*ids, 5, 6, 7]
    copied = driver.blocks[1][1]
    result = driver.step(
        [(0, len(ids), 1, True), (1, len(ids), 3, True)],
        [RowBegin(1, branch, len(branch), own[:3], begin.sampling)],
        updates=[BlockUpdate(1, 1, [copied])],
        copies=[(own[1], copied)],
    )
    main = [*ids, int(forward(MODEL, WEIGHTS, ids)[-1].argmax())]
    close(result.logprobs[0], forward(MODEL, WEIGHTS, main)[-1])
    close(result.logprobs[1], forward(MODEL, WEIGHTS, branch)[-1])
    assert not result.failed
    later = driver.step([(1, len(branch), 1, True)])
    close(later.logprobs[0], forward(MODEL, WEIGHTS, [*branch, result.tokens[1]])[-1])


def test_plan_without_rows(driver: Driver) -> None:
    driver.run(prompt(3))
    assert driver.step([], ended=[0]) == StepResult(step=2)
    assert driver.step([(0, 3, 1, True)]).failed == {0: "the row was never begun"}


def test_seeded_sampling_in_a_crowd_and_after_preemption(driver: Driver) -> None:
    """Tokens do not depend on row, neighbours, chunks, or on being run again from the start."""
    ids = prompt(14)
    sampling: dict[str, Any] = {"temperature": 1.3, "seed": 99, "presence_penalty": 0.5, "min_tokens": 3, "logprobs": 0}
    alone = driver.run(ids, row=0, **sampling).tokens
    for position in range(14, 24):
        alone += driver.step([(0, position, 1, True)]).tokens
    others = [driver.begin(row, prompt(9 + row, row), temperature=1.0, seed=row) for row in range(1, 6)]
    driver.step([(b.row, 0, len(b.token_ids), True) for b in others], others, ended=[0])
    known = [*ids, *alone[:4]]  # preempted after four outputs
    again = [driver.begin(6, known, num_prompt=14, **sampling)]
    driver.step([(6, 0, 5, False), *((b.row, len(b.token_ids), 1, True) for b in others)], again)
    result = driver.step([(6, 5, 13, True), *((b.row, len(b.token_ids) + 1, 1, True) for b in others)])
    crowd = [result.tokens[0]]
    for i in range(6):
        crowd.append(driver.step([(2, 13 + i, 1, True), (6, 18 + i, 1, True)]).tokens[1])
    assert crowd == alone[4:]
    other = driver.run(ids, row=0, **{**sampling, "seed": 100}).tokens
    other += [driver.step([(0, position, 1, True)]).tokens[0] for position in range(14, 24)]
    assert other != alone


def test_logprobs_only_where_asked(driver: Driver) -> None:
    begins = [driver.begin(0, prompt(4), logprobs=None), driver.begin(1, prompt(5), logprobs=2)]
    begins += [driver.begin(2, prompt(6), logprobs=0), driver.begin(3, prompt(7), logprobs=None, prompt_logprobs=1)]
    result = driver.step([(3, 0, 7, True), (2, 0, 6, True), (0, 0, 4, True), (1, 0, 5, True)], begins)
    lengths = [entry and len(entry.token_ids) for entry in result.logprobs]
    assert lengths == [None, 1, None, 3]
    assert {row: (first, len(entries)) for row, (first, entries) in result.prompt_logprobs.items()} == {3: (1, 6)}
    assert all(len(entry.token_ids) == 2 for entry in result.prompt_logprobs[3][1])


def test_prompt_logprobs_in_tiles(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(20)
    whole = driver.run(ids, prompt_logprobs=3).prompt_logprobs[0]
    monkeypatch.setattr(step_module, "PROMPT_TILE_ELEMENTS", VOCAB * 6)
    tiled = driver.run(ids, prompt_logprobs=3).prompt_logprobs[0]
    assert tiled[0] == whole[0] == 1
    assert [entry.token_ids for entry in tiled[1]] == [entry.token_ids for entry in whole[1]]


def test_outputs_get_no_prompt_logprobs(driver: Driver) -> None:
    """A resumed sequence: tokens known beyond its prompt are outputs."""
    ids = prompt(12)
    begin = driver.begin(0, ids, num_prompt=8, prompt_logprobs=0)
    first = driver.step([(0, 0, 5, False)], [begin])
    second = driver.step([(0, 5, 7, True)])
    assert first.prompt_logprobs[0][0] == 1
    assert second.prompt_logprobs[0][0] == 6
    tokens = [e.token_ids[0] for result in (first, second) for e in result.prompt_logprobs[0][1]]
    assert tokens == ids[1:8]


def crowd(driver: Driver, bad: RowBegin, *, rows: tuple[int, ...] = (0, 4)) -> StepResult:
    """A step of `bad` between two good rows, whose tokens are checked."""
    good = {row: prompt(6 + row, row) for row in rows}
    begins = [driver.begin(rows[0], good[rows[0]]), bad, driver.begin(rows[1], good[rows[1]])]
    result = driver.step([(b.row, 0, max(len(b.token_ids), 1), True) for b in begins], begins)
    for index, row in ((0, rows[0]), (2, rows[1])):
        close(result.logprobs[index], forward(MODEL, WEIGHTS, good[row])[-1])
    assert len(result.tokens) == len(result.logprobs) == 3
    assert list(result.failed) == [bad.row]
    assert result.logprobs[1] is None
    return result


@pytest.mark.parametrize("asked", [0, None])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_numbers_fail_their_row_alone(value: float, asked: int | None) -> None:
    weights = {**WEIGHTS, "embed": WEIGHTS["embed"].copy()}
    clean = [token for token in range(VOCAB) if token != 7]
    weights["embed"][7, 3] = value
    driver = Driver(MODEL, weights)
    good = [clean[token % len(clean)] for token in prompt(9)]
    begins = [driver.begin(row, good) for row in (0, 2)] + [driver.begin(1, [3, 7, 9], prompt_logprobs=asked)]
    result = driver.step([(0, 0, 9, True), (1, 0, 3, True), (2, 0, 9, True)], begins)
    assert "finite" in result.failed[1]
    assert list(result.failed) == [1]
    assert result.prompt_logprobs == {}
    expected = forward(MODEL, WEIGHTS, good)[-1]
    close(result.logprobs[0], expected)
    close(result.logprobs[2], expected)
    later = driver.step([(0, 9, 1, True), (2, 9, 1, True)])
    assert not later.failed
    # a chunk that does not sample fails too
    assert list(driver.step([(1, 0, 3, False)], [driver.begin(1, [3, 7, 9, 4])]).failed) == [1]


@pytest.mark.parametrize("asked", [0, None])
@pytest.mark.parametrize("name", ["k", "v"])
def test_keys_and_values_that_overflow_fail_their_row_though_none_reads_them(name: str, asked: int | None) -> None:
    """The last layer's, of a token that nothing is asked of and none that something is asked of sees."""
    model = spec(layer({"window": 1}))
    weights = arrays(model)
    weights["embed"][:, 3] = 0
    weights["embed"][7, 3] = 2
    weights[f"layers.0.{name}"][:, 3] = 65000
    driver = Driver(model, weights, dtype="float16")
    begins = [driver.begin(row, ids, prompt_logprobs=asked) for row, ids in ((0, [4, 5, 9]), (1, [3, 7, 9, 4]))]
    assert list(driver.step([(0, 0, 3, True), (1, 0, 3, False)], begins).failed) == [1]


def test_poisoned_history_fails_its_row_alone(driver: Driver) -> None:
    driver.step([(row, 0, 9, True) for row in range(3)], [driver.begin(row, prompt(9, row)) for row in range(3)])
    slot = driver.blocks[1][0] * BLOCK
    poison(driver, slice(slot, slot + 1))
    result = driver.step([(row, 9, 1, True) for row in range(3)])
    assert list(result.failed) == [1]
    for row in (0, 2):
        ids = prompt(9, row)
        ids.append(int(forward(MODEL, WEIGHTS, ids)[-1].argmax()))
        close(result.logprobs[row], forward(MODEL, WEIGHTS, ids)[-1])


@pytest.mark.parametrize(
    ("tokens", "blocks", "sampling", "reason"),
    [
        ([1, VOCAB, 2], None, {}, f"token id {VOCAB} is outside the vocabulary"),
        ([1, -1], None, {}, "token id -1"),
        ([], None, {}, "0 tokens do not fit"),
        ([1] * (MAX_LEN + 1), None, {}, f"{MAX_LEN + 1} tokens do not fit"),
        ([1, 2], [10_000], {}, "not all among the cache's"),
        ([1] * (BLOCK + 1), [3], {}, "1 blocks do not hold"),
        ([1, 2], list(range(MAX_LEN // BLOCK + 1)), {}, "do not fit"),
        ([1, 2], None, {"allowed_token_ids": [VOCAB]}, "allowed_token_ids"),
        ([1, 2], None, {"allowed_token_ids": [4], "bad_words_ids": [[4]]}, "leave no token"),
        ([1, 2], None, {"logit_bias": {3: "x"}}, "could not begin"),
    ],
)
def test_what_is_wrong_with_a_row_fails_it_alone(
    driver: Driver, tokens: list[int], blocks: list[int] | None, sampling: dict[str, Any], reason: str
) -> None:
    begin = driver.begin(2, tokens, **sampling)
    bad = RowBegin(2, tokens, len(tokens), begin.blocks if blocks is None else blocks, begin.sampling)
    assert reason in crowd(driver, bad).failed[2]


def test_rows_that_were_never_begun(driver: Driver) -> None:
    result = driver.step(
        [(3, 0, 4, True), (0, 0, 5, True)], [driver.begin(0, prompt(5))], updates=[BlockUpdate(6, 0, [1])]
    )
    assert result.failed == {3: "the row was never begun"}
    close(result.logprobs[1], forward(MODEL, WEIGHTS, prompt(5))[-1])


def test_exception_in_one_rows_sampling(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    real = step_module.choose_tokens

    def choose(logits: torch.Tensor, group: Any) -> Any:
        if any(each.seed == 666 for each in group.sampling):
            logits.zero_()  # half-done work must not be seen by the others
            raise ZeroDivisionError("seed 666")
        return real(logits, group)

    monkeypatch.setattr(step_module, "choose_tokens", choose)
    result = crowd(driver, driver.begin(2, prompt(7), seed=666))
    assert "ZeroDivisionError" in result.failed[2]


def test_exception_of_the_whole_step(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.launch([(0, 0, 5, True)], [driver.begin(0, prompt(5))])
    driver.backend.finish()
    with monkeypatch.context() as patch:
        runner = driver.backend._runner
        assert runner is not None
        patch.setattr(runner._decoder, "forward", lambda *_: 1 / 0)
        driver.launch([(0, 5, 1, True)])  # begin itself does not raise
        with pytest.raises(ZeroDivisionError):
            driver.backend.finish()
    assert not driver.run(prompt(5), row=1).failed


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.25), ("float16", 0.03)])
def test_half_precision(dtype: str, tolerance: float) -> None:
    driver = Driver(MODEL, WEIGHTS, dtype=dtype)
    ids = prompt(25)
    first = driver.step([(0, 0, 14, False)], [driver.begin(0, ids, prompt_logprobs=-1)])
    second = driver.step([(0, 14, 11, True)])
    expected = forward(MODEL, WEIGHTS, ids)
    entries = [*first.prompt_logprobs[0][1], *second.prompt_logprobs[0][1], second.logprobs[0]]
    for entry, logits in zip(entries, expected, strict=True):
        close(entry, logits, tolerance)
    assert driver.backend.call("describe")["dtype"] == dtype
    runner = driver.backend._runner
    assert runner is not None
    assert runner._cache.slots(0).dtype == getattr(torch, dtype)
    assert abs(vector(entries[0])).max() > 1


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3"])
def test_float8_cache_is_near_and_shows_a_poisoned_row(name: str) -> None:
    """E4M3 is 16 times as coarse as bfloat16, and divergence grows with the square."""
    found = {}
    ids = prompt(60)
    expected = log_softmax(forward(MODEL, WEIGHTS, ids))
    for kept in ("bfloat16", name):
        driver = Driver(MODEL, WEIGHTS, kv_cache_dtype=kept)
        first = driver.step([(0, 0, 14, False)], [driver.begin(0, ids, prompt_logprobs=-1)])
        second = driver.step([(0, 14, 46, True)])
        entries = [*first.prompt_logprobs[0][1], *second.prompt_logprobs[0][1], second.logprobs[0]]
        rounded = np.stack([vector(entry) for entry in entries])
        found[kept] = (np.exp(expected) * (expected - rounded)).sum(axis=1)
        if kept == name:
            assert (rounded.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
            driver.step([(1, 0, 9, True)], [driver.begin(1, prompt(9, 1))])
            poison(driver, slice(driver.blocks[1][0] * BLOCK, driver.blocks[1][0] * BLOCK + 1))
            assert list(driver.step([(0, 60, 1, True), (1, 9, 1, True)]).failed) == [1]
    assert found["bfloat16"].mean() < 1e-4
    assert found["bfloat16"].mean() < found[name].mean() < 2e-2


@pytest.mark.parametrize(
    ("hip", "capability", "reason"),
    [(None, (8, 0), "needs compute capability 8.9, and it has 8.0"), ("6", (9, 4), "ROCm")],
)
def test_gpus_without_float8(
    hip: str | None, capability: tuple[int, int], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = {"arithmetic": torch.bfloat16, "device": torch.device("cuda", 0)}
    with pytest.raises(UnsupportedError, match=f"kv_cache_dtype=fp8 is not supported on this GPU: .*{reason}.* auto"):
        resolve_cache_dtype("fp8", **gpu)
    assert resolve_cache_dtype("bfloat16", **gpu) == torch.bfloat16
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert resolve_cache_dtype("fp8", **gpu) == torch.float8_e4m3fn


def test_memory_describe_and_unknown_calls(driver: Driver) -> None:
    memory = driver.backend.memory()
    assert memory.weights == sum(array.nbytes for array in WEIGHTS.values())
    assert 0 < memory.free < memory.total
    described = driver.backend.call("describe")
    sdpa = ["sdpa", "sdpa"]
    assert described == {"device": "cpu", "dtype": "float32", "attention": sdpa, "attention_of_spans": sdpa}
    with pytest.raises(UnsupportedError, match="no call sleep"):
        driver.backend.call("sleep", level=1)
    with pytest.raises(UnsupportedError, match="describe"):
        driver.backend.call("describe", deep=True)


@pytest.mark.parametrize("rows", [1, 300])
def test_kernels_are_planned_less_memory(rows: int) -> None:
    sizes = {"tokens": 64, "rows": rows, "element": 2}
    assert 0 < activation_bytes(MODEL, kernels=True, **sizes) <= activation_bytes(MODEL, kernels=False, **sizes)
    grown = activation_bytes(MODEL, kernels=True, **{**sizes, "tokens": 128})
    assert grown > activation_bytes(MODEL, kernels=True, **sizes)


@pytest.mark.parametrize(("name", "told"), [("load_weights", "the weights found"), ("KVCache", "the KV cache of")])
def test_memory_that_runs_out_is_explained(monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner_module, name, refuse)
    with pytest.raises(ConfigError, match=rf"{told}.* GiB on cpu .* are free"):
        Driver(MODEL, WEIGHTS)


def test_close_is_idempotent_and_final(driver: Driver) -> None:
    driver.launch([(0, 0, 5, True)], [driver.begin(0, prompt(5))])
    driver.backend.close()
    driver.backend.close()
    with pytest.raises(RuntimeError, match="close"):
        driver.launch([(0, 5, 1, True)])
    with pytest.raises(RuntimeError, match="closed"):
        driver.backend.memory()


@pytest.mark.parametrize("fault", ["", "an illegal memory access"])
def test_closing_gives_a_gpus_memory_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Once nothing holds weights and cache any more, though the collector has not run."""
    driver = Driver(MODEL, WEIGHTS)
    driver.run(prompt(5))
    driver.step([(0, 5, 1, True)])
    driver.launch([(0, 6, 1, True)])
    runner, calls = driver.backend._runner, []
    assert runner is not None
    held = [weakref.ref(each) for each in (runner, runner._decoder.weights.embed, runner._cache.layer(0))]
    del runner

    def synchronize(device: torch.device) -> None:
        calls.append("synchronize")
        if fault:
            raise RuntimeError(fault)

    def empty_cache() -> None:
        calls.append("empty_cache")
        assert [each() for each in held] == [None] * 3

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    driver.backend._device = torch.device("cuda", 0)
    gc.disable()
    try:
        with caplog.at_level(logging.WARNING):
            driver.backend.close()
    finally:
        gc.enable()
    assert calls == (["synchronize"] if fault else ["synchronize", "empty_cache"])
    assert [fault in record.message for record in caplog.records] == ([True] if fault else [])


SIZES: dict[str, int] = {"max_num_seqs": 2, "max_model_len": 16, "max_num_batched_tokens": 16, "block_size": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is not one of cpu, cuda"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of auto, float32"),
        pytest.param(
            {"device": "cuda"},
            "finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchBackend(**SIZES, **options)


def test_cache_without_blocks_and_steps_over_the_limit() -> None:
    backend = TorchBackend(**SIZES, dtype="auto")
    with pytest.raises(RuntimeError, match="not loaded"):
        backend.allocate(3)
    driver = Driver(MODEL, WEIGHTS, max_num_batched_tokens=8)
    with pytest.raises(ConfigError, match="0 blocks"):
        driver.backend.allocate(0)
    with pytest.raises(RuntimeError, match="9 tokens, the limit is 8"):
        driver.run(prompt(9))


class Transfers:
    """In place of a StepRunner: a step's result is in memory that it took, as a GPU's is."""

    def launch(self, plan: StepPlan) -> Launched:
        take((64,), torch.int64).fill_(-7)
        host = take((4,), torch.int32).fill_(plan.step)
        return Launched(
            plan, Download(torch.device("cpu")), decoded=lambda: StepResult(step=plan.step, tokens=host.tolist())
        )


@pytest.mark.parametrize("in_place", [False, True])
def test_backends_of_one_process_do_not_share_what_they_transfer_through(in_place: bool) -> None:
    """Two that are stepped in turns, each a step ahead of what it reads."""
    backends = [TorchBackend(**SIZES) for _ in range(2)]
    for backend in backends:
        backend._runner, backend._staging = Transfers(), Staging(pinned=False)  # type: ignore[assignment]
        if in_place:
            backend._worker = InPlace()
    for step in range(1, 9):
        for of, backend in enumerate(backends):
            backend.begin(StepPlan(step=100 * of + step, rows=[]))
        for of, backend in enumerate(backends):
            if step > 1:
                assert backend.finish().tokens == [100 * of + step - 1] * 4
    for backend in backends:
        backend.close()


@pytest.mark.parametrize("part", ["mixer", "ffn", "pre_ffn", "act"])
def test_unknown_words_are_refused(part: str) -> None:
    each = layer(ffn={"act": "relu"}) if part == "act" else layer()
    if part != "act":
        object.__setattr__(each, part, type("StateSpace", (), {})())
    model: ModelSpec = spec(layer(), each)
    with pytest.raises(UnsupportedError, match=r"layers\.1: .*(StateSpace|relu)"):
        TorchBackend(**SIZES).load(model, {})

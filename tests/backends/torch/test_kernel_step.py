"""Whole steps on the kernels (in the interpreter where there is no GPU), against the float64 forward pass."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch_driver import BLOCK, MAX_LEN, VOCAB, Driver, arrays, layer, rope, spec, vector
from torch_forward import forward, log_softmax

from octavo.backends.torch import forward_graphs
from octavo.backends.torch import runner as runner_module
from octavo.backends.torch import step as step_module
from octavo.backends.torch.attention import paged, select
from octavo.backends.torch.batch import make_batch, padded_sizes, padded_tokens, with_ends
from octavo.backends.torch.kernels import int4_matmul, skinny_choice
from octavo.backends.torch.kernels.byte_matmul import choose_bytes, many_bytes
from octavo.backends.torch.kernels.fp8_matmul import choose_fp8
from octavo.backends.torch.ops.fused import FusedOps
from octavo.backends.torch.quant import ONLINE
from octavo.backends.torch.quant.int4 import quantize_int4
from octavo.backends.torch.sampling.logprobs import MOST
from octavo.base.types.plan import RowStep, StepPlan
from octavo.base.types.tensor import MatrixScheme
from octavo.models.spec import Head, ModelSpec, RMSNorm

NORM = RMSNorm(1e-6, offset=1.0)
MODELS: dict[str, Any] = {
    "plain": lambda: spec(),
    "qk_norm_tied": lambda: spec(layer({"qk_norm": RMSNorm(1e-6)}), head=Head(tied=True)),
    "gemma": lambda: spec(
        layer({"window": 9, "qk_norm": NORM}, {"act": "gelu_tanh"}, pre_mixer=NORM, post_mixer=NORM, post_ffn=NORM),
        layer({"rope": rope(8, interleaved=True)}, pre_mixer=NORM, post_mixer=NORM, post_ffn=NORM),
        embedding_scale=5.5,
        head=Head(tied=True, softcap=3.0),
    ),
    "biases": lambda: spec(layer({"qkv_bias": True, "output_bias": True}, {"bias": True}), layer({"softcap": 0.8})),
    "experts": lambda: spec(layer(ffn={"experts": 6, "top_k": 2, "renormalize": True, "shared_width": 24})),
}
# masked keys are read from memory that holds anything
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run on whatever device there is."""
    everywhere = replace(paged.KERNELS, supports=lambda case: [])
    monkeypatch.setattr(select, "choose", lambda case: (everywhere, []))
    monkeypatch.setattr(runner_module, "choose_ops", FusedOps)


def make_driver(name: str, **options: Any) -> tuple[Driver, ModelSpec, dict[str, np.ndarray]]:
    model: ModelSpec = MODELS[name]()
    weights = arrays(model)
    driver = Driver(model, weights, device=DEVICE, **options)
    assert driver.backend.call("describe")["attention"] == ["kernels"] * len(model.layers)
    return driver, model, weights


@pytest.mark.parametrize("name", MODELS)
def test_chunks_beside_decodes_then_decodes_ahead(name: str) -> None:
    """Greedy tokens of three rows through mixed steps and through decode steps launched before the last was read."""
    driver, model, weights = make_driver(name)
    rng = np.random.default_rng(1)
    prompts = {row: rng.integers(0, VOCAB, n).tolist() for row, n in ((3, 21), (0, 13), (5, 1))}
    known = {row: list(ids) for row, ids in prompts.items()}

    def read(*rows: int) -> None:
        result = driver.backend.finish()
        assert not result.failed
        for row, token in zip(rows, result.tokens, strict=True):
            known[row].append(token)

    begins = [driver.begin(row, ids, logprobs=None) for row, ids in prompts.items()]
    driver.launch([(3, 0, 13, False), (0, 0, 13, True), (5, 0, 1, True)], begins)
    read(0, 5)
    driver.launch([(5, 1, 1, True), (3, 13, 8, True), (0, 13, 1, True)])
    read(5, 3, 0)
    lengths = {row: len(ids) - 1 for row, ids in known.items()}
    for ahead in range(4):
        driver.launch([(row, length + ahead, 1, True) for row, length in lengths.items()])
        if ahead:
            read(*lengths)
    read(*lengths)
    for row, ids in known.items():
        expected = forward(model, weights, ids[:-1]).argmax(-1)[len(prompts[row]) - 1 :]
        assert ids[len(prompts[row]) :] == expected.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("method", ["fp8", "int4"])
def test_steps_with_quantized_weights(dtype: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt, then decode steps of one row and of three (16 bits: the kernel for few tokens), on rounded weights."""
    monkeypatch.setitem(ONLINE, "int4", partial(quantize_int4, scheme=MatrixScheme("gptq", 4, (1, 32))))
    model = spec(layer(ffn={"width": 64}))
    weights = arrays(model)
    driver = Driver(model, weights, device=DEVICE, dtype=dtype, quantization=method)
    rounded = {
        name: ONLINE[method](torch.from_numpy(array)).dequantize(torch.float32).numpy()
        if array.ndim > 1 and name not in ("embed", "head")
        else array
        for name, array in weights.items()
    }
    known = {row: list(range(2 + row, 13 + row)) for row in (0, 1, 2)}
    begins = [driver.begin(row, ids, logprobs=None) for row, ids in known.items()]
    made = driver.step([(row, 0, 11, True) for row in known], begins).tokens
    for count in (1, 3, 3):
        for row, token in zip(list(known)[: len(made)], made, strict=True):
            known[row].append(token)
        made = driver.step([(row, len(known[row]) - 1, 1, True) for row in list(known)[:count]]).tokens
        assert len(made) == count
    driver.backend.close()
    for ids in known.values():
        for logits, token in zip(forward(model, rounded, ids[:-1])[10:], ids[11:], strict=True):
            assert logits.max() - logits[token] < (1e-3 if dtype == "float32" else 0.05)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_k": {"top_k": 7},
    "top_p, min_p": {"top_p": 0.8, "min_p": 0.01},
    "presence": {"presence_penalty": 1.5},
    "frequency, greedy": {"frequency_penalty": 0.7, "temperature": 0.0},
    "repetition": {"repetition_penalty": 1.4, "top_p": 0.9},
    "bias": {"logit_bias": {4: 3.0, 60: 2.5, 0: -100.0}},
    "allowed, greedy": {"allowed_token_ids": [1, 5, 32, 33, 60], "temperature": 0.0},
    "bad words": {"bad_words_ids": [[7], *([a, b] for a in range(0, VOCAB, 2) for b in range(0, VOCAB, 7))]},
    "min_tokens": {"min_tokens": 3, "stop_token_ids": list(range(0, VOCAB, 2))},
    "own logprob": {"logprobs": 0},
    "logprobs, greedy": {"logprobs": 20, "temperature": 0.0},
    "everything": {
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.2,
        "logit_bias": {4: 3.0},
        "allowed_token_ids": list(range(3, VOCAB)),
        "min_tokens": 4,
        "stop_token_ids": [5, 6],
        "bad_words_ids": [[9], [4, 4]],
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.001,
        "logprobs": 5,
    },
    "mask, greedy": {"masked": True, "temperature": 0.0, "logprobs": 2},
    "mask and all": {"masked": True, "logit_bias": {7: 2.0}, "repetition_penalty": 1.3, "top_p": 0.9, "logprobs": 3},
}
BEYOND: dict[str, dict[str, Any]] = {
    "all logprobs": {"logprobs": -1},
    "more logprobs": {"logprobs": MOST + 1},
    "mask and all logprobs": {"masked": True, "logprobs": -1},
    "many bad words": {"bad_words_ids": [[a, a, b] for a in range(VOCAB) for b in range(20)]},
}


class Crowd:
    """A row of each of the kinds, with the prompt that all share and a seed of its own."""

    def __init__(self, driver: Driver, kinds: dict[str, dict[str, Any]]) -> None:
        self.driver, self.prompt = driver, [1, 4, 4, 7]
        defaults = {"temperature": 0.9, "logprobs": None}
        self.options = [{**defaults, "seed": 40 + i, **more} for i, more in enumerate(kinds.values())]
        self.known = [list(self.prompt) for _ in kinds]
        self.logprobs: list[list[Any]] = [[] for _ in kinds]

    def step(self, *, begin: bool = False, shift: int = 0) -> None:
        """One token more for each. begin: they take rows, `shift` further on, for what is known of them."""
        count = len(self.known)
        rows = [(i + shift) % count for i in range(count)]
        sizes = [len(ids) if begin else 1 for ids in self.known]
        begins = [
            self.driver.begin(row, ids, len(self.prompt), **options)
            for row, ids, options in zip(rows, self.known, self.options, strict=True)
        ]
        steps = [(row, len(ids) - size, size, True) for row, ids, size in zip(rows, self.known, sizes, strict=True)]
        result = self.driver.step(steps, begins if begin else [], ended=rows if begin else [])
        assert not result.failed
        for i, token in enumerate(result.tokens):
            self.known[i].append(token)
            self.logprobs[i].append(result.logprobs[i] if result.logprobs else None)

    def run(self) -> None:
        """To begin, three steps; then all are preempted and resume elsewhere, and three more."""
        self.step(begin=True)
        for _ in range(3):
            self.step()
        self.step(begin=True, shift=1)
        for _ in range(3):
            self.step(shift=1)


def same(mine: Crowd, plain: Crowd) -> None:
    assert mine.known == plain.known
    for ours, theirs in zip(mine.logprobs, plain.logprobs, strict=True):
        for entry, other in zip(ours, theirs, strict=True):
            assert (entry is None) == (other is None)
            if entry is not None:
                assert (entry.token_ids, entry.rank) == (other.token_ids, other.rank)
                np.testing.assert_allclose(entry.logprobs, other.logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [*KINDS, "all"])
def test_rows_of_each_kind_equal_plain_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and log probabilities, alone and beside all others, across preemption; no decode step is an eager one."""
    kinds = KINDS if name == "all" else {name: KINDS[name]}
    driver, model, weights = make_driver("plain", rows=len(kinds))
    mine = Crowd(driver, kinds)
    runner = driver.backend._runner
    assert runner is not None
    eager = runner._start_eager

    def prompts_only(plan: StepPlan, launched: Any) -> Any:
        assert plan.begins
        return eager(plan, launched)

    monkeypatch.setattr(runner, "_start_eager", prompts_only)
    mine.run()
    monkeypatch.undo()
    plain = Crowd(Driver(model, weights, rows=len(kinds)), kinds)
    plain.run()
    same(mine, plain)
    assert [entry is not None for entry in (each[-1] for each in mine.logprobs)] == [
        "logprobs" in kind for kind in kinds.values()
    ]


def test_rows_beyond_the_kernels_are_sampled_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one eager step with rows that the kernels take; one at a time here."""
    monkeypatch.setattr(step_module, "MOST_APART", 1)
    kinds = {**{name: KINDS[name] for name in ("plain", "bad words", "everything")}, **BEYOND}
    driver, model, weights = make_driver("plain", rows=len(kinds))
    mine = Crowd(driver, kinds)
    mine.run()
    monkeypatch.undo()
    plain = Crowd(Driver(model, weights, rows=len(kinds)), kinds)
    plain.run()
    same(mine, plain)


def test_nothing_left_to_sample_fails_its_row_alone() -> None:
    driver, _, _ = make_driver("plain")
    impossible = {"allowed_token_ids": [4, 5], "min_tokens": 5, "stop_token_ids": [4, 5], "logprobs": 2}
    begins = [driver.begin(0, [1, 2, 3], 2, **impossible), driver.begin(1, [1, 2, 3], logprobs=2)]
    for result in (
        driver.step([(0, 0, 3, True), (1, 0, 3, True)], begins),
        driver.step([(0, 3, 1, True), (1, 3, 1, True)]),
    ):
        assert list(result.failed) == [0]
        assert "no token to sample" in result.failed[0]
        assert [entry is None for entry in result.logprobs] == [True, False]


def test_float8_cache_equals_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log probabilities of a prompt in chunks and of tokens after it: the same is kept, and read as the same."""
    driver, model, weights = make_driver("gemma", kv_cache_dtype="fp8")
    monkeypatch.undo()
    plain = Driver(model, weights, kv_cache_dtype="fp8")
    prompt, found = list(range(1, 22)), []
    for of in (driver, plain):
        of.step([(0, 0, 13, False)], [of.begin(0, prompt), of.begin(2, prompt[5:])])
        entries = of.step([(0, 13, 8, True), (2, 0, 16, True)]).logprobs
        tokens = [int(entry.token_ids[0]) for entry in entries if entry]
        entries += of.step([(0, 21, 1, True), (2, 16, 1, True)]).logprobs
        found.append((tokens, np.stack([vector(entry) for entry in entries])))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=2e-2)  # a key between two may fall to either side


@pytest.mark.parametrize("kept", ["auto", "fp8"])
def test_failures_stay_with_their_row(kept: str) -> None:
    driver, _, _ = make_driver("plain", kv_cache_dtype=kept)
    driver.step(
        [(row, 0, 9, True) for row in range(3)], [driver.begin(r, [r + 1] * 9, logprobs=None) for r in range(3)]
    )
    runner = driver.backend._runner
    assert runner is not None
    slot = driver.blocks[1][0] * BLOCK
    with torch.inference_mode():
        runner._cache.slots(0)[:, slot] = float("nan")
    result = driver.step([(row, 9, 1, True) for row in range(3)])
    assert list(result.failed) == [1]
    assert "finite" in result.failed[1]
    beyond = driver.step([(0, 10, 1, True), (2, MAX_LEN, 1, True)])  # not a decode step for a graph: one row cannot run
    assert list(beyond.failed) == [2]


@pytest.mark.parametrize("asked", [2, None])
def test_log_probabilities_of_a_prompt_beside_one_that_fails_early(asked: int | None) -> None:
    """With all tokens' states and with those alone that are sampled from."""
    model: ModelSpec = MODELS["plain"]()
    weights = arrays(model)
    weights["embed"][7, 3] = np.nan
    driver = Driver(model, weights, device=DEVICE)
    prompts = [[4, 9, 2, 5], [3, 7, 9, 4], [6] * 5]
    begins = [driver.begin(row, ids, logprobs=None, prompt_logprobs=asked) for row, ids in enumerate(prompts)]
    result = driver.step([(row, 0, len(ids), True) for row, ids in enumerate(prompts)], begins)
    assert list(result.failed) == [1]
    for row in (0, 2):
        expected = forward(model, weights, prompts[row])
        assert result.tokens[row] == expected[-1].argmax()
        if asked is not None:
            _, entries = result.prompt_logprobs[row]
            found = [entry.logprobs[0] for entry in entries]
            wanted = log_softmax(expected)[range(len(entries)), prompts[row][1:]]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("counts", "few"), [((2, 1, 7), 8), ((1, 40), 8), ((33, 1, 1), 1), ((3, 1, 2, 9), 2)])
def test_padded_batches_equal_those_as_they_are(
    counts: tuple[int, ...], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Singles first, then spans; what is behind them is neither read nor kept, whatever the cache held before. So are
    ends of all rows, of one, of none, with what the whole batch has in their places."""
    monkeypatch.setattr(forward_graphs, "FEW_SPANS", few)
    driver, _, _ = make_driver("gemma")
    begins = [driver.begin(row, list(range(1, n + 9)), logprobs=None) for row, n in enumerate(counts)]
    driver.step([(row, 0, 8, False) for row in range(len(counts))], begins)
    runner = driver.backend._runner
    assert runner is not None
    assert runner._forwards is not None
    with torch.inference_mode():
        batch = make_batch([RowStep(row, 8, n, True) for row, n in enumerate(counts)], runner._rows)
        padded = runner._forwards.run(batch)
        assert padded is not None
        kept = [runner._cache.layer(i).clone() for i in range(2)]
        plain, finite = runner._decoder.forward(batch, runner._cache, runner._attention)
        assert finite is padded.finite is None
        torch.testing.assert_close(padded.stream.total(), plain.total(), rtol=1e-5, atol=1e-5)
        last = {
            step.row: sum(before.count for before in batch.steps[: i + 1]) - 1 for i, step in enumerate(batch.steps)
        }
        for rows in (range(len(counts)), [1], []):
            steps = [RowStep(row, 8, n, row in rows) for row, n in enumerate(counts)]
            ended = with_ends(make_batch(steps, runner._rows), partial(runner._room, sum(counts)))
            assert ended.ends is not None
            for i in range(2):
                runner._cache.slots(i)[:, batch.slots] = float("nan")
            passed = runner._forwards.run(ended)
            assert passed is not None
            assert passed.finite is not None
            assert passed.finite.tolist() == [True] * sum(counts)
            assert len(passed.stream.x) == (8 if rows else 0)
            places = [last[step.row] for step in ended.ends.steps]
            found = passed.stream.total()[: len(places)]
            torch.testing.assert_close(found, plain.total()[places], rtol=1e-5, atol=1e-5)
            for i, cache in enumerate(kept):
                torch.testing.assert_close(cache, runner._cache.layer(i), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_steps_above_the_most_are_not_padded() -> None:
    driver, _, _ = make_driver("plain")
    driver.step([(0, 0, 9, True)], [driver.begin(0, [1] * 9, logprobs=None)])
    runner = driver.backend._runner
    assert runner is not None
    assert runner._forwards is not None
    runner._forwards._most = 8
    with torch.inference_mode():
        assert runner._forwards.run(make_batch([RowStep(0, 0, 9, True)], runner._rows)) is None
    assert [runner._room(9, ends) for ends in (0, 1, 3, 5)] == [0, 1, 4, 8]


@pytest.mark.parametrize("most", [3, 12, 64, 100, 500])
def test_ends_of_padded_steps_have_few_sizes_that_decode_steps_have(most: int) -> None:
    driver, _, _ = make_driver("plain", rows=most)
    runner = driver.backend._runner
    assert runner is not None
    assert runner._forwards is not None
    for held in ("_row_ids", "_seq_lens", "_end_rows", "_end_lens"):  # else kernels would be compiled anew
        assert getattr(runner._forwards, held).data_ptr() % 16 == 0
    sizes = padded_sizes(most)
    for tokens in (2, 30, 100, 256, 511):
        rooms = {ends: runner._room(tokens, ends) for ends in range(min(tokens, most) + 1)}
        assert all(room >= ends for ends, room in rooms.items())
        assert rooms.pop(0) == 0
        assert len(set(rooms.values())) <= 2
        assert set(rooms.values()) <= set(sizes)
        assert rooms[1] == min(forward_graphs.FEW_ENDS, most)


def test_graphs_are_given_the_memory_that_is_set_aside_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pool, and beside it what their results are left in."""
    driver, _, _ = make_driver("plain")
    backend, pools = driver.backend, []
    monkeypatch.setattr(runner_module, "device_bytes", lambda device: (1 << 40, 1 << 40))
    monkeypatch.setattr(runner_module, "Pool", pools.append)
    free = []
    for backend.graphs in (False, True):
        free.append(backend.memory().free)
    backend.allocate(4)
    runner = backend._runner
    assert runner is not None
    assert runner._forwards is not None
    assert pools == [free[0] - free[1] - runner._forwards._streams.nbytes]


def test_closing_leaves_nothing_to_the_collector() -> None:
    """After steps of each kind: what it would come to later is a GPU's memory."""
    driver, _, _ = make_driver("plain")
    driver.step([(0, 0, 9, True)], [driver.begin(0, [1] * 9, logprobs=None)])
    driver.step([(0, 9, 1, True)])
    driver.step([(1, 0, 3, True)], [driver.begin(1, [1] * 3, masked=True, logprobs=None)])
    driver.step([(1, 3, 1, True), (0, 10, 1, True)])
    runner = driver.backend._runner
    assert runner is not None
    parts = (runner._decoder.weights, runner._rows, runner._cache, runner._attention, runner._decodes, runner._forwards)
    held = [weakref.ref(each) for each in parts]
    del runner, parts
    gc.disable()
    try:
        driver.backend.close()
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()


def test_one_of_each_kind_of_layer_is_gone_through_to_compile() -> None:
    a, b = layer(), layer({"window": 9})
    driver = Driver(spec(a, b, a, a, b), arrays(spec(a, b, a, a, b)), device=DEVICE)
    runner = driver.backend._runner
    assert runner is not None
    with runner._decoder.kinds_only():
        assert list(runner._decoder._walk) == [0, 1, 2, 4]
    assert list(runner._decoder._walk) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("most", [1, 3, 12, 60, 100, 200, 256, 500])
def test_what_is_compiled_ahead_is_all_that_steps_take(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fullest step, and of matrices of 4 and 8 bits every variant and block of rows."""
    driver, _, _ = make_driver("plain")
    runner = driver.backend._runner
    assert runner is not None
    decodes = runner._decodes
    assert decodes is not None
    warmed: list[int] = []
    monkeypatch.setattr(decodes, "_sizes", padded_sizes(most))
    monkeypatch.setattr(decodes._step, "run", lambda size, kind, *, blank: warmed.append(size))
    decodes.warm()
    assert most in warmed
    for shape in ((1024, 2048), (4096, 1024), (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336)):
        for gated in (False, True):
            chooses = [partial(skinny_choice.choose, gated=gated)]
            chooses += [partial(int4_matmul.choose, group=group, gated=gated) for group in (64, 128)]
            chooses += [partial(choose_fp8, columns=columns, gated=gated) for columns in (0, 128)]
            chooses += [partial(choose_bytes, columns=columns, library=gated) for columns in (0, 128)]
            for choose in chooses:
                met, taken = (
                    {(choose(m, *shape), m <= 8, skinny_choice.row_blocks(m)[0]) for m in sizes}
                    for sizes in (warmed, padded_sizes(most))
                )
                assert {each for each in taken if each[0] is not None} <= met


@pytest.mark.parametrize("most", [48, 500, 8192])
def test_prompts_gone_through_meet_all_products_in_bytes(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _, _ = make_driver("plain", quantization="fp8")
    runner = driver.backend._runner
    assert runner is not None
    monkeypatch.setattr(driver.backend, "_max_num_tokens", most)
    monkeypatch.setattr(driver.backend, "_max_model_len", 8192)
    walked = driver.backend._walked_tokens(runner._decoder)
    for k, columns in ((4096, 0), (4096, 128), (576, 0)):
        met, taken = (
            {(many_bytes(m, k, columns=columns), skinny_choice.row_blocks(m)[0]) for m in sizes}
            for sizes in (walked, {padded_tokens(n, most) for n in range(2, most + 1)})
        )
        assert taken <= met


def test_padded_sizes_of_prompts() -> None:
    assert [padded_tokens(n, 8192) for n in (2, 33, 256, 257, 512, 513, 8191)] == [32, 64, 256, 288, 512, 576, 8192]
    assert [padded_tokens(n, 100) for n in (2, 99, 100)] == [32, 100, 100]
    for n in range(2, 5000):
        assert n <= padded_tokens(n, 5000) <= max(32, n + n // 8 + 32)

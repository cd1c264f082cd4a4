"""The native machine: equal bits whatever the batch, the chunks and the threads; stored formats; falling back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpu_tiny
import native_tiny
import numpy as np
import pytest

from octavo.backends.cpu import lower, native
from octavo.backends.cpu.rows import Batch, Span
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec, MoE, RMSNorm
from octavo.quant.scheme import dequantize

SIZE = 16
NORM = RMSNorm(1e-5)


def spec() -> ModelSpec:
    """Two layers, one with a window and with experts; grouped heads of 64; widths that every format divides."""
    rope = cpu_tiny.rope(64)
    layers = tuple(
        Layer(
            Attention(heads=4, kv_heads=2, head_dim=64, scale=0.125, rope=rope, window=window),
            MoE(experts=6, top_k=2, width=128, act="silu", renormalize=True) if window else GatedMLP(256, act="silu"),
            pre_mixer=NORM,
            pre_ffn=NORM,
        )
        for window in (None, 70)
    )
    return ModelSpec("made_by_hand", 211, 256, layers, NORM, Head(tied=True), 1024)


SPEC = spec()
WEIGHTS = cpu_tiny.arrays(SPEC)


def q4_1(array: np.ndarray) -> bytes:
    """Blocks of 32: the scale and the minimum as float16, then nibbles."""
    blocks = array.reshape(-1, 32)
    low = blocks.min(axis=1, keepdims=True)
    step = np.maximum((blocks.max(axis=1, keepdims=True) - low) / 15, 1e-8)
    codes = np.clip(np.rint((blocks - low) / step), 0, 15).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate(
        (step.astype("<f2").view(np.uint8), low.astype("<f2").view(np.uint8), packed), axis=1
    ).tobytes()


def q8_0(array: np.ndarray) -> bytes:
    """Blocks of 32: the scale as float16, then int8."""
    blocks = array.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    codes = np.rint(blocks / step).astype(np.int8)
    return np.concatenate((step.astype("<f2").view(np.uint8), codes.view(np.uint8)), axis=1).tobytes()


def stored(form: str) -> dict[str, StoredTensor]:
    """All matrices in one format; mixed: q and k as Q4_1, v as Q8_0, in one fused step, and the rest float32."""
    made = {}
    for name, array in WEIGHTS.items():
        kind = form if array.ndim > 1 else "F32"
        if kind == "mixed":
            kind = {"q": "Q4_1", "k": "Q4_1", "v": "Q8_0"}.get(name.rsplit(".", 1)[-1], "F32")
        if kind == "F32":
            made[name] = cpu_tiny.stored(name, array)
            continue
        data = q4_1(array) if kind == "Q4_1" else q8_0(array)
        made[name] = StoredTensor(name, SCHEMES[kind], array.shape, memoryview(data))
    return made


def backend(form: str = "F32", **sizes: Any) -> Any:
    given = {
        "max_num_seqs": 64,
        "max_model_len": 1024,
        "max_num_batched_tokens": 1024,
        "block_size": SIZE,
        "threads": 1,
        "activation_dtype": "int8" if sizes.get("native", True) else "float32",
    }
    made = cpu_tiny.CpuBackend(**{**given, **sizes})
    made.load(SPEC, stored(form))
    made.allocate(400)
    for cache in made._machine._caches.values():
        cpu_tiny.poison(cache)
    return made


@pytest.fixture(params=native_tiny.VARIANTS, autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[None]:
    with native_tiny.variant(request.param):
        yield


TOKENS = np.random.default_rng(3).integers(0, SPEC.vocab_size, (64, 700))
TABLES = np.random.default_rng(4).permutation(400)


def tables(rows: int, length: int) -> np.ndarray:
    each = -(-length // SIZE)
    return TABLES[: rows * each].reshape(rows, each)


def batch_of(shares: list[tuple[int, int, int]], blocks: np.ndarray, tails: list[int] | None = None) -> Batch:
    """(sequence, start, count) each; tails: all tokens where None."""
    spans, first = [], 0
    for sequence, start, count in shares:
        table = blocks[sequence][: -(-(start + count) // SIZE)]
        spans.append(Span(sequence, first, start, count, True, table))
        first += count
    return Batch(spans, list(range(first)) if tails is None else tails, TOKENS, blocks, SIZE)


def step(machine: Any, shares: list[tuple[int, int, int]], blocks: np.ndarray) -> list[np.ndarray]:
    """As batch_of: logits [count, vocab] each."""
    finite, heads = machine.forward(batch_of(shares, blocks))
    assert finite is None
    logits = heads.logits.copy()
    return np.split(logits, np.cumsum([count for _, _, count in shares])[:-1])


def whole(machine: Any, sequence: int, length: int, blocks: np.ndarray) -> np.ndarray:
    return step(machine, [(sequence, 0, length)], blocks)[0]


KV_DTYPES = pytest.mark.parametrize("kv_cache_dtype", cpu_tiny.KV_DTYPES)


@pytest.mark.parametrize("native", [True, False])
def test_tails_alone_are_what_they_are_among_all(native: bool) -> None:
    """The last layer runs for them alone, over the keys of all; some of a batch's tails come after others."""
    made = backend("mixed" if native else "F32", native=native, kv_cache_dtype="float32")
    shares, blocks, random = (
        [(0, 0, 90), (1, 0, 1), (2, 0, 1), (3, 0, 200), (4, 0, 7)],
        tables(5, 200),
        np.random.default_rng(5),
    )
    expected = np.concatenate(step(made._machine, shares, blocks))
    for tails in ([], [89], [90], [89, 90, 91], [0, 88, 91, 92, 93, 291], [*range(40, 140)], [298]):
        random.shuffle(blocks)
        heads = made._machine.forward(batch_of(shares, blocks, tails))[1]
        found = [heads.logits.copy()] if tails else []
        more = sorted(random.choice(len(expected), 20, replace=False).tolist())
        found.append(made._machine.heads(more).logits.copy())
        kept = expected[tails + more]
        if native:
            np.testing.assert_array_equal(np.concatenate(found), kept)
        else:
            np.testing.assert_allclose(np.concatenate(found), kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "kv_cache_dtype"), [("mixed", "float32"), *(("F32", d) for d in cpu_tiny.KV_DTYPES)])
def test_bits_do_not_depend_on_chunks(form: str, kv_cache_dtype: str) -> None:
    made = backend(form, kv_cache_dtype=kv_cache_dtype)
    expected = whole(made._machine, 0, 330, tables(1, 330))
    other = np.roll(tables(2, 330), 1, axis=0)
    for chunk in (1, 7, 64, 100):
        found, at = [], 0
        while at < 330:
            count = min(300 if chunk == 1 and at == 0 else chunk, 330 - at)
            found.append(step(made._machine, [(0, at, count)], other)[0])
            at += count
        np.testing.assert_array_equal(np.concatenate(found), expected, err_msg=f"chunks of {chunk}")
    made.close()


@pytest.mark.parametrize(("form", "kv_cache_dtype"), [("F32", "float32"), *(("Q4_1", d) for d in cpu_tiny.KV_DTYPES)])
def test_bits_do_not_depend_on_the_batch(form: str, kv_cache_dtype: str) -> None:
    """Batches of 1 to 64 that decode, with a prompt among them."""
    made = backend(form, kv_cache_dtype=kv_cache_dtype)
    machine, blocks = made._machine, tables(64, 90)
    alone = [whole(machine, sequence, 40, blocks)[-1] for sequence in range(64)]
    for size in (1, 2, 3, 5, 16, 17, 33, 64):
        shares = [(sequence, 39, 1) for sequence in range(size)]
        if size < 64:
            shares.insert(size // 2, (63, 0, 40))
        for (sequence, _, _), logits in zip(shares, step(machine, shares, blocks), strict=True):
            np.testing.assert_array_equal(logits[-1], alone[sequence], err_msg=f"batch of {size}, sequence {sequence}")
    made.close()


@KV_DTYPES
def test_bits_do_not_depend_on_how_a_long_history_is_cut(kv_cache_dtype: str) -> None:
    """Few rows are cut into many pieces for the threads, many into few."""
    made = backend(kv_cache_dtype=kv_cache_dtype)
    machine, blocks, length = made._machine, tables(8, 700), 700
    alone = [whole(machine, sequence, length, blocks)[-1] for sequence in range(8)]
    for size in (1, 2, 3, 4, 8):
        found = step(machine, [(sequence, length - 1, 1) for sequence in range(size)], blocks)
        np.testing.assert_array_equal(np.concatenate(found), alone[:size], err_msg=f"{size} rows")
    made.close()


@pytest.mark.parametrize("form", ["F32", "mixed"])
def test_bits_do_not_depend_on_threads(form: str) -> None:
    found = []
    for threads in (1, 2, 3):
        made = backend(form, threads=threads)
        blocks = tables(1, 330)
        prompt = whole(made._machine, 0, 329, blocks)
        found.append(np.concatenate((prompt, step(made._machine, [(0, 329, 1)], blocks)[0])))
        made.close()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


EXACT = [(form, "float32", 1e-4) for form in ("F32", "Q4_1", "Q8_0", "mixed")]
ROUNDED = [("F32", "int8", 1e-4), *((form, "int8", 0.25) for form in ("Q4_1", "Q8_0", "mixed"))]


@pytest.mark.parametrize(("form", "activation_dtype", "tolerance"), [*EXACT, *ROUNDED])
def test_logits_are_those_of_numpy(form: str, activation_dtype: str, tolerance: float) -> None:
    """With int8, products of quantized formats round activations block by block: close, but not equal."""
    found = []
    for chosen in ({"activation_dtype": activation_dtype}, {"native": False}):
        made = backend(form, kv_cache_dtype="float32", **chosen)
        found.append(whole(made._machine, 0, 150, tables(1, 150)))
        made.close()
    assert np.abs(found[0] - found[1]).max() < tolerance
    assert (found[0].argmax(axis=1) == found[1].argmax(axis=1)).mean() > (0.999 if tolerance < 0.01 else 0.9)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@KV_DTYPES
@pytest.mark.parametrize("native", [True, False])
def test_rounded_caches_change_little(kv_cache_dtype: str, native: bool) -> None:
    """And native kernels and NumPy agree on what they change; a copied block is the block."""
    found = {}
    for dtype, own in (("float32", native), (kv_cache_dtype, native), (kv_cache_dtype, True)):
        made = backend(native=own, kv_cache_dtype=dtype, activation_dtype="float32")
        blocks = tables(2, 150)
        whole(made._machine, 0, 149, blocks)
        made._machine.copy_blocks(list(zip(blocks[0].tolist(), blocks[1].tolist(), strict=True)))
        found[dtype, own] = step(made._machine, [(0, 149, 1)], blocks[[1, 0]])[0]
        again = step(made._machine, [(0, 149, 1)], blocks)[0]
        np.testing.assert_array_equal(again, found[dtype, own])
        assert made.call("describe")["kv_cache_dtype"] == dtype
        made.close()
    exact, rounded = log_softmax(found["float32", native]), log_softmax(found[kv_cache_dtype, native])
    divergence = (np.exp(exact) * (exact - rounded)).sum(axis=1).max()
    assert divergence < {"float32": 1e-12, "bfloat16": 1e-5, "int8_per_token_head": 1e-4}[kv_cache_dtype]
    assert divergence > 0 or kv_cache_dtype == "float32"
    np.testing.assert_allclose(found[kv_cache_dtype, native], found[kv_cache_dtype, True], atol=2e-3)


def test_packed_weights_are_as_small_as_stored_ones() -> None:
    made = backend("Q4_1")
    given = stored("Q4_1")
    size = sum(tensor.data.nbytes for tensor in given.values())
    assert size <= made.memory().weights < size * 1.05
    assert np.abs(dequantize(given["embed"]) - WEIGHTS["embed"]).max() < 0.1
    made.close()


def test_no_memory_is_planned_for_what_steps_never_fill() -> None:
    """Registers of a step as large as may be, and of one in which gate and up are two products."""
    made = backend(max_num_batched_tokens=100)
    machine, blocks = made._machine, tables(1, 100)
    assert machine.work_bytes > 0
    for name, array in machine._arrays.items():
        if not name.startswith("inv_freq"):
            array.fill(np.nan)
    for length in (lower.JOINED - 1, 100):
        whole(machine, 0, length, blocks)
    for name, array in machine._arrays.items():
        assert np.isfinite(array[: lower.JOINED - 1 if len(array) == lower.JOINED else None]).all(), name
    made.close()


def test_describe_names_the_variant() -> None:
    made = backend()
    assert made.call("describe")["variant"] == native.library().oct_variant().decode()
    made.close()


def test_falls_back_where_nothing_was_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """NumPy runs the model; the log says so once."""
    for broken in (tmp_path / "none.so", tmp_path / "bad.so"):
        (tmp_path / "bad.so").write_bytes(b"no library")
        monkeypatch.setattr(native, "LIBRARY", broken)
        native.library.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = [backend(activation_dtype="float32") for _ in range(2)]
        assert len([record for record in caplog.records if "NumPy" in record.message]) == 1
        assert made[0].call("describe")["native"] is False
        assert np.isfinite(whole(made[1]._machine, 0, 20, tables(1, 20))).all()
        for one in made:
            one.close()
    monkeypatch.undo()
    native.library.cache_clear()

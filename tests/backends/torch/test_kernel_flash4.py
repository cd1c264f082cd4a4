"""Spans by flash-attn-4: what it is given (a stand-in takes it), what happens where it fails, and itself on a GPU."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flash4_stand_in import stand_in
from torch_driver import BLOCK, VOCAB, Driver, arrays, layer, spec
from torch_forward import forward

from octavo.backends.torch import runner as runner_module
from octavo.backends.torch.attention import flash4, paged, select
from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.flash4_compile import Variant
from octavo.backends.torch.attention.paged import KernelAttention
from octavo.backends.torch.batch import make_batch
from octavo.backends.torch.kernels.rope_cache import rope_cache
from octavo.backends.torch.ops.fused import FusedOps
from octavo.backends.torch.rows import Rows
from octavo.base.types.plan import RowBegin, RowSampling, RowStep, StepPlan
from octavo.models.spec import Attention, ModelSpec

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HERE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
REASON = flash4.missing(HERE)
real = pytest.mark.skipif(REASON is not None, reason=f"flash-attn-4: {REASON}")
# masked keys are read from memory that holds anything
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
MIXED = [(0, 0, 19), (1, 30, 1), (2, 9, 2), (3, 8, 8), (4, 0, 1), (5, 25, 15)]


def setting(mixer: Attention, steps: list[tuple[int, int, int]], block_size: int, dtype: torch.dtype) -> tuple:
    """(cache with keys past the sequences' ends NaN, batch, q): blocks shuffled, q a view of a wider product."""
    random = torch.Generator(DEVICE).manual_seed(3)
    per_row = max(-(-(start + count) // block_size) for _, start, count in steps)
    total, length = len(steps) * per_row, per_row * block_size
    sizes = {"max_num_seqs": len(steps), "max_model_len": length, "num_blocks": total, "block_size": block_size}
    rows = Rows(**sizes, vocab_size=9, device=DEVICE)
    order = np.random.default_rng(4).permutation(total).tolist()
    begins = [RowBegin(r, [1], 1, order[r * per_row : (r + 1) * per_row], RowSampling()) for r, _, _ in steps]
    rows.apply(StepPlan(step=0, rows=[], begins=begins))
    model = spec(replace(layer(), mixer=mixer))
    cache = KVCache(model, num_blocks=total, block_size=block_size, dtype=dtype, device=DEVICE, finite=True)
    cache.layer(0).normal_(generator=random)
    for row, start, count in steps:
        at = torch.arange(start + count, length, device=DEVICE)
        cache.slots(0)[0, rows.block_tables[row, at // block_size].long() * block_size + at % block_size] = float("nan")
    batch = make_batch([RowStep(*step, False) for step in steps], rows)
    wide = torch.randn(len(batch.positions), mixer.heads + 2, mixer.head_dim, device=DEVICE, generator=random)
    return cache, batch, wide.to(dtype)[:, : mixer.heads]


def expected(mixer: Attention, cache: KVCache, batch: Any, q: torch.Tensor, most: int = 1 << 30) -> torch.Tensor:
    """In float64; of each row the last `most` tokens, NaN for others."""
    out, first = torch.full(q.shape, float("nan"), dtype=torch.float64, device=DEVICE), 0
    for i, step in enumerate(batch.steps):
        length, first = step.start + step.count, first + step.count
        k, v = cache.slots(0)[:, batch.row_slots(i, length)].double()
        part = slice(first - min(most, step.count), first)
        out[part] = flash4._plain(q[part].double(), k, v, mixer)
    return out


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("window", [None, 1, 11])
def test_a_mixed_batch_gives_it_the_spans(group: int, window: int | None) -> None:
    """Single tokens run by our kernel, and the stand-in checks all that it is given."""
    mixer = Attention(2 * group, 2, 16, 0.3, None, window=window)
    cache, batch, q = setting(mixer, MIXED, 8, torch.float32)
    attention = KernelAttention({0: mixer}, cache, len(MIXED))
    attention.use_flash({0: stand_in, 7: stand_in})
    attention.plan(batch)
    assert list(attention._tiles) == [flash4.WHOLE]  # none are cut for our kernel
    torch.testing.assert_close(attention.run(q, 0).double(), expected(mixer, cache, batch, q), rtol=0, atol=1e-5)
    attention.plan(make_batch([batch.steps[0]], Rows(**ROWS)))  # no spans: the old ones are forgotten
    assert attention._spans is None


ROWS: dict[str, Any] = {
    "max_num_seqs": 6, "max_model_len": 40, "num_blocks": 30, "block_size": 8, "vocab_size": 9, "device": DEVICE,
}  # fmt: skip


def test_layers_that_it_does_not_run_are_ours() -> None:
    mixers = {0: Attention(4, 2, 16, 0.3, None), 1: Attention(4, 2, 16, 0.3, None, softcap=1.5)}
    cache, batch, q = setting(mixers[0], MIXED, 8, torch.float32)
    cache._layers.append(cache.layer(0))
    attention = KernelAttention(mixers, cache, len(MIXED))
    attention.use_flash({0: stand_in})
    attention.plan(batch)
    torch.testing.assert_close(attention.run(q, 0).double(), expected(mixers[0], cache, batch, q), rtol=0, atol=1e-5)
    capped = attention.run(q, 1)
    plain = KernelAttention({1: mixers[1]}, cache, len(MIXED))
    plain.plan(batch)
    assert torch.equal(capped, plain.run(q, 1))


class Ready:
    """Stands in for flash4.Flash4."""

    wanted = True

    def __init__(self, model: ModelSpec, **_: Any) -> None:
        self._layers = [i for i, each in enumerate(model.layers) if each.mixer.softcap is None]

    def kernels(self) -> dict[int, flash4.Function]:
        return dict.fromkeys(self._layers, stand_in)


@pytest.fixture
def driver_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whole steps on the kernels, whatever the device, with the stand-in for spans."""
    everywhere = replace(paged.KERNELS, supports=lambda case: [])
    monkeypatch.setattr(select, "choose", lambda case: (everywhere, []))
    monkeypatch.setattr(runner_module, "Flash4", Ready)
    monkeypatch.setattr(runner_module, "Pool", lambda _: None)  # no graphs: the stand-in reads tensors on the host
    monkeypatch.setattr(runner_module, "choose_ops", FusedOps)
    return lambda model, weights: Driver(model, weights, device=DEVICE.type)


def test_whole_steps(driver_of: Any) -> None:
    model = spec(layer(), layer({"window": 9}), layer({"softcap": 0.8}))
    weights = arrays(model)
    driver = driver_of(model, weights)
    described = driver.backend.call("describe")
    assert described["attention"] == ["kernels"] * 3
    assert described["attention_of_spans"] == ["flash-attn-4", "flash-attn-4", "kernels"]
    prompts = {row: np.random.default_rng(row).integers(0, VOCAB, n).tolist() for row, n in ((3, 21), (0, 13), (5, 1))}
    begins = [driver.begin(row, ids, logprobs=None) for row, ids in prompts.items()]
    made: dict[int, list[int]] = {row: [] for row in prompts}
    for step in (
        [(3, 0, 13, False), (0, 0, 13, True), (5, 0, 1, True)],
        [(5, 1, 1, True), (3, 13, 8, True), (0, 13, 1, True)],
        [(0, 14, 1, True), (3, 21, 1, True), (5, 2, 1, True)],
    ):
        result = driver.step(step, begins)
        begins = []
        assert not result.failed
        for (row, *_), token in zip([part for part in step if part[3]], result.tokens, strict=True):
            made[row].append(token)
    for row, tokens in made.items():
        logits = forward(model, weights, prompts[row] + tokens[:-1])
        assert tokens == logits.argmax(-1)[len(prompts[row]) - 1 :].tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_fails_spoils_no_other(driver_of: Any, value: float) -> None:
    """Whose blocks another takes over while its step is under way: all of a block's values are multiplied."""
    model = spec(layer(), layer({"window": 9}))
    weights = arrays(model)
    weights["embed"][7, 3] = value
    driver = driver_of(model, weights)
    driver.launch([(1, 0, 30, True)], [driver.begin(1, [*[5] * 14, *[7] * 16], logprobs=None)])
    driver.blocks[2] = driver.blocks[1]
    prompt = [4, 9, 2] * 3 + [3]
    driver.launch([(2, 0, len(prompt), True)], [driver.begin(2, prompt, logprobs=None)], ended=[1])
    failed, other = driver.backend.finish(), driver.backend.finish()
    assert list(failed.failed) == [1]
    assert not other.failed
    assert other.tokens == [forward(model, weights, prompt).argmax(-1)[-1]]
    assert len(prompt) % BLOCK


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_both_writers_keep_values_finite(value: float) -> None:
    """And say by the key of the same head that one was not."""
    mixer = Attention(4, 2, 16, 0.3, None)
    qkv = torch.randn(3, 8, 16, device=DEVICE)
    qkv[1, 7, 5] = value
    made = KVCache(spec(replace(layer(), mixer=mixer)), num_blocks=1, block_size=8, dtype=torch.float32, device=DEVICE)
    made.finite = True
    slots = torch.tensor([6, 2, 3], device=DEVICE)
    expected = torch.full((2, 8, 2, 16), float("nan"), device=DEVICE)
    expected[:, slots] = torch.stack((qkv[:, 4:6], qkv[:, 6:]))
    expected[0, 2, 1], expected[1, 2, 1, 5] = float("nan"), 0.0
    for write in (
        lambda: rope_cache(qkv.flatten(1), slots.int(), slots, None, made.layer(0), mixer, (None, None), finite=True),
        lambda: made.write(0, slots, qkv[:, 4:6], qkv[:, 6:]),
    ):
        made.layer(0).fill_(float("nan"))
        write()
        torch.testing.assert_close(made.slots(0), expected, rtol=0, atol=0, equal_nan=True)


def test_a_value_that_overflows_fails_its_row_though_it_is_kept_as_zero(driver_of: Any) -> None:
    """Only v is not finite: its key tells."""
    model = spec(layer())
    weights = arrays(model)
    for name in weights:
        if name.endswith("v"):
            weights[name] *= np.float32(3e38)
    driver = driver_of(model, weights)
    assert any(name.endswith("v") for name in weights)
    result = driver.run([1, 2, 3, 4], logprobs=None)
    assert list(result.failed) == [0]
    runner = driver.backend._runner
    assert runner is not None
    assert runner._cache.layer(0)[1].isfinite().all()


@pytest.mark.parametrize(("window", "kv_heads"), [(0, 1), (1, 2)])
def test_the_check_of_a_new_kernel(window: int, kv_heads: int) -> None:
    variant = Variant("sm_90a", "bfloat16", 64, 3, window)
    flash4.check(stand_in, variant, kv_heads, DEVICE)

    def late(*arguments: Any) -> None:
        lengths = arguments[9] - 1
        stand_in(*arguments[:9], lengths, *arguments[10:])

    with pytest.raises(ValueError, match="off by"):
        flash4.check(late, variant, kv_heads, DEVICE)

    def wide(*arguments: Any) -> None:
        stand_in(*arguments)
        arguments[3][0] = 0

    with pytest.raises(ValueError, match="not its own"):
        flash4.check(wide, variant, kv_heads, DEVICE)


def test_refusals() -> None:
    half: dict[str, Any] = {"dtype": torch.bfloat16, "cache_dtype": torch.bfloat16, "block_size": 128}
    mixer = Attention(8, 2, 128, 0.1, None, window=7)
    assert flash4.refusals(mixer, **half) == []
    assert flash4.refusals(replace(mixer, head_dim=256, softcap=30.0), **half) == [
        "head_dim 256 is no multiple of 8 up to 128",
        "softcap 30",
    ]
    assert flash4.refusals(replace(mixer, heads=36), **half) == ["18 query heads a kv head, above 16"]
    assert flash4.refusals(mixer, **{**half, "block_size": 64}) == ["block_size 64, not 128"]
    assert flash4.refusals(mixer, **{**half, "cache_dtype": torch.float16}) == ["bfloat16 over a cache of float16"]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """As on an H100 with everything installed, nothing on disk."""
    versions = {flash4.NAME: flash4.VERSION, **dict.fromkeys(flash4.PARTS, "1.2")}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions[name])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    monkeypatch.setattr(flash4, "check", lambda *_: None)
    return monkeypatch


def make(*mixers: dict[str, Any], block_size: int = 128) -> flash4.Flash4:
    model = spec(*(layer({"head_dim": 64, **mixer}) for mixer in mixers))
    types = {"dtype": torch.bfloat16, "cache_dtype": torch.bfloat16}
    return flash4.Flash4(model, device=torch.device("cuda", 0), block_size=block_size, **types)


def test_it_is_compiled_once_and_found_on_disk(hopper: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled: list[Variant] = []

    def compile_one(variant: Variant, path: Path) -> None:
        compiled.append(variant)
        time.sleep(0.1)  # others that would compile the same find nothing on disk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    hopper.setattr(flash4, "_compile", compile_one)
    hopper.setattr(flash4, "_load", lambda path: stand_in)
    mixers = [{}, {"window": 5}, {"softcap": 3.0}, {"window": 9}]
    with caplog.at_level(logging.INFO, logger="octavo"):
        kernels = make(*mixers).kernels()
    assert kernels == dict.fromkeys((0, 1, 3), stand_in)
    assert sorted(compiled) == [Variant("sm_90a", "bfloat16", 64, 2, 0), Variant("sm_90a", "bfloat16", 64, 2, 1)]
    assert [record.getMessage() for record in caplog.records] == [
        "attention: spans by flash-attn-4 4.0.0b36, from layer 0",
        "attention: spans without flash-attn-4 (softcap 3), from layer 2",
    ]
    assert make(*mixers).kernels() == kernels
    assert len(compiled) == 2
    assert not make(*mixers, block_size=64).wanted


def failing(*_: Any) -> None:
    raise subprocess.CalledProcessError(1, ["python"], stderr=b"Traceback\nImportError: no such thing\n")


def test_what_fails_is_told_and_left_to_our_kernel(hopper: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hopper.setattr(flash4, "_compile", failing)
    flash = make({})
    assert flash.kernels() == {}
    assert flash._reasons == ["it did not compile: ImportError: no such thing"]

    hopper.setattr(flash4, "_compile", lambda variant, path: (path.parent.mkdir(), path.write_bytes(b"garbage")))

    def load(path: Path) -> None:
        raise OSError("file too short\nand more")

    hopper.setattr(flash4, "_load", load)
    flash = make({})
    assert flash.kernels() == {}
    assert flash._reasons == ["OSError: file too short"]
    assert list((tmp_path / "flash4").iterdir()) == []  # compiled anew by the next start

    def differs(*_: Any) -> None:
        raise ValueError("its result of a small step is off by 0.5")

    hopper.setattr(flash4, "_compile", lambda variant, path: path.write_bytes(b"garbage"))
    hopper.setattr(flash4, "_load", lambda path: stand_in)
    hopper.setattr(flash4, "check", differs)
    flash = make({})
    assert flash.kernels() == {}
    assert flash._reasons == ["ValueError: its result of a small step is off by 0.5"]


def test_where_it_is_missing(hopper: pytest.MonkeyPatch) -> None:
    device, model = torch.device("cuda", 0), spec(layer({"head_dim": 64}))
    assert flash4.missing(device) is None
    half = torch.bfloat16
    assert flash4.preferred_block_size(model, device, half, half) == 128
    assert flash4.preferred_block_size(model, device, torch.float32, torch.float32) is None
    hopper.setattr(importlib.metadata, "version", lambda name: "4.1.0")
    assert flash4.missing(device) == "flash-attn-4 4.1.0 is not known, 4.0.0b36 is"
    assert flash4.preferred_block_size(model, device, half, half) is None

    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    hopper.setattr(importlib.metadata, "version", none)
    assert flash4.missing(device) == "flash-attn-4 is not installed; pip install 'octavo[flash]'"
    hopper.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert flash4.missing(device) == "compute capability 8.6, not 9.0"
    assert flash4.missing(torch.device("cpu")) == "device cpu"


@real
@pytest.mark.parametrize(
    "mixer",
    [
        Attention(32, 8, 128, 128**-0.5, None),
        Attention(16, 2, 64, 0.125, None, window=300),
        Attention(14, 2, 96, 0.1, None),
    ],
    ids=["128", "64_window", "96"],
)
def test_the_real_one(mixer: Attention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled in a process of its own, beside our kernel and float64."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    monkeypatch.setattr(flash4, "GRACE_S", flash4.PATIENCE_S)
    model = spec(replace(layer(), mixer=mixer))
    half = torch.bfloat16
    flash = flash4.Flash4(model, device=HERE, dtype=half, cache_dtype=half, block_size=flash4.BLOCK_SIZE)
    kernels = flash.kernels()
    assert flash._reasons == [""]
    steps = [(0, 0, 700), (1, 611, 90), (2, 333, 1), (3, 0, 3), (4, 1290, 1), (5, 127, 2), (6, 128, 128)]
    cache, batch, q = setting(mixer, steps, flash4.BLOCK_SIZE, half)
    ours, theirs = (KernelAttention({0: mixer}, cache, len(steps)) for _ in range(2))
    theirs.use_flash(kernels)
    for attention in (ours, theirs):
        attention.plan(batch)
    out = theirs.run(q, 0)
    torch.testing.assert_close(out.float(), ours.run(q, 0).float(), rtol=0.02, atol=0.02)
    wanted = expected(mixer, cache, batch, q, most=40)
    some = ~wanted.isnan()
    torch.testing.assert_close(out.double()[some], wanted[some], rtol=0.02, atol=0.02)

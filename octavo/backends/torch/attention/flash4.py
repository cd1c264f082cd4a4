"""Attention of spans of tokens by flash-attn-4, where it is installed and knows the GPU: a model in, its kernels out.

Kernels are compiled by processes of their own (flash4_compile.py) while weights load, and kept on disk; this process
loads them by tvm_ffi alone and calls them as flash_attn/cute/interface.py would.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.backends.torch.attention.flash4_compile import FUNCTION, TILE_KEYS, Variant
from octavo.base.config.env import cache_folder
from octavo.models.spec import Attention, ModelSpec

logger = logging.getLogger(__name__)

NAME, VERSION = "flash-attn-4", "4.0.0b36"
"""The one version whose kernels are known to take their arguments in the order that `attend` gives them."""
PARTS = ("nvidia-cutlass-dsl", "apache-tvm-ffi", "quack-kernels")
"""What it is built on: other versions make other kernels."""
ARCHITECTURES = {(9, 0): "sm_90a"}
BLOCK_SIZE = TILE_KEYS
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
LARGEST_HEAD, LARGEST_GROUP = 128, 16
PATIENCE_S = 120.0
"""For a kernel to be compiled."""
GRACE_S = 2.0
"""That a start waits for one: what is on disk is loaded by then, what is still being compiled serves the next start."""
WHOLE = 1 << 30
"""In place of the most queries of a tile: spans are not cut."""
_UNKNOWN = "it is still being compiled, for the next start"

Function = Callable[..., object]
"""A compiled kernel: (q, keys, values, out, -, scale, firsts, -, -, lengths, tables, left, right, five more)."""


class Spans(NamedTuple):
    """n rows of several tokens or none: tokens firsts[i] .. firsts[i + 1] - 1 of the batch are the i-th's last ones.

    firsts: int32 [n + 1].  lengths: int32 [n], tokens with those of the step.  tables: int32 [n, max_blocks].
    """

    firsts: Tensor
    lengths: Tensor
    tables: Tensor


def make_spans(tiles: Tensor, block_tables: Tensor) -> Spans:
    """tiles: int32 [n, 4] of port.Tile, one after the other in the batch, each a whole span; zeros behind: none.

    From device arrays alone, so that a graph can hold it.
    """
    rows, firsts, starts, counts = tiles.unbind(1)
    begin = firsts[:1]
    ends = begin + counts.cumsum(0, dtype=torch.int32)
    return Spans(torch.cat((begin, ends)), starts + counts, block_tables.index_select(0, rows))


def attend(function: Function, q: Tensor, cache: Tensor, spans: Spans, out: Tensor, layer: Attention) -> None:
    """Attend with the spans' tokens; those of q and out [tokens, heads, head_dim] outside of them are left alone.

    q: a token's heads contiguous, tokens at multiples of 16 bytes.  cache: [2 (k, v), num_blocks, TILE_KEYS, kv_heads,
    head_dim], the spans' own tokens in it; the values of all of a block are multiplied, if by zero: they are finite.
    """
    left, right = (None, None) if layer.window is None else (layer.window - 1, 0)
    arguments = (q, cache[0], cache[1], out, None, layer.scale, spans.firsts, None, None, spans.lengths, spans.tables)
    function(*arguments, left, right, None, None, (None, None), None, None)


def refusals(layer: Attention, *, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int) -> list[str]:
    """Why a layer is not for these kernels; nothing if it is."""
    reasons = []
    if dtype not in DTYPES or dtype != cache_dtype:
        reasons.append(f"{dtype} over a cache of {cache_dtype}".replace("torch.", ""))
    if layer.head_dim > LARGEST_HEAD or layer.head_dim % 8:
        reasons.append(f"head_dim {layer.head_dim} is no multiple of 8 up to {LARGEST_HEAD}")
    if layer.heads // layer.kv_heads > LARGEST_GROUP:
        reasons.append(f"{layer.heads // layer.kv_heads} query heads a kv head, above {LARGEST_GROUP}")
    if layer.softcap is not None:
        reasons.append(f"softcap {layer.softcap:g}")
    if block_size != BLOCK_SIZE:
        reasons.append(f"block_size {block_size}, not {BLOCK_SIZE}")
    return reasons


def missing(device: torch.device) -> str | None:
    """Why no layer can run by these kernels on this device, or None."""
    if device.type != "cuda":
        return f"device {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability not in ARCHITECTURES:
        have, want = (", ".join(f"{a}.{b}" for a, b in each) for each in ([capability], ARCHITECTURES))
        return f"compute capability {have}, not {want}"
    try:
        if (found := importlib.metadata.version(NAME)) != VERSION:
            return f"{NAME} {found} is not known, {VERSION} is"
        for part in PARTS:
            importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed; pip install 'octavo[flash]'"
    return None


def preferred_block_size(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype
) -> int | None:
    """Tokens a block with which these kernels run some of the model's layers; None where they run none."""
    if missing(device) is not None:
        return None
    mixers = {layer.mixer for layer in spec.layers if layer.mixer.causal}
    taken = [m for m in mixers if not refusals(m, dtype=dtype, cache_dtype=cache_dtype, block_size=BLOCK_SIZE)]
    return BLOCK_SIZE if taken else None


class Flash4:
    """A model's kernels, on their way from the moment that this is made. wanted: some layer is to have one."""

    def __init__(
        self, spec: ModelSpec, *, device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> None:
        self._device = device
        self._variants: list[Variant | None] = []
        self._reasons: list[str] = []
        reason = missing(device)
        for layer in (each.mixer for each in spec.layers if each.mixer.causal):
            reasons = [reason] if reason else []
            if reason is None:
                reasons = refusals(layer, dtype=dtype, cache_dtype=cache_dtype, block_size=block_size)
            self._reasons.append(", ".join(reasons))
            self._variants.append(None if reasons else _variant(layer, dtype, device))
        wanted = dict.fromkeys(each for each in self._variants if each is not None)
        self._builds = {each: _Build(each, _place(each)) for each in wanted}

    @property
    def wanted(self) -> bool:
        """Whether values in the cache must be finite, see `attend`."""
        return bool(self._builds)

    def kernels(self) -> dict[int, Function]:
        """By layer; waits a little for those under way. Each is tried once; what is wrong with one is logged."""
        ready: dict[Variant, Function | str] = {}
        for variant, build in self._builds.items():
            ready[variant] = function = build.result()
            try:
                if not isinstance(function, str):
                    for kv_heads in (1, 2):
                        check(function, variant, kv_heads, self._device)
            except Exception as error:
                ready[variant] = _told(error)
        found: dict[int, Function] = {}
        for i, wanted in enumerate(self._variants):
            if wanted is not None:
                if isinstance(kernel := ready[wanted], str):
                    self._reasons[i] = kernel
                else:
                    found[i] = kernel
        if self._device.type != "cpu":
            _tell(self._reasons)
        return found


def _tell(reasons: Sequence[str]) -> None:
    """One line for each that is not like another, "" where there is none."""
    for reason in dict.fromkeys(reasons):
        what = f"by {NAME} {VERSION}" if not reason else f"without {NAME} ({reason})"
        logger.info("attention: spans %s, from layer %d", what, reasons.index(reason))


def _variant(layer: Attention, dtype: torch.dtype, device: torch.device) -> Variant:
    arch = ARCHITECTURES[torch.cuda.get_device_capability(device)]
    group = layer.heads // layer.kv_heads
    return Variant(arch, DTYPES[dtype], layer.head_dim, group, int(layer.window is not None))


def _place(variant: Variant) -> Path:
    """Of a kernel on disk. Other versions, or packages that moved (it links to one of their libraries): another."""
    versions = [f"{each}={importlib.metadata.version(each)}" for each in (NAME, *PARTS)]
    found = importlib.util.find_spec("nvidia_cutlass_dsl")
    key = "\n".join([*versions, str(found and found.origin), str(found and found.submodule_search_locations)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    name = "-".join(map(str, (NAME, VERSION, digest, *variant)))
    return cache_folder() / "flash4" / f"{name}.so"


class _Build:
    """One kernel: compiled if it is not on disk, and loaded, by a thread that waits for both."""

    def __init__(self, variant: Variant, path: Path) -> None:
        self._path = path
        self._result: Function | str = _UNKNOWN
        self._thread = threading.Thread(target=self._run, args=(variant,), name="octavo-flash4", daemon=True)
        self._thread.start()

    def result(self) -> Function | str:
        """The function, or why there is none."""
        self._thread.join(GRACE_S)
        return self._result

    def _run(self, variant: Variant) -> None:
        try:
            if not self._path.exists():
                _compile(variant, self._path)
            try:
                self._result = _load(self._path)
            except Exception:
                self._path.unlink(missing_ok=True)  # the next start compiles it anew
                raise
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
            self._result = f"it did not compile: {lines[-1]:.300}"
        except Exception as error:
            self._result = _told(error)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.300}"


def _compile(variant: Variant, path: Path) -> None:
    """By flash4_compile.py, from the folder in which octavo lies: a child finds the same packages as this process."""
    module = f"{__package__}.flash4_compile"
    command = [sys.executable, "-m", module, str(path), *map(str, variant)]
    root = Path(__file__).parents[len(__name__.split(".")) - 1]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # no memory of the device is taken while it is measured
    no_input = subprocess.DEVNULL
    subprocess.run(command, check=True, cwd=root, env=hidden, stdin=no_input, capture_output=True, timeout=PATIENCE_S)


def _load(path: Path) -> Function:
    function: Function = importlib.import_module("tvm_ffi").load_module(str(path))[FUNCTION]
    return function


def check(function: Function, variant: Variant, kv_heads: int, device: torch.device) -> None:
    """One small step whose answer is known; it also brings the kernel onto the device. ValueError where it differs."""
    random = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, variant.dtype)
    window = 150 if variant.window else None
    layer = Attention(kv_heads * variant.group, kv_heads, variant.head_dim, 0.1, None, window=window)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=random)

    counts, lengths = (70, 133), (70, 333)
    first = 3  # tokens of others before
    q = noise(first + sum(counts), layer.heads + 2 * kv_heads, layer.head_dim)[:, : layer.heads]
    out = torch.full(q.shape, float("nan"), dtype=dtype, device=device)
    cache = noise(2, 5, BLOCK_SIZE, kv_heads, layer.head_dim)
    tables = torch.tensor([[3, 4, 4], [2, 0, 1]], dtype=torch.int32, device=device)
    cache[0, 3, 70:] = cache[0, 1, 333 - 2 * BLOCK_SIZE :] = float("nan")  # keys past the ends, which are masked
    firsts = torch.tensor([first, first + counts[0], len(q)], dtype=torch.int32, device=device)
    spans = Spans(firsts, torch.tensor(lengths, dtype=torch.int32, device=device), tables)
    attend(function, q, cache, spans, out, layer)
    begin = first
    for table, count, length in zip(tables, counts, lengths, strict=True):
        k, v = cache[:, table.long()].flatten(1, 2)[:, :length].float()
        expected = _plain(q[begin : begin + count].float(), k, v, layer)
        difference = (out[begin : begin + count].float() - expected).norm() / expected.norm()
        if not difference < 0.02:
            raise ValueError(f"its result of a small step is off by {float(difference):.2g}")
        begin += count
    if not out[:first].isnan().all():
        raise ValueError("it wrote to tokens that were not its own")


def _plain(q: Tensor, k: Tensor, v: Tensor, layer: Attention) -> Tensor:
    """Of the last tokens q of a sequence [count, heads, head_dim] over its k, v [length, kv_heads, head_dim]."""
    k, v = (part.repeat_interleave(layer.heads // layer.kv_heads, 1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * layer.scale
    at = torch.arange(len(k), device=q.device)
    ahead = at - at[len(k) - len(q) :, None]
    unseen = (ahead > 0) | (ahead <= -(layer.window or len(k)))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(unseen, float("-inf")).softmax(-1), v)

"""Bytes of a device, all and free; on a CPU the process's own limits (control group) count."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from octavo.backends.torch.sampling.edits import FIELDS, MOST_EDITS
from octavo.base.errors import ConfigError
from octavo.models.spec import MLP, GatedMLP, ModelSpec, MoE

logger = logging.getLogger(__name__)

MOST_APART = 64
"""Rows that the sampler's kernels do not take and that are sampled at a time (step.py)."""
PROMPT_TILE_ELEMENTS = 1 << 24
"""Logits of prompt positions made at a time: 64 MiB of float32."""
_MARGIN = 128 << 20
"""For what is freed and not given out again, and what libraries take for themselves."""

_GROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@contextmanager
def explained(device: torch.device, what: str, remedy: str) -> Iterator[None]:
    """Within, memory that runs out is a ConfigError: what did not fit, what is free, the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        total, free = device_bytes(device)
        have = f"of {total / 2**30:.1f} GiB on {device} {free / 2**30:.1f} are free"
        raise ConfigError(f"{what} found no room: {have}; {remedy}", param="device") from error


def give_back(device: torch.device) -> None:
    """To the device, what torch keeps of the memory of tensors that are gone; a failed device is told in the log."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        logger.warning("%s: its memory was not given back: %s", device, error)


def device_bytes(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # what torch holds but does not use can be handed out again
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return total, free + spare
    return _host_bytes()


def activation_bytes(spec: ModelSpec, *, tokens: int, rows: int, element: int, kernels: bool) -> int:
    """An upper estimate of what one step of `tokens` tokens and `rows` sampled rows takes beside weights and cache.

    kernels: whether fused operations run, which make little that they do not return.
    """
    widest, hidden = 0, spec.hidden_size
    for layer in spec.layers:
        mixer = layer.mixer
        qkv = (mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim
        if kernels:
            mixed, fed = (
                (qkv + mixer.heads * mixer.head_dim) * element,
                _fused_bytes(layer.ffn, hidden, element),
            )
        else:  # q, k, v before and after rope, one of them in float32
            mixed, fed = qkv * (2 * element + 4), _feed_bytes(layer.ffn, hidden, element)
        widest = max(widest, mixed, fed)
    stream = hidden * (4 * element if kernels else 2 * element + 8)
    return tokens * (widest + stream) + _sampling_bytes(spec.vocab_size, rows, kernels=kernels)


def graph_bytes(spec: ModelSpec, *, tokens: int, rows: int, element: int) -> int:
    """As activation_bytes, of the memory that graphs keep: their pool, and the results of passes (ForwardGraphs)."""
    results = tokens * spec.hidden_size * 2 * element
    return pool_bytes(spec, tokens=tokens, rows=rows, element=element) + results


def pool_bytes(spec: ModelSpec, *, tokens: int, rows: int, element: int) -> int:
    """As activation_bytes, of the memory that graphs share: passes of up to `tokens` tokens, logits of `rows` rows."""
    passes = activation_bytes(spec, tokens=tokens, rows=0, element=element, kernels=True)
    return max(passes, rows * spec.vocab_size * 8) + _MARGIN


def row_bytes(*, max_model_len: int, block_size: int, vocab_size: int) -> int:
    """What one row keeps on the device, whether it is in use or not: rows.py, sampling/edits.py, and graphs.py's."""
    known = 4 * (max_model_len + 1) + 4 * -(-max_model_len // block_size)
    lists = 4 * MOST_EDITS * (len(FIELDS) + 1) + vocab_size // 8
    # of each split of 4096 tokens KEEP candidates (kernels/sampling.py), and a logit behind each known token
    return known + lists + vocab_size // 4 + 4 * (max_model_len + 1)


def _sampling_bytes(vocab_size: int, rows: int, *, kernels: bool) -> int:
    """Logits in float32 with log probabilities, noise, and a sort's values and int64 indices; by kernels two copies of
    the logits, the rest for the rows that are beyond them. Or a tile of prompt positions, with log probabilities."""
    sorted_rows = min(rows, MOST_APART) if kernels else rows
    each = vocab_size * 28
    return max(sorted_rows * each, rows * vocab_size * 8 if kernels else 0, 16 * PROMPT_TILE_ELEMENTS if rows else 0)


def _fused_bytes(ffn: GatedMLP | MLP | MoE, hidden: int, element: int) -> int:
    """As _feed_bytes, by kernels: with experts the gated rows, their results, and numbers by row."""
    if isinstance(ffn, GatedMLP | MLP):
        return ffn.width * 4 * element
    routed = ffn.top_k * ((ffn.width + hidden) * element + 24)
    return routed + (ffn.shared_width or 0) * 4 * element + ffn.experts * 2 * element


def _feed_bytes(ffn: GatedMLP | MLP | MoE, hidden: int, element: int) -> int:
    """Of one token: gate_up, its halves and their product; with experts also their inputs and outputs, and p."""
    if isinstance(ffn, GatedMLP | MLP):
        return ffn.width * 4 * element
    routed = ffn.top_k * (ffn.width * 4 * element + hidden * (3 * element + 4))
    return routed + (ffn.shared_width or 0) * 4 * element + ffn.experts * 8


def _host_bytes() -> tuple[int, int]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _fields(_MEMINFO).get("MemAvailable", total // 1024) * 1024
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if limit is not None and used is not None:
        # cached file pages are given back when memory is needed
        used -= _fields(_GROUP / "memory.stat").get("inactive_file", 0)
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return total, free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # no control group here, or its limit is "max"


def _fields(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for words in map(str.split, lines) if len(words) > 1}

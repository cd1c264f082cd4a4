"""A GGUF file, a piece of work and the machine's peaks in; the most tokens a second that they allow out.

A step cannot be faster than reading what it must read once (weights, and the keys and values before it), nor than its
multiplications and additions. Caches may keep a part of the weights: the floor then errs on the low side by that part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from octavo.weights.files import map_file
from octavo.weights.gguf import read_header
from peers.machine import Peaks
from peers.rows import SETTLE, Work

KV_BYTES = 2  # a key's or value's element, as llama.cpp keeps it
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Shape:
    """What a model's step costs. Elements are those of matrices; a tied embedding is the head."""

    weight_bytes: int  # read by a step that samples
    body: int  # elements that every token is multiplied with
    head: int  # elements that every sampled row is multiplied with
    layers: int
    query_width: int  # heads x head_dim
    kv_width: int  # kv_heads x head_dim


@dataclass(frozen=True)
class Floor:
    """bytes and operations of one step, or of the whole prompt; limit: tokens a second; bound: what sets it."""

    bytes: float
    operations: float
    limit: float
    bound: str


def read_shape(path: Path) -> Shape:
    """From the header alone."""
    header = read_header(map_file(path), where=path.name)
    tensors = header.tensors
    skipped = EMBEDDING if HEAD in tensors else None  # rows are looked up, not multiplied
    matrices = {name: prod(info.shape) for name, info in tensors.items() if len(info.shape) == 2}
    head = HEAD if HEAD in tensors else EMBEDDING
    heads, kv_heads, head_dim = _attention(header.metadata)
    return Shape(
        weight_bytes=sum(info.nbytes for name, info in tensors.items() if name != skipped),
        body=sum(size for name, size in matrices.items() if name not in (EMBEDDING, HEAD)),
        head=matrices[head],
        layers=header.metadata[f"{header.metadata['general.architecture']}.block_count"],
        query_width=heads * head_dim,
        kv_width=kv_heads * head_dim,
    )


def _attention(metadata: Mapping[str, Any]) -> tuple[int, int, int]:
    name = f"{metadata['general.architecture']}."
    heads = metadata[name + "attention.head_count"]
    head_dim = metadata.get(name + "attention.key_length") or metadata[name + "embedding_length"] // heads
    return heads, metadata.get(name + "attention.head_count_kv", heads), head_dim


def floor(shape: Shape, work: Work, peaks: Peaks, *, products: str) -> Floor:
    """Of one prompt, or of the step in the middle of a decode. Sliding windows are not taken off."""
    if work.kind == "prefill":
        rows, sampled, seen, new = work.context, 1, (work.context + 1) / 2, work.context
        read = shape.weight_bytes
    else:
        rows = sampled = new = work.sequences
        seen = work.context + SETTLE + (work.steps + 1) / 2
        read = shape.weight_bytes + rows * seen * shape.layers * 2 * shape.kv_width * KV_BYTES
    attention = rows * seen * shape.layers * 4 * shape.query_width
    operations = 2 * (rows * shape.body + sampled * shape.head) + attention
    reading, computing = read / peaks.read_bytes_s, operations / peaks.operations(products)
    bound = "reading" if reading > computing else "computing"
    return Floor(read, operations, new / max(reading, computing), bound)

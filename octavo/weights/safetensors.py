"""A safetensors file's bytes in, views of its tensors out. Nothing in the file is trusted.

    u64 header length | JSON {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {...}} | data

The tensors tile the data without gaps or overlaps, as the format demands. Only ModelFormatError comes out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, StoredTensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Of a checkpoint: the file that is all of it, or the one that says which tensor is in which file."""
MAX_HEADER = 100 << 20  # the reference implementation's limit
MAX_DIMS = 8

# Buffers that checkpoints carry beside their weights (position ids, masks, weight_shape): passed over.
BUFFER_DTYPES = {"I64": 8, "BOOL": 1}

_SCHEMES = {**SCHEMES, **PART_SCHEMES}

Size = Annotated[int, Meta(ge=0, le=1 << 62)]


@dataclass(frozen=True)
class SafetensorsFile:
    """tensors: by name.  buffers: the names of those that were passed over."""

    tensors: Mapping[str, StoredTensor]
    buffers: frozenset[str]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[list[Size], Meta(max_length=MAX_DIMS)]
    data_offsets: tuple[Size, Size]


_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry = msgspec.json.Decoder(_Entry)
_weight_map = msgspec.json.Decoder(dict[str, str])


def read_safetensors(data: memoryview, *, where: str) -> SafetensorsFile:
    """Read a whole file in `data`; `where` names it in errors. Raises ModelFormatError alone."""
    if data.nbytes < 8:
        raise _damaged(where, f"{data.nbytes} bytes are too few for a header")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER, data.nbytes - 8):
        raise _damaged(where, f"a header of {length} bytes does not fit into a file of {data.nbytes}")
    body = data[8 + length :]
    entries = _read_header(bytes(data[8 : 8 + length]), where)
    _check_tiling(entries, body.nbytes, where)
    buffers = frozenset(name for name, entry in entries.items() if entry.dtype in BUFFER_DTYPES)
    tensors = {
        name: StoredTensor(name, _SCHEMES[entry.dtype], tuple(entry.shape), body[slice(*entry.data_offsets)])
        for name, entry in entries.items()
        if name not in buffers
    }
    return SafetensorsFile(tensors, buffers)


def read_index(raw: bytes, *, where: str) -> dict[str, str]:
    """model.safetensors.index.json's weight_map: tensor name -> file name, which is always a plain one."""
    try:
        table = _weight_map.decode(_object.decode(raw).get("weight_map", msgspec.Raw(b"null")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(where, f"weight_map is missing or damaged: {error}") from error
    if not table:
        raise _damaged(where, "weight_map is empty")
    for file in set(table.values()):
        if not file.endswith(".safetensors") or any(c in file for c in "/\\\0") or file.startswith("."):
            raise ModelFormatError(f"{where}: {file[:80]!r} is not the plain name of a .safetensors file")
    return table


def _read_header(raw: bytes, where: str) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    name = "header"
    try:
        for name, text in _object.decode(raw).items():
            if name != "__metadata__":
                entries[name] = _entry.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(where, f"{name[:80]!r} is damaged: {error}") from error
    for name, entry in entries.items():
        _check_entry(name[:80], entry, where)
    return entries


def _check_entry(name: str, entry: _Entry, where: str) -> None:
    scheme = _SCHEMES.get(entry.dtype)
    if scheme is not None and scheme.group == 1:
        element = scheme.group_bytes
    elif entry.dtype in BUFFER_DTYPES:
        element = BUFFER_DTYPES[entry.dtype]
    else:
        raise ModelFormatError(
            f"{where}: tensor {name!r} is stored as {entry.dtype[:40]}, which is not supported; supported are F32, "
            "F16, BF16 and F8_E4M3. Take the unquantized model, or a GGUF file of it"
        )
    begin, end = entry.data_offsets
    if end - begin != prod(entry.shape) * element:
        raise _damaged(where, f"tensor {name!r}: {entry.shape} of {entry.dtype} does not take {end - begin} bytes")


def _check_tiling(entries: dict[str, _Entry], size: int, where: str) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise _damaged(where, f"tensor {name[:80]!r} begins at {begin}, which {problem}")
        position = end
    if position != size:
        raise _damaged(where, f"its tensors take {position} bytes, {size} are there")


def _damaged(where: str, what: str) -> ModelFormatError:
    return ModelFormatError(f"{where}: {what}; the file is damaged, download it again")

"""A GGUF file's bytes in, its metadata and views of its tensors out. Nothing in the file is trusted.

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys:     string name, u32 type, value          string: u64 length, UTF-8
    tensors:  string name, u32 dims, u64 dim[dims] (innermost first), u32 type, u64 offset from the data's start
    padding to general.alignment (32), then the data

Every count, length and offset is checked against the bytes that are left before it is used, and long lists outside
`tokenizer.*` are passed over, so memory stays within a small multiple of the vocabulary's size. Only ModelFormatError
comes out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import SCHEMES, Scheme, StoredTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20

# Type number of a metadata value -> struct format.
SCALARS: dict[int, Any] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# ggml's type number -> name; those in SCHEMES can be run.
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

# The least bytes of one key (name length, type, value) and of one tensor description (name length, dims, type, offset).
LEAST_KEY, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8

SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)$", re.I)

# Files that go with a model: its projector, its importance matrix. llama.cpp knows them by the same names.
COMPANION_NAME = re.compile(r"mmproj|imatrix", re.I)

# Elements of a list outside `tokenizer.*` from which on it is passed over: those that are read have one a layer.
MAX_LIST = 1 << 16

# What a file may take where its size is not known.
MAX_FILE = 1 << 62


class IncompleteHeaderError(ModelFormatError):
    """The bytes that are here end within the header; the file may well be whole where it lies."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor; shape outermost first, `nbytes` bytes from byte `begin` of the file on."""

    name: str
    scheme: Scheme
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """metadata: str, int, float, bool or a list of them by key.  tensors: by GGUF name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class GgufFile:
    """A GgufHeader with the tensors' bytes."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


class _Cursor:
    """Reads forward through the bytes; asking for more than is left is an error that says what was being read.

    size: of the file that `data` is the beginning of.
    """

    def __init__(self, data: memoryview, where: str, size: int) -> None:
        self.data, self.where, self.size, self.position = data, where, size, 0

    def error(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.where}: {what} (byte {self.position}); the file is damaged, download it again")

    def incomplete(self, what: str) -> IncompleteHeaderError:
        return IncompleteHeaderError(
            f"{self.where}: {what} runs past the {self.data.nbytes} bytes that are here; download it again"
        )

    def ends(self, at: int, what: str) -> ModelFormatError:
        """For what ends at a byte that is not here."""
        return self.incomplete(what) if at <= self.size else self.error(f"{what} runs past the end of the file")

    @property
    def left(self) -> int:
        return self.size - self.position

    def need(self, size: int, what: str) -> None:
        if size > self.left:
            raise self.error(f"{what} takes {size} bytes, {self.left} are left")
        if size > self.data.nbytes - self.position:
            raise self.incomplete(what)

    def scalar(self, form: str, what: str) -> Any:
        size = struct.calcsize("<" + form)
        self.need(size, what)
        (value,) = struct.unpack_from("<" + form, self.data, self.position)
        self.position += size
        return value

    def string(self, what: str) -> str:
        """Strict UTF-8: for names."""
        length = self.scalar("Q", f"the length of {what}")
        self.need(length, what)
        raw = bytes(self.data[self.position : self.position + length])
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8") from error
        self.position += length
        return text

    def strings(self, count: int, what: str, *, keep: bool = True) -> list[str]:
        """Tokens may hold broken UTF-8, which becomes U+FFFD. A tight loop: a vocabulary has a quarter million.

        keep: else they are only passed over, in a fifth of the time.
        """
        self.need(8 * count, what)
        data, size, position = self.data, self.data.nbytes, self.position
        length_at, out = struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            begin = position + 8
            if begin > size:
                raise self.ends(begin, what)
            position = begin + length_at(data, position)[0]
            if position > size:
                raise self.ends(position, f"{what} holds a string that")
            if keep:
                out.append(str(data[begin:position], "utf-8", "replace"))
        self.position = position
        return out

    def value(self, kind: int, what: str, *, most: int) -> Any:
        """A list of more than `most` elements is passed over and comes out as None."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind == STRING:
            return self.strings(1, what)[0]
        if kind == ARRAY:
            return self.array(what, most=most)
        raise self.error(f"{what} has the unknown value type {kind}")

    def array(self, what: str, *, most: int) -> list[Any] | None:
        kind, count = self.scalar("I", f"the type of {what}"), self.scalar("Q", f"the length of {what}")
        if kind == STRING:
            strings = self.strings(count, what, keep=count <= most)
            return strings if count <= most else None
        if kind not in SCALARS:
            raise self.error(f"{what} is an array of the value type {kind}; arrays of arrays are not supported")
        size = struct.calcsize("<" + SCALARS[kind]) * count
        self.need(size, what)
        raw = self.data[self.position : self.position + size]
        self.position += size
        return raw.cast(SCALARS[kind]).tolist() if count <= most else None


def read_gguf(data: memoryview, *, where: str, vocabulary: bool = True) -> GgufFile:
    """Read the header of a whole file in `data`; `where` names it in errors. Raises ModelFormatError alone.

    vocabulary=False leaves the lists among `tokenizer.*` out.
    """
    header = read_header(data, where=where, size=data.nbytes, vocabulary=vocabulary)
    tensors = {
        info.name: StoredTensor(info.name, info.scheme, info.shape, data[info.begin : info.begin + info.nbytes])
        for info in header.tensors.values()
    }
    return GgufFile(header.metadata, tensors)


def read_header(data: memoryview, *, where: str, size: int = MAX_FILE, vocabulary: bool = True) -> GgufHeader:
    """Read the header that `data` begins with; the tensors themselves need not be there.

    size: the whole file's bytes, if known.  vocabulary: as for read_gguf.
    Raises IncompleteHeaderError where more of the file is needed, and otherwise ModelFormatError alone.
    """
    cursor = _Cursor(data, where, size)
    tensor_count, key_count = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for index in range(key_count):
        key = cursor.string(f"the name of key {index}")
        if key in metadata:
            raise cursor.error(f"key {key!r} comes twice")
        most = (cursor.size if vocabulary else -1) if key.startswith("tokenizer.") else MAX_LIST
        value = cursor.value(cursor.scalar("I", f"the type of {key}"), key, most=most)
        if value is not None:
            metadata[key] = value
    alignment = _alignment(cursor, metadata)
    infos = [_info(cursor, index, alignment) for index in range(tensor_count)]
    start = (cursor.position + alignment - 1) // alignment * alignment
    infos = [replace(info, begin=start + info.begin) for info in infos]
    _check_places(cursor, infos, start)
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.error(f"tensor {info.name!r} comes twice")
        tensors[info.name] = info
    return GgufHeader(metadata, tensors)


def split_parts(name: str) -> list[str]:
    """The file names of all parts of a split GGUF, given its first one; just [name] for an unsplit one.

    Raises ModelFormatError for another part than the first.
    """
    match = SPLIT_NAME.match(name)
    if match is None:
        return [name]
    stem, number, count, end = match["stem"], int(match["number"]), int(match["count"]), match["end"]
    if number != 1 or not 1 <= count <= 9999:
        raise ModelFormatError(f"{name} is not the first part of a split model; give {stem}-00001-of-{count:05d}{end}")
    return [f"{stem}-{part:05d}-of-{count:05d}{end}" for part in range(1, count + 1)]


def is_gguf(name: str) -> bool:
    """By the end of a file's name; some write it in capitals."""
    return name.lower().endswith(".gguf")


def gguf_models(names: Iterable[str]) -> list[str]:
    """Of file names or paths, the .gguf that are a whole model or the first part of one; those that go with a model, by
    their names, only where there are no others."""
    ggufs = filter(is_gguf, names)
    firsts = [name for name in ggufs if (match := SPLIT_NAME.match(name)) is None or int(match["number"]) == 1]
    return [name for name in firsts if not COMPANION_NAME.search(name.rpartition("/")[2])] or firsts


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of keys."""
    if bytes(cursor.data[:4]) != MAGIC:
        raise cursor.error("does not begin with GGUF")
    cursor.position = 4
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        if version and not version & 0xFFFF:
            raise ModelFormatError(f"{cursor.where} is a big-endian GGUF file; only little-endian ones are supported")
        raise ModelFormatError(f"{cursor.where} is GGUF version {version}; supported are 2 and 3, convert it again")
    tensors, keys = cursor.scalar("Q", "the number of tensors"), cursor.scalar("Q", "the number of keys")
    for count, least, what in ((tensors, LEAST_TENSOR, "tensors"), (keys, LEAST_KEY, "keys")):
        if count * least > cursor.left:
            raise cursor.error(f"{count} {what} do not fit into {cursor.left} bytes")
    return tensors, keys


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(f"general.alignment must be a power of two up to {MAX_ALIGNMENT}, got {str(value)[:40]}")
    return value


def _info(cursor: _Cursor, index: int, alignment: int) -> TensorInfo:
    """The next tensor's; `begin` still counts from the start of the data, which is not known yet."""
    name = cursor.string(f"the name of tensor {index}")
    count = cursor.scalar("I", f"the dimensions of {name}")
    if count > MAX_DIMS:
        raise cursor.error(f"tensor {name!r} has {count} dimensions, at most {MAX_DIMS} are allowed")
    shape = tuple(cursor.scalar("Q", f"the shape of {name}") for _ in range(count))[::-1]
    kind = cursor.scalar("I", f"the type of {name}")
    offset = cursor.scalar("Q", f"the offset of {name}")
    scheme = SCHEMES.get(TENSOR_TYPES.get(kind, ""))
    if scheme is None:
        raise ModelFormatError(
            f"{cursor.where}: tensor {name!r} is stored as {TENSOR_TYPES.get(kind, f'type {kind}')}, which is not "
            f"supported; supported are {', '.join(SCHEMES)}. Take a file in one of these"
        )
    row = shape[-1] if shape else 1
    if row % scheme.group or 0 in shape:
        raise cursor.error(f"tensor {name!r} has the shape {list(shape)}, which {scheme.name} cannot have")
    if offset % alignment:
        raise cursor.error(f"tensor {name!r} begins at {offset}, which is no multiple of the alignment {alignment}")
    return TensorInfo(name, scheme, shape, offset, prod(shape) // scheme.group * scheme.group_bytes)


def _check_places(cursor: _Cursor, infos: list[TensorInfo], start: int) -> None:
    """Every tensor lies inside the file and none overlaps another."""
    ordered = sorted(infos, key=lambda info: info.begin)
    for info in ordered:
        if info.begin + info.nbytes > cursor.size:
            room = max(cursor.size - start, 0)
            raise cursor.error(
                f"tensor {info.name!r} takes {info.nbytes} bytes from {info.begin - start} on, the data has {room}"
            )
    for before, after in pairwise(ordered):
        if before.begin + before.nbytes > after.begin:
            raise cursor.error(f"tensors {before.name!r} and {after.name!r} overlap")

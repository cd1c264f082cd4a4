"""In: libocta_cpu.so, where something was compiled. Out: its functions and structs, typed; None where there is none."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

import numpy as np

from octavo.base.types.tensor import SCHEMES

_log = logging.getLogger(__name__)
_ABI = 1
LIBRARY = Path(__file__).with_name("libocta_cpu.so")
SCHEME_IDS = {name: index for index, name in enumerate(SCHEMES)}
"""Scheme name -> its number in csrc/matmul.h."""

OPS = {
    "rope_table": 0,
    "embed": 1,
    "add": 2,
    "rms_norm": 3,
    "quantize": 4,
    "qk_norm": 5,
    "rope": 6,
    "write_kv": 7,
    "gated": 8,
    "scale": 9,
    "softcap": 10,
    "matmul": 20,
    "attention": 21,
}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
ROWS, PRODUCTS, ATTEND = 0, 1, 2
_LONG, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Instruction(ctypes.Structure):
    """OctInstruction of csrc/program.h, which tells what each op reads."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("op", "scheme", "flag", "shape")),
        *((name, _LONG) for name in ("n", "k", "heads", "kv_heads", "dim", "window", "ld_out", "ld_in")),
        *((name, _FLOAT) for name in ("a", "b")),
        *((name, _POINTER) for name in ("out", "in_", "delta", "weight", "bias", "act")),
        *((name, _POINTER) for name in ("keys", "values", "cos", "sin", "inv_freq")),
    ]


class Group(ctypes.Structure):
    """OctGroup: instructions [first, first + count), run without a barrier between them."""

    _fields_ = [(name, ctypes.c_int32) for name in ("kind", "first", "count", "unused")]


class BatchArrays(ctypes.Structure):
    """OctBatch. spans points at int64 [num_spans, 4]: first, start, count, place of the row's blocks in `table`."""

    _fields_ = [
        *((name, _LONG) for name in ("tokens", "num_spans", "block_size", "num_blocks")),
        *((name, _POINTER) for name in ("ids", "positions", "slots", "spans", "table")),
    ]


_INT = ctypes.c_int32
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "oct_abi": (_INT, ()),
    "oct_instruction_bytes": (_LONG, ()),
    "oct_machine_new": (_POINTER, (_INT, _POINTER, _INT)),
    "oct_machine_free": (None, (_POINTER,)),
    "oct_run": (None, (_POINTER, _POINTER, _LONG, _POINTER, _POINTER)),
    "oct_pack_all": (None, (_POINTER, _INT, _POINTER, _POINTER, _LONG, _LONG)),
    "oct_scan": (None, (_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER)),
    "oct_packed_bytes": (ctypes.c_size_t, (_INT, _LONG, _LONG)),
    "oct_act_bytes": (ctypes.c_size_t, (_INT, _LONG, _LONG)),
    "oct_set_variant": (_INT, (ctypes.c_char_p,)),
    "oct_variant": (ctypes.c_char_p, ()),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None, and one line in the log, where none were built or they cannot be used."""
    if not LIBRARY.exists():
        _log.warning("no native kernels were built (no C++ compiler at installation?): NumPy runs the model, slowly")
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        _log.warning("the native kernels cannot be loaded (%s): NumPy runs the model, slowly", error)
        return None
    if loaded.oct_abi() != _ABI or loaded.oct_instruction_bytes() != ctypes.sizeof(Instruction):
        _log.warning("%s is of another version of Octavo; install it again: NumPy runs the model, slowly", LIBRARY)
        return None
    return loaded


def set_variant(name: str) -> bool:
    """Choose among the instruction sets that were built: auto, avx512, avx2, i8mm, neon, scalar. False if it cannot run."""
    loaded = library()
    return loaded is not None and loaded.oct_set_variant(name.encode()) == 0


def pointer(array: np.ndarray | None) -> int | None:
    """An array's address. The caller keeps the array."""
    return None if array is None else array.ctypes.data


def aligned(num_bytes: int) -> np.ndarray:
    """uint8, not cleared, from a multiple of 64 on."""
    room = np.empty(num_bytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_bytes]


class Pool:
    """The native threads, and the kernels that they run. The caller is one of them."""

    def __init__(self, loaded: ctypes.CDLL, threads: int) -> None:
        self.library = loaded
        self.size = threads
        cores = np.array(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [], np.int32)
        self._handle: int | None = loaded.oct_machine_new(threads, pointer(cores), len(cores))

    @property
    def variant(self) -> str:
        """The instruction set in use."""
        name: bytes = self.library.oct_variant()
        return name.decode()

    def run(self, groups: ctypes.Array[Group], instructions: ctypes.Array[Instruction], batch: BatchArrays) -> None:
        """Walk a program."""
        self.library.oct_run(self._handle, groups, len(groups), instructions, ctypes.byref(batch))

    def pack(self, scheme: str, stored: memoryview, *, n: int, k: int) -> np.ndarray:
        """The packed form of a stored matrix [n, k]."""
        number = SCHEME_IDS[scheme]
        packed = aligned(self.library.oct_packed_bytes(number, n, k))
        source = np.frombuffer(stored, np.uint8)
        self.library.oct_pack_all(self._handle, number, pointer(source), pointer(packed), n, k)
        return packed

    def scan(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row of x [N, width]: whether all of it is finite, and where its largest value comes first."""
        finite, best = np.empty(len(x), np.bool_), np.empty(len(x), np.int64)
        if len(x):
            self.library.oct_scan(self._handle, pointer(x), *x.shape, pointer(finite), pointer(best))
        return finite, best

    def close(self) -> None:
        """End the threads; idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.library.oct_machine_free(handle)

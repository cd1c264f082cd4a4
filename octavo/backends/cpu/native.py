"""In: libocta_cpu.so, where something was compiled. Out: its functions and structs, typed; None where there is none."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.backends.cpu.cache import CELLS
from octavo.backends.cpu.host import core_cpus
from octavo.backends.cpu.sampler import Draw
from octavo.base.errors import ConfigError
from octavo.base.types.tensor import SCHEMES

_log = logging.getLogger(__name__)
_ABI = 11
LIBRARY = Path(__file__).with_name("libocta_cpu.so")
PACKED_ONLY = ("BF16_SHORT",)
"""Schemes of packed matrices that no file has: BF16_SHORT is BF16 in 12 bits a weight, none lost."""
SCHEME_IDS = {name: index for index, name in enumerate((*SCHEMES, *PACKED_ONLY))}
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
    "check": 9,
    "gather": 10,
    "add_gated": 11,
    "layer_norm": 12,
    "activate": 13,
    "matmul": 20,
    "attention": 21,
    "head": 22,
    "experts": 23,
    "gate_up": 24,
    "span_attention": 25,
}
CELL_IDS = {dtype: index for index, dtype in enumerate(CELLS.values())}
"""What a cache is an array of -> OctCells of csrc/program.h."""
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
IDS = {"tokens": 0, "positions": 1, "types": 2}
"""What embed looks up -> its flag."""
ROWS, PRODUCTS, ATTEND, MIX, SPANS = 0, 1, 2, 3, 4
_LONG, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Instruction(ctypes.Structure):
    """OctInstruction of csrc/program.h, which tells what each op reads."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("op", "scheme", "flag", "shape")),
        *((name, _LONG) for name in ("n", "k", "heads", "kv_heads", "dim", "window", "ld_out", "ld_in")),
        *((name, _FLOAT) for name in ("a", "b")),
        *((name, _POINTER) for name in ("out", "in_", "delta", "weight", "bias", "act")),
        *((name, _POINTER) for name in ("keys", "values", "key_scales", "value_scales", "cos", "sin", "inv_freq")),
        ("second_scheme", _LONG),
        *((name, _POINTER) for name in ("second_weight", "second_act", "second_bias")),
    ]


class Group(ctypes.Structure):
    """OctGroup: instructions [first, first + count), run without a barrier between them."""

    _fields_ = [(name, ctypes.c_int32) for name in ("kind", "first", "count", "tails")]


@dataclass(frozen=True)
class Lowered:
    """A program as csrc/program.h has it; valid while the arrays that it was made from live.

    tail: the group from which on rows are the batch's tails.  kept: what instructions point at beside those arrays.
    """

    instructions: ctypes.Array[Instruction]
    groups: ctypes.Array[Group]
    tail: int
    kept: tuple[object, ...] = ()


class BatchArrays(ctypes.Structure):
    """OctBatch. spans points at int64 [num_spans, 5]: first, start, count, and where the row's blocks begin in `table`,
    its tokens in `known`. ids, positions and slots are made from these unless they are given."""

    _fields_ = [
        *((name, _LONG) for name in ("tokens", "num_spans", "num_tails", "block_size", "num_blocks")),
        *((name, _LONG) for name in ("not_finite", "best_only")),
        *((name, _POINTER) for name in ("ids", "positions", "slots", "spans", "table", "known", "tails")),
        *((name, _POINTER) for name in ("finite", "tails_finite", "best", "types")),
    ]


class DrawArrays(ctypes.Structure):
    """OctDraw of csrc/program.h: a sampler.Draw, and its token."""

    _fields_ = [
        ("logits", _POINTER),
        ("key", ctypes.c_uint64),
        ("top_p", ctypes.c_double),
        *((name, _LONG) for name in ("top_k", "token")),
        *((name, _FLOAT) for name in ("temperature", "least")),
    ]


class Experts(ctypes.Structure):
    """OctExperts of csrc/experts.h. matrices points at ExpertMatrix [experts, 3]."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("experts", "top_k", "act", "renormalize")),
        *((name, _LONG) for name in ("hidden", "width", "gate_slot", "up_slot", "wide_slot")),
        *((name, _POINTER) for name in ("x", "router", "out", "matrices", "room")),
    ]


class ExpertMatrix(ctypes.Structure):
    """OctMatrix: a packed matrix and its scheme."""

    _fields_ = [("weight", _POINTER), ("scheme", ctypes.c_int64)]


_INT = ctypes.c_int32
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "oct_abi": (_INT, ()),
    "oct_instruction_bytes": (_LONG, ()),
    "oct_machine_new": (_POINTER, (_INT, _POINTER, _INT)),
    "oct_machine_free": (None, (_POINTER,)),
    "oct_run": (None, (_POINTER, _POINTER, _LONG, _POINTER, _POINTER)),
    "oct_experts_room": (ctypes.c_size_t, (_POINTER, _LONG, _INT)),
    "oct_layout": (_INT, ()),
    "oct_pack_all": (_INT, (_POINTER, _INT, _INT, _POINTER, _POINTER, _LONG, _LONG)),
    "oct_draw": (None, (_POINTER, _POINTER, _LONG, _LONG)),
    "oct_packed_bytes": (ctypes.c_size_t, (_INT, _LONG, _LONG)),
    "oct_act_bytes": (ctypes.c_size_t, (_INT, _LONG, _LONG)),
    "oct_set_variant": (_INT, (ctypes.c_char_p,)),
    "oct_variant": (ctypes.c_char_p, ()),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None, and one line in the log, where none were built or they cannot be used."""
    loaded = _load()
    if isinstance(loaded, str):
        _log.warning("%s: NumPy runs the model, slowly", loaded)
        return None
    return loaded


def _load() -> ctypes.CDLL | str:
    """The kernels, or why there are none."""
    if not LIBRARY.exists():
        return "no native kernels were built (no C++ compiler at installation?)"
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return f"the native kernels cannot be loaded ({error})"
    if loaded.oct_abi() != _ABI or loaded.oct_instruction_bytes() != ctypes.sizeof(Instruction):
        return f"{LIBRARY} is of another version of Octavo; install it again"
    return loaded


def diagnose() -> tuple[str, str]:
    """How the kernels are, and what would make them faster: "" where nothing would."""
    loaded = _load()
    if isinstance(loaded, str):
        return f"{loaded}: NumPy runs the model, slowly", "install a C++ compiler (g++ or clang), then octavo again"
    variant = loaded.oct_variant().decode()
    if variant == "scalar":
        return (
            "the processor has none of AVX-512, AVX2 and NEON: products run one number at a time",
            "use a processor with AVX2 or NEON (of a virtual machine: pass the host's CPU flags through)",
        )
    return f"native, {variant}", ""


def rounds(activation_dtype: str) -> bool:
    """Whether products round their activations, where activation_dtype is as DeviceConfig's: only native ones do."""
    return activation_dtype != "float32" and library() is not None


def set_variant(name: str) -> bool:
    """Choose what was built: auto, avx512, avx512vnni, avxvnni, avx2, i8mm, neon or scalar.

    False if this processor cannot run it.
    """
    loaded = library()
    return loaded is not None and loaded.oct_set_variant(name.encode()) == 0


def pointer(array: np.ndarray | None) -> int | None:
    """An array's address. The caller keeps the array."""
    return None if array is None else array.ctypes.data


PIECE = 32 << 20
"""Bytes that a Room asks for at a time."""


def aligned(num_bytes: int) -> np.ndarray:
    """uint8, not cleared, from a multiple of 64 on."""
    room = np.empty(num_bytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_bytes]


class Room:
    """Memory for many small matrices side by side. NumPy asks for huge pages where an array has 4 MiB or more: a matrix
    of its own array, smaller than that, would be read through hundreds of small pages.
    """

    def __init__(self) -> None:
        self._piece = aligned(0)
        self._used = 0

    def take(self, num_bytes: int) -> np.ndarray:
        """As aligned."""
        if num_bytes >= PIECE:
            return aligned(num_bytes)
        if self._used + num_bytes > len(self._piece):
            self._piece, self._used = aligned(PIECE), 0
        start = self._used
        self._used += -(-num_bytes // 64) * 64
        return self._piece[start : start + num_bytes]

    def give_back(self, last: np.ndarray) -> None:
        """What was taken last is not needed."""
        if len(last) < PIECE:
            self._used -= -(-len(last) // 64) * 64


class Pool:
    """The native threads, and the kernels that they run. The caller is one of them.

    Raises ConfigError where the system refuses so many.
    """

    def __init__(self, loaded: ctypes.CDLL, threads: int) -> None:
        self.library = loaded
        self.size = threads
        self._room = Room()
        cores = np.array(core_cpus(threads), np.int32)
        self._handle: int | None = loaded.oct_machine_new(threads, pointer(cores), len(cores))
        if self._handle is None:
            raise ConfigError(
                f"threads={threads}: the system refuses so many (a limit on processes, threads or memory); lower "
                "--threads, or raise the limit",
                param="threads",
            )

    @property
    def variant(self) -> str:
        """The instruction set in use."""
        name: bytes = self.library.oct_variant()
        return name.decode()

    def run(self, program: Lowered, batch: BatchArrays, *, body: bool = True) -> None:
        """Walk a program, or its groups of tails alone; those only where the batch has tails."""
        first = 0 if body else program.tail
        count = (len(program.groups) if batch.num_tails else program.tail) - first
        at = ctypes.byref(program.groups, first * ctypes.sizeof(Group))
        self.library.oct_run(self._handle, at, count, program.instructions, ctypes.byref(batch))

    @property
    def layout(self) -> int:
        """The version of the packed form."""
        return int(self.library.oct_layout())

    def packed_bytes(self, scheme: str, *, n: int, k: int) -> int:
        """Of the packed form of a matrix [n, k]."""
        return int(self.library.oct_packed_bytes(SCHEME_IDS[scheme], n, k))

    def pack(self, scheme: str, stored: memoryview, *, n: int, k: int, to_float: bool = False) -> np.ndarray:
        """The packed form of a stored matrix [n, k].  to_float: made float32 first, so the form is F32's."""
        packed = self._room.take(self.packed_bytes("F32" if to_float else scheme, n=n, k=k))
        if not self._pack(scheme, stored, packed, n=n, k=k, to_float=to_float):
            raise ValueError(f"{scheme} cannot hold this matrix; pack_short tells")
        return packed

    def pack_short(self, stored: memoryview, *, n: int, k: int) -> np.ndarray | None:
        """A stored BF16 matrix [n, k] as BF16_SHORT; None where its exponents are too varied for that."""
        packed = self._room.take(self.packed_bytes("BF16_SHORT", n=n, k=k))
        if self._pack("BF16_SHORT", stored, packed, n=n, k=k):
            return packed
        self._room.give_back(packed)
        return None

    def _pack(
        self, scheme: str, stored: memoryview, packed: np.ndarray, *, n: int, k: int, to_float: bool = False
    ) -> bool:
        """False where the scheme cannot hold them."""
        source = np.frombuffer(stored, np.uint8)
        number = SCHEME_IDS[scheme]
        refused = self.library.oct_pack_all(self._handle, number, to_float, pointer(source), pointer(packed), n, k)
        return not refused

    def draw(self, draws: list[Draw]) -> list[int]:
        """The token of each draw, of which there is one at least; -1 where none may be drawn. As sampler.choose."""
        rows = (DrawArrays * len(draws))(
            *(
                DrawArrays(
                    logits=pointer(draw.scores),
                    key=draw.key,
                    top_p=draw.top_p,
                    top_k=draw.top_k,
                    temperature=draw.temperature,
                    least=math.log(draw.min_p) if draw.min_p > 0 else -math.inf,
                )
                for draw in draws
            )
        )
        self.library.oct_draw(self._handle, rows, len(draws), len(draws[0].scores))
        return [row.token for row in rows]

    def close(self) -> None:
        """End the threads; idempotent."""
        self._room = Room()
        handle, self._handle = self._handle, None
        if handle is not None:
            self.library.oct_machine_free(handle)

"""In: a place where kernels run outside this process. Out: them built for it, and called there as the library is here.

sanitized: this processor, with the address and undefined behaviour sanitizers. raced: with the thread sanitizer.
arm: an emulated one. Each is the kernels' own sources (by build.py) and native/driver.cpp; what was built is kept in
pytest's cache until a source or the compiler changes.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.backends.cpu import build, native

DRIVER = Path(__file__).parent / "native" / "driver.cpp"
X86, ARM = ("avx512", "avx512vnni", "avxvnni", "avx2", "scalar"), ("i8mm", "neon", "scalar")
VARIANTS = (*X86[:-1], *ARM)
HERE = X86 if platform.machine() in ("x86_64", "AMD64") else ARM


@dataclass(frozen=True)
class Place:
    """cxx: the compiler, CXX or the system's own where it is empty.  variants: those that may run there."""

    flags: tuple[str, ...]
    variants: tuple[str, ...] = HERE
    cxx: str = ""
    runs: tuple[str, ...] = ()


_QEMU = ("qemu-aarch64", "-cpu")
_SANITIZED = ("-O1", "-g1", "-fno-omit-frame-pointer", "-DOCT_ROW_STEPS=1,2,5", "-DOCT_AVX512_AS_VNNI")
_CALLS = ("--param", "asan-instrumentation-with-call-threshold=0")  # compiles in half the time
AS_AVX512 = (*build._FLAGS["x86_64"]["avx2"], "-mavx512vl", "-mavx512vnni")
"""Flags for matmul_avxvnni.cpp: the one instruction that it adds, where the processor has it as a part of AVX-512."""
_OWN = tuple(name for name in HERE if name != "avx512vnni")  # which is avx512 but for two functions
PLACES = {
    "sanitized": Place((*_SANITIZED, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *_CALLS), _OWN),
    "raced": Place((*_SANITIZED, "-fsanitize=thread")),
    "arm": Place(("-O1", "-static"), ARM, "aarch64-linux-gnu-g++", (*_QEMU, "max")),
}
ARM_CORES = {"max": "i8mm", "neoverse-n1": "neon", "cortex-a72": "scalar"}
"""Processors that qemu knows, and the variant that each must choose by itself."""


def _compiler(place: Place) -> build.Compiler:
    with pytest.MonkeyPatch.context() as patch:
        if place.cxx:
            patch.setenv("CXX", place.cxx)
        return build.find_compiler()


def driver(name: str, cache: Path) -> Path:
    """The driver of a place, built where it is not in `cache`; skips where its tools are missing."""
    place = PLACES[name]
    for tool in (place.cxx, *place.runs[:1]):
        if tool and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (.ci/install-cross does it)")
    compiler = _compiler(place)
    version = subprocess.run([*compiler.command, "--version"], capture_output=True, check=True).stdout
    sources = [DRIVER, Path(build.__file__), *sorted(build.SOURCES.iterdir())]
    told = repr((version, place, AS_AVX512)).encode()
    key = hashlib.sha256(told + b"".join(path.read_bytes() for path in sources)).hexdigest()
    made = cache / f"{name}-{key[:16]}"
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in cache.glob(f"{name}-*"):
                old.unlink()
            with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
                patch.setitem(build._FLAGS["x86_64"], "avxvnni", AS_AVX512)
                objects = build.compile_sources(Path(temporary), compiler=compiler, extra=place.flags)
                flags = [*build.COMMON, *place.flags, f"-I{build.SOURCES}"]
                linked = Path(temporary, "driver")
                subprocess.run([*compiler.command, *flags, str(DRIVER), *objects, "-o", str(linked)], check=True)
                shutil.move(linked, made)
    return made


Argument = int | np.ndarray | ctypes.Array | ctypes.Structure | None


def _span(reached: Any) -> tuple[int, int]:
    """Addresses [low, high) of an array or a struct."""
    if isinstance(reached, np.ndarray):
        return np.lib.array_utils.byte_bounds(reached)
    return ctypes.addressof(reached), ctypes.addressof(reached) + ctypes.sizeof(reached)


def _pointers(reached: Any) -> Iterator[int]:
    """Addresses of the fields of a struct, or of an array of them, that are addresses themselves."""
    for each in reached if isinstance(reached, ctypes.Array) else [reached]:
        for name, kind in getattr(each, "_fields_", ()):
            if kind is ctypes.c_void_p:
                yield ctypes.addressof(each) + getattr(type(each), name).offset


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same memory in spans that do not overlap."""
    made: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if made and low < made[-1][1]:
            made[-1] = (made[-1][0], max(high, made[-1][1]))
        else:
            made.append((low, high))
    return made


class Remote:
    """A driver process. Its functions are those of matmul.h and program.h; arrays and structs stand for addresses."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=_environment()
        )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("oct_"):
            raise AttributeError(name)
        return functools.partial(self.call, name)

    def oct_set_variant(self, name: bytes) -> int:
        """As in matmul.h."""
        return self.call("oct_set_variant", np.frombuffer(name + b"\0", np.uint8)) & 0xFFFFFFFF

    def oct_variant(self) -> bytes:
        """As in matmul.h."""
        name = np.zeros(32, np.uint8)
        self.call("name_variant", name)
        return name.tobytes().partition(b"\0")[0]

    def call(self, name: str, *arguments: Argument, reach: Iterable[np.ndarray] = ()) -> int:
        """One call; what it wrote is here afterwards. reach: further memory, to which structs point."""
        given = [a for a in arguments if a is not None and not isinstance(a, int)]
        structs = [a for a in given if not isinstance(a, np.ndarray)]
        spans = _joined(_span(one) for one in (*given, *reach))
        message = [_words(len(name)), name.encode(), _words(len(spans))]
        for low, high in spans:
            message += [_words(low, high - low), ctypes.string_at(low, high - low)]
        at = [
            next((i, p - s[0]) for i, s in enumerate(spans) if s[0] <= p < s[1]) for o in structs for p in _pointers(o)
        ]
        message += [_words(len(at), *(word for place in at for word in place)), _words(len(arguments))]
        for argument in arguments:
            is_number = isinstance(argument, int)
            value = argument if is_number else 0 if argument is None else _span(argument)[0]
            message.append(_words(not is_number, value & 0xFFFFFFFFFFFFFFFF))
        self._send(b"".join(message))
        result, damaged = struct.unpack("=2Q", self._receive(16))
        pointing = {_span(one) for one in structs}
        for low, high in spans:
            found = self._receive(high - low)
            if (low, high) not in pointing and found != ctypes.string_at(low, high - low):
                ctypes.memmove(low, found, high - low)
        assert not damaged, f"{name} wrote beside its memory"
        return result

    def close(self) -> None:
        """End the process; fails where a sanitizer or the kernels had something to say."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        code = self._process.wait()
        text = self._text()
        self._errors.close()
        assert (code, text) == (0, "")

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        if len(found) < size:
            self._fail()
        return found

    def _fail(self) -> None:
        raise AssertionError(f"the driver ended with {self._process.wait()}: {self._text()}")

    def _text(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[:8000]


def _words(*values: int) -> bytes:
    return struct.pack(f"={len(values)}Q", *values)


def _environment() -> dict[str, str]:
    """Nothing preloaded, and the sanitizers' own defaults: what they find makes the process fail."""
    kept = {
        name: value for name, value in os.environ.items() if name != "LD_PRELOAD" and not name.endswith("SAN_OPTIONS")
    }
    return kept | {"TSAN_OPTIONS": "halt_on_error=1"}


@contextmanager
def remote(name: str, cache: Path, *, core: str | None = None) -> Iterator[Remote]:
    """The kernels of a place, or of one of ARM_CORES there; skips where its tools are missing."""
    runs = PLACES[name].runs if core is None else (*_QEMU, core)
    made = Remote([*runs, str(driver(name, cache))])
    yield made
    made.close()


class RemotePool(native.Pool):
    """native.Pool over a Remote; `reach` is the memory of the next run's registers and weights."""

    def __init__(self, library: Remote, threads: int) -> None:
        self.library: Any = library
        self.size = threads
        self.reach: list[np.ndarray] = []
        self._room = native.Room()
        self._handle: int | None = library.oct_machine_new(threads, None, 0)

    def run(self, program: native.Lowered, batch: native.BatchArrays, *, body: bool = True) -> None:
        """As in native.Pool."""
        first = 0 if body else program.tail
        count = (len(program.groups) if batch.num_tails else program.tail) - first
        groups = (native.Group * count)(*program.groups[first : first + count])
        self.library.oct_run(self._handle, groups, count, program.instructions, batch, reach=self.reach)

    def _pack(
        self, scheme: str, stored: memoryview, packed: np.ndarray, *, n: int, k: int, to_float: bool = False
    ) -> bool:
        source = np.frombuffer(stored, np.uint8)
        number = native.SCHEME_IDS[scheme]
        return not self.library.oct_pack_all(self._handle, number, int(to_float), source, packed, n, k)

"""In: csrc/ and a C++ compiler. Out: libocta_cpu.so beside this file or in another folder. Run by setup.py, or by hand.

Nothing of Octavo is imported: an install runs this file before there is an Octavo. What it builds for is what the
compiler makes code for, so that CXX=aarch64-linux-gnu-g++ is all that another processor takes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
LIBRARY = "libocta_cpu.so"
MACOS = "11.0"
"""The oldest macOS whose C++ library has all that the thread pool uses, and the first for ARM."""
COMMON = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-DNDEBUG"),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mprfchw")
_AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    *("-mfma", "-mf16c", "-mprfchw", "-mprefer-vector-width=512"),
)
_NEW = "-mavxvnni"
"""What compilers before GCC 11 and Clang 12 do not know."""
_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": _AVX2,
        "avxvnni": (*_AVX2, _NEW),
        "avx512": (*_AVX512, "-mavx512bf16"),
        "avx512vnni": _AVX512,
    },
    "aarch64": {
        "neon": ("-march=armv8.2-a+dotprod",),
        "i8mm": ("-march=armv8.2-a+dotprod+i8mm+bf16",),
    },
}
_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


class BuildError(Exception):
    """Nothing was built; the message says why."""


@dataclass(frozen=True)
class Compiler:
    """command: to call it.  machine: processor that it makes code for, as Linux names it.  macos: for that system."""

    command: tuple[str, ...]
    machine: str
    macos: bool

    @property
    def system_flags(self) -> tuple[str, ...]:
        """What every call needs on the system that it makes code for."""
        return (f"-mmacosx-version-min={MACOS}",) if self.macos else ()

    def wheel_platform(self, python: str) -> str:
        """The tag of a wheel with what this makes; python: the tag of the Python that builds it."""
        if self.macos:
            return f"macosx_{MACOS.replace('.', '_')}_{'arm64' if self.machine == 'aarch64' else self.machine}"
        return f"linux_{self.machine}" if python.startswith("linux_") and self.machine in _FLAGS else python


def find_compiler() -> Compiler:
    """$CXX, else c++, g++ or clang++. Raises BuildError where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in ([named] if named else []) + [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            target = _run([*candidate, "-dumpmachine"]).strip().lower()  # such as aarch64-linux-gnu
            machine = target.partition("-")[0]
            return Compiler(tuple(candidate), _NAMES.get(machine, machine), "-darwin" in target or "-macos" in target)
    raise BuildError("no C++ compiler was found (g++ or clang++; or name one in CXX)")


def flags_of(source: Path, machine: str) -> list[str]:
    """A file's own flags: its name ends in the instruction set that it is for."""
    own = _FLAGS.get(machine, {}).get(source.stem.rsplit("_", 1)[-1], ())
    # products promise an order of rounding; elsewhere fused operations are as good
    contract = "off" if source.stem.startswith("matmul") else "fast"
    return [*own, f"-ffp-contract={contract}"]


def compile_sources(folder: Path, *, compiler: Compiler, extra: tuple[str, ...] = ()) -> list[Path]:
    """Compile every csrc/*.cpp to an object in `folder`. Raises BuildError."""

    def compile_one(source: Path) -> Path:
        target = folder / (source.stem + ".o")
        own = flags_of(source, compiler.machine)
        if _NEW in own and not _knows(compiler, _NEW):
            own.remove(_NEW)  # the source then does without
        flags = [*COMMON, *compiler.system_flags, *own, *extra]
        _run([*compiler.command, *flags, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(compile_one, sorted(SOURCES.glob("*.cpp"))))


def _knows(compiler: Compiler, flag: str) -> bool:
    try:
        _run([*compiler.command, flag, "-x", "c++", "-fsyntax-only", os.devnull])
    except BuildError:
        return False
    return True


def build(folder: Path = HERE, *, extra: tuple[str, ...] = ()) -> Path:
    """Make folder/libocta_cpu.so. extra: more flags (a sanitizer). Raises BuildError."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as temporary:
        objects = compile_sources(Path(temporary), compiler=compiler, extra=extra)
        made = Path(temporary, LIBRARY)
        _link(compiler, [*extra, *map(str, objects), "-o", str(made)])
        folder.mkdir(parents=True, exist_ok=True)
        # never written in place: a process may have the old one mapped
        staged = folder / (LIBRARY + ".new")
        shutil.copyfile(made, staged)
        staged.replace(folder / LIBRARY)
    return folder / LIBRARY


def _link(compiler: Compiler, rest: list[str]) -> None:
    """The library brings its own C++ runtime where it can: a wheel then runs beside any other."""
    command = [*compiler.command, "-shared", "-pthread", *compiler.system_flags]
    if not compiler.macos:
        try:
            _run([*command, "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", *rest])
            return
        except BuildError:
            pass  # Fedora and its like have the runtime's static half in a package of its own
    _run([*command, *rest])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()[-4000:]}")
    return done.stdout


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build Octavo's native cpu kernels.")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the library goes")
    parser.add_argument("--flag", action="append", default=[], help="a further compiler flag, as --flag=-g")
    arguments = parser.parse_args()
    try:
        print(build(arguments.folder, extra=tuple(arguments.flag)))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

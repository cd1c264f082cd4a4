"""In: csrc/ and a C++ compiler. Out: libocta_cpu.so beside this file or in another folder. Run by setup.py, or by hand.

Nothing of Octavo is imported: an install runs this file before there is an Octavo.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
LIBRARY = "libocta_cpu.so"
COMMON = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-DNDEBUG"),
)
_X86 = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16"),
        *("-mfma", "-mf16c", "-mprefer-vector-width=512"),
    ),
}
_ARM = {"neon": ("-march=armv8.2-a+dotprod+fp16",)}


class BuildError(Exception):
    """Nothing was built; the message says why."""


def find_compiler() -> list[str]:
    """The compiler's command: $CXX, else c++, g++ or clang++. Raises BuildError where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in ([named] if named else []) + [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError("no C++ compiler was found (g++ or clang++; or name one in CXX)")


def flags_of(source: Path, machine: str) -> list[str]:
    """A file's own flags: its name ends in the instruction set that it is for."""
    sets = _X86 if machine in ("x86_64", "amd64") else _ARM if machine in ("aarch64", "arm64") else {}
    own = sets.get(source.stem.rsplit("_", 1)[-1], ())
    # products promise an order of rounding; elsewhere fused operations are as good
    contract = "off" if source.stem.startswith("matmul") else "fast"
    return [*own, f"-ffp-contract={contract}"]


def build(folder: Path = HERE, *, extra: tuple[str, ...] = ()) -> Path:
    """Compile every csrc/*.cpp and link folder/libocta_cpu.so. extra: more flags (a sanitizer). Raises BuildError."""
    compiler = find_compiler()
    machine = platform.machine().lower()
    sources = sorted(SOURCES.glob("*.cpp"))
    with tempfile.TemporaryDirectory() as temporary:
        objects = [Path(temporary, source.stem + ".o") for source in sources]

        def compile_one(pair: tuple[Path, Path]) -> None:
            source, target = pair
            flags = [*COMMON, *flags_of(source, machine), *extra]
            _run([*compiler, *flags, "-c", str(source), "-o", str(target)])

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(compile_one, zip(sources, objects, strict=True)):
                pass
        # the library brings its own C++ runtime where it can: a wheel then runs beside any other
        static = [] if sys.platform == "darwin" else ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]
        made = Path(temporary, LIBRARY)
        _run([*compiler, "-shared", "-pthread", *static, *extra, *map(str, objects), "-o", str(made)])
        folder.mkdir(parents=True, exist_ok=True)
        # never written in place: a process may have the old one mapped
        staged = folder / (LIBRARY + ".new")
        shutil.copyfile(made, staged)
        staged.replace(folder / LIBRARY)
    return folder / LIBRARY


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()[-4000:]}")


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

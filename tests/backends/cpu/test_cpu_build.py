"""What the build makes of a compiler: the target is what that makes code for, not where it runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.backends.cpu import build
from octavo.backends.cpu.build import Compiler

FAKE = """#!{python}
import json, pathlib, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if {refused!r} in sys.argv:
    sys.exit("cannot do " + {refused!r})
if "-dumpmachine" in sys.argv:
    print({machine!r})
if "-o" in sys.argv:
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(b"made")
"""
TARGETS = {
    "x86_64-linux-gnu": Compiler((), "x86_64", False),
    "aarch64-linux-gnu": Compiler((), "aarch64", False),
    "aarch64-unknown-linux-musl": Compiler((), "aarch64", False),
    "arm64-apple-darwin23.1.0": Compiler((), "aarch64", True),
    "x86_64-apple-darwin23.1.0": Compiler((), "x86_64", True),
    "riscv64-linux-gnu": Compiler((), "riscv64", False),
}


@pytest.fixture(params=TARGETS.items(), ids=TARGETS)
def compiler(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Compiler, Path]:
    """A program that only notes its arguments, in CXX: what it claims to make code for, and its notes."""
    machine, expected = request.param
    command, log = tmp_path / "compiler", tmp_path / "log"
    command.write_text(FAKE.format(python=sys.executable, log=str(log), machine=machine, refused=""))
    command.chmod(0o755)
    monkeypatch.setenv("CXX", f"{command} -pipe")
    return Compiler((str(command), "-pipe"), expected.machine, expected.macos), log


def test_flags_are_for_the_target(compiler: tuple[Compiler, Path], tmp_path: Path) -> None:
    expected, log = compiler
    assert build.find_compiler() == expected
    assert build.build(tmp_path / "made", extra=("-g",)).read_bytes() == b"made"
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    compiled = {Path(call[call.index("-c") + 1]).stem: call for call in calls if "-c" in call}
    (linked,) = [call for call in calls if "-shared" in call]
    assert set(compiled) == {path.stem for path in build.SOURCES.glob("*.cpp")}
    for name, flag, machine in (
        ("avx2", "-mavx2", "x86_64"),
        ("avxvnni", "-mavxvnni", "x86_64"),
        ("avx512", "-mavx512bf16", "x86_64"),
        ("avx512vnni", "-mavx512vnni", "x86_64"),
        ("i8mm", "+i8mm", "aarch64"),
        ("neon", "+dotprod", "aarch64"),
    ):
        assert any(flag in given for given in compiled[f"matmul_{name}"]) == (expected.machine == machine)
    for call in [*compiled.values(), linked]:
        assert {"-pipe", "-g"} <= set(call)
        assert any("macosx-version-min" in flag for flag in call) == expected.macos
    assert any("exclude-libs" in flag for flag in linked) != expected.macos
    assert all("-ffp-contract=off" in call for name, call in compiled.items() if name.startswith("matmul"))


def refusing(flag: str, place: Path) -> Path:
    """A program as `compiler` has it, in `place`, that makes code for x86_64 and fails where it is given the flag."""
    command = place / "compiler"
    values = {"python": sys.executable, "log": str(place / "log"), "machine": "x86_64-linux-gnu"}
    command.write_text(FAKE.format(**values, refused=flag))
    command.chmod(0o755)
    return command


def test_without_the_static_runtime_the_shared_one_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(refusing("-static-libstdc++", tmp_path)))
    assert build.build(tmp_path / "made").read_bytes() == b"made"
    refusing("-shared", tmp_path)
    with pytest.raises(build.BuildError, match="cannot do -shared"):
        build.build(tmp_path / "made")


def test_a_compiler_that_does_not_know_avx_vnni(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(refusing("-mavxvnni", tmp_path)))
    assert build.build(tmp_path / "made").read_bytes() == b"made"
    calls = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (call,) = [call for call in calls if str(build.SOURCES / "matmul_avxvnni.cpp") in call]
    assert "-mavx2" in call


def test_a_build_that_fails_leaves_no_older_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    root, made = build.HERE.parents[2], tmp_path / "made" / "octavo/backends/cpu"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(build.HERE, tmp_path / "octavo/backends/cpu", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for refused, there in (("", True), ("-c", False)):
        monkeypatch.setenv("CXX", str(refusing(refused, tmp_path)))
        run = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "made"]
        subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
        assert (made / build.LIBRARY).exists() == there
        assert (made / "build.py").exists()


@pytest.mark.parametrize(
    ("target", "python", "tag"),
    [
        ("x86_64-linux-gnu", "linux_x86_64", "linux_x86_64"),
        ("aarch64-linux-gnu", "linux_x86_64", "linux_aarch64"),
        ("riscv64-linux-gnu", "linux_riscv64", "linux_riscv64"),
        ("aarch64-linux-gnu", "manylinux_2_28_aarch64", "manylinux_2_28_aarch64"),
        ("arm64-apple-darwin23.1.0", "macosx_10_13_universal2", "macosx_11_0_arm64"),
        ("x86_64-apple-darwin23.1.0", "macosx_14_0_arm64", "macosx_11_0_x86_64"),
    ],
)
def test_the_wheel_is_for_the_target(target: str, python: str, tag: str) -> None:
    assert TARGETS[target].wheel_platform(python) == tag


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C"):
        build.find_compiler()


@pytest.mark.parametrize("name", ["matmul_scalar", "ops_portable"])
def test_instruction_sets_share_no_code(name: str, tmp_path: Path) -> None:
    """What a template becomes for one instruction set must not be merged with another: the linker keeps any of them."""
    if shutil.which("nm") is None or sys.platform == "darwin":
        pytest.skip("no nm that tells weak symbols")
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    source, made = build.SOURCES / f"{name}.cpp", tmp_path / "made.o"
    flags = [*build.COMMON, *build.flags_of(source, compiler.machine), "-O1", "-DOCT_ROW_STEPS=1"]
    subprocess.run([*compiler.command, *flags, "-c", str(source), "-o", str(made)], check=True)
    symbols = subprocess.run(["nm", "-C", str(made)], check=True, capture_output=True, text=True).stdout
    assert not [line for line in symbols.splitlines() if " W " in line or " u " in line]

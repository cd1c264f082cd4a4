"""A process of its own: a Variant in, flash-attn-4's forward kernel for it out, a shared object ready to load.

python -m octavo.backends.torch.attention.flash4_compile TARGET ARCH DTYPE HEAD_DIM GROUP WINDOW

Importing the compiler takes seconds and hundreds of MiB, which the engine's process is spared; no GPU is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, NamedTuple

TILE_KEYS = 128
"""Keys a step, for every head_dim up to 128: the memory accelerator brings a block of this size at once."""
FUNCTION = "flash4"
_RUNTIME = "cute_dsl_runtime"


class Variant(NamedTuple):
    """What a kernel is compiled for. arch: as sm_90a.  group: query heads a kv head.  window: 1 where there is one."""

    arch: str
    dtype: str
    head_dim: int
    group: int
    window: int

    @property
    def queries(self) -> int:
        """Rows of a tile: (query, head of the group) pairs."""
        return 192 if self.head_dim <= 96 else 128

    @property
    def weights_in_registers(self) -> bool:
        """Else the softmax's weights go to their product through shared memory."""
        return not 64 < self.head_dim <= 96


def _bare(name: str) -> None:
    """Make `name` a package without running its __init__: flash_attn.cute's and quack's import all their kernels."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"there is no package {name}")
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package


def compile_object(variant: Variant, target: Path) -> None:
    """Compile for the variant; an object file with the one function FUNCTION."""
    os.environ["CUTE_DSL_ARCH"] = variant.arch
    for name in ("quack", "flash_attn", "flash_attn.cute"):
        _bare(name)
    importlib.import_module("quack.dsl")  # changes how tensors are indexed, which the kernels count on
    cutlass = importlib.import_module("cutlass")
    cute = importlib.import_module("cutlass.cute")
    kernels = importlib.import_module("flash_attn.cute.flash_fwd_sm90")
    no_extras = importlib.import_module("flash_attn.cute.utils").AuxData(None, None)
    dtype = {"bfloat16": cutlass.BFloat16, "float16": cutlass.Float16}[variant.dtype]

    def tensor(axes: int, kind: Any, divisible: int) -> Any:
        """Of any sizes and strides; the last axis contiguous, the others at multiples of `divisible` elements."""
        strides = [cute.sym_int64(divisibility=divisible) for _ in range(axes - 1)]
        sizes = tuple(cute.sym_int() for _ in range(axes))
        align = divisible * kind.width // 8
        return cute.runtime.make_fake_tensor(kind, sizes, stride=(*strides, 1), assumed_align=align)

    kernel = kernels.FlashAttentionForwardSm90(
        dtype,
        variant.head_dim,
        variant.head_dim,
        variant.group,
        is_causal=not variant.window,
        is_local=bool(variant.window),
        pack_gqa=variant.group > 1,
        tile_m=variant.queries,
        tile_n=TILE_KEYS,
        num_stages=2,
        num_threads=384,
        Q_in_regs=False,
        intra_wg_overlap=True,
        mma_pv_is_rs=variant.weights_in_registers,
        paged_kv_non_tma=False,
    )
    q, keys, values, out = tensor(3, dtype, 8), tensor(4, dtype, 8), tensor(4, dtype, 8), tensor(3, dtype, 8)
    firsts, lengths, tables = tensor(1, cutlass.Int32, 1), tensor(1, cutlass.Int32, 1), tensor(2, cutlass.Int32, 1)
    window = (cutlass.Int32(1), cutlass.Int32(0)) if variant.window else (None, None)
    stream = cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    arguments = (q, keys, values, out, None, cutlass.Float32(1.0), firsts, None, None, lengths, tables, *window)
    arguments += (None, None, no_extras, None, None, stream)
    compiled = cute.compile(kernel, *arguments, options="--enable-tvm-ffi")
    compiled.export_to_c(object_file_path=str(target), function_name=FUNCTION)


def link(target: Path, shared: Path) -> None:
    """The object file as a shared object that finds the compiler's runtime library where it lies now."""
    runtime = importlib.import_module("cutlass.cute.runtime")
    libraries = [Path(path) for path in runtime.find_runtime_libraries(enable_tvm_ffi=False)]
    folder = next(path.parent for path in libraries if path.name == f"lib{_RUNTIME}.so")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc, clang; or CC) to link the kernel with")
    command = [compiler, "-shared", "-o", str(shared), str(target), f"-L{folder}", f"-l{_RUNTIME}"]
    subprocess.run([*command, f"-Wl,-rpath,{folder}"], check=True)


def main(target: Path, variant: Variant) -> None:
    """Write the shared object `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / "kernel"
        compile_object(variant, part.with_suffix(".o"))
        link(part.with_suffix(".o"), part.with_suffix(".so"))
        part.with_suffix(".so").replace(target)


if __name__ == "__main__":
    path, arch, dtype, *numbers = sys.argv[1:]
    main(Path(path), Variant(arch, dtype, *map(int, numbers)))

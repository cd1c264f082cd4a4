"""Kernels compiled for another process, by forks of one that has imported what they take.

python -m octavo.backends.torch.device.compile_worker CONNECTIONS MODULE... (connections: file descriptors, as 5,6,7)

A fork a connection. In: a Job, as a Python literal. Out, once the kernel is in Triton's cache on disk: "", or else what
went wrong. A fork ends with its connection, so none outlives the process that asks. The device is not touched. torch,
whose import takes longer than any kernel, is not imported: kernels' modules name its types, and call it to launch.
"""

from __future__ import annotations

import ast
import gc
import os
import sys
from functools import reduce
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NamedTuple


class Job(NamedTuple):
    """What triton.compile takes, in plain data."""

    module: str
    function: str
    """Its qualified name in the module."""
    key: str
    """Of the function's source, as the process that asks has it."""
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    target: tuple[str, int | str, int]
    options: dict[str, Any]
    variables: dict[str, str]
    """Of the environment, as far as cache keys depend on it."""
    constants_of: dict[tuple[str, str], Any]
    """By module and name, as the process that asks has them: what a module found out by torch is found out there
    alone."""


class Absent(ModuleType):
    """Stands for a module that is not to be imported: whatever is asked of it is another one of these."""

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Absent:
        return self

    def __or__(self, other: Any) -> Absent:
        return self

    __ror__ = __or__


class WithoutTorch(MetaPathFinder, Loader):
    """Finds torch and what is within it as Absent."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torch" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


def main(connections: str, *modules: str) -> None:
    """Fork when all is imported, and wait for the forks."""
    import triton.compiler  # noqa: F401 (before torch is hidden)
    from triton.runtime.cache import triton_key

    sys.meta_path.insert(0, WithoutTorch())
    for module in modules:
        import_module(module)
    triton_key()  # it digests the compiler's files, once a process
    gc.freeze()
    ours = [Connection(int(each)) for each in connections.split(",")]
    for connection in ours:
        if os.fork() == 0:
            for other in ours:
                if other is not connection:
                    other.close()
            _serve(connection)
            os._exit(0)
    for connection in ours:
        connection.close()
    for _ in ours:
        os.wait()


def _serve(connection: Connection) -> None:
    try:
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()).encode())
    except (EOFError, OSError):
        return  # the process that asks has no more, or has ended


def _answer(message: bytes) -> str:
    try:
        _compile(Job(*ast.literal_eval(message.decode())))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _compile(job: Job) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from triton.language import constexpr

    function: Any = reduce(getattr, job.function.split("."), import_module(job.module))
    for (module, name), value in job.constants_of.items():
        if module in sys.modules:
            vars(sys.modules[module])[name] = constexpr(value)
    # Triton 3.6 computes another one, without their constants, where functions that it calls have no key yet
    function.hash = job.key
    source = ASTSource(function, job.signature, job.constants, job.attributes)
    compile(source, target=GPUTarget(*job.target), options=job.options, _env_vars=job.variables)


if __name__ == "__main__":
    main(*sys.argv[1:])

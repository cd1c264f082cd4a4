"""In: an install or a wheel being built. Out: the native cpu kernels in it, where a C++ compiler is there.

Without one the install goes on, says so in one line, and NumPy runs the model.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PLACE = Path("octavo", "backends", "cpu")


def _builder() -> ModuleType:
    """octavo/backends/cpu/build.py, without its package: Octavo's dependencies are not installed yet."""
    spec = importlib.util.spec_from_file_location("octavo_build", Path(__file__).resolve().parent / PLACE / "build.py")
    if spec is None or spec.loader is None:
        raise ImportError("octavo/backends/cpu/build.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


BUILDER = _builder()


class BuildWithKernels(build_py):
    """Adds libocta_cpu.so to the built package, or beside the sources where the install is editable."""

    def run(self) -> None:
        """Copy the package, then compile."""
        super().run()
        folder = Path(__file__).resolve().parent if self.editable_mode else Path(self.build_lib)
        try:
            made = BUILDER.build(folder / PLACE)
        except BUILDER.BuildError as error:
            # of an earlier build: it need not fit these sources
            (folder / PLACE / BUILDER.LIBRARY).unlink(missing_ok=True)
            logging.warning("octavo: the native cpu kernels were not built, NumPy will run the model: %s", error)
        else:
            logging.info("octavo: built %s", made)


class PlatformDistribution(Distribution):
    """With kernels an install belongs to one platform."""

    def has_ext_modules(self) -> bool:
        """Whether there will be kernels: a compiler is there."""
        try:
            BUILDER.find_compiler()
        except BUILDER.BuildError:
            return False
        return True


class WheelWithKernels(bdist_wheel):
    """A wheel with kernels is for any Python 3 on one platform; one without is for every platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Nothing depends on Python's version or ABI; the platform is what the compiler makes code for."""
        _, _, platform = super().get_tag()
        if self.root_is_pure or self.plat_name_supplied:
            return ("py3", "none", platform)
        return ("py3", "none", BUILDER.find_compiler().wheel_platform(platform))


setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelWithKernels})

"""Finding families: built in, registered from outside, and from an installed package."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import checkpoints
import encoders
import pytest

from octavo.base.errors import ConfigError, ModelFormatError, UnsupportedError
from octavo.models import llama, registry
from octavo.models.registry import Family, build_spec, families, find_family, register_model

CONFIG = checkpoints.CASES["llama"]().to_dict()
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "octavo-tortoise"
version = "1.0"

[project.entry-points."octavo.models"]
tortoise = "tortoise"
broken_tortoise = "tortoise_that_is_not_there"
empty_tortoise = "json"

[tool.setuptools]
py-modules = ["tortoise"]
"""
MODULE = '''
"""Llama's layers under another name, with twice the embedding."""
from dataclasses import replace

from octavo.models import llama

names = llama.names


def spec(config):
    return replace(llama.spec(config), family="tortoise", embedding_scale=2.0)
'''


@pytest.fixture
def registered() -> Iterator[None]:
    yield
    registry._registered.clear()


def test_built_in_families() -> None:
    built_in = registry._built_in()
    assert {"llama", "bert"} <= built_in <= set(families())
    # Whatever stands in the package is a helper or a family with the two functions, and has a parity case.
    decoders = {make().model_type for make in checkpoints.CASES.values()}
    assert decoders | {make()[0].model_type.replace("-", "_") for make in encoders.CASES.values()} == built_in
    assert find_family({"model_type": "xlm-roberta"}).spec is importlib.import_module("octavo.models.xlm_roberta").spec
    for model_type in built_in:
        assert (
            find_family({"model_type": model_type}).spec is importlib.import_module(f"octavo.models.{model_type}").spec
        )
    for helper in registry.HELPERS:
        importlib.import_module(f"octavo.models.{helper}")


@pytest.mark.parametrize("model_type", ["mamba", "spec", "registry", "__init__", "../llama", "octavo.models.llama", ""])
def test_unknown_types_list_what_is_supported(model_type: str) -> None:
    with pytest.raises(UnsupportedError, match=r"supported are .*llama.*qwen3.*register_model") as caught:
        build_spec({**CONFIG, "model_type": model_type})
    assert caught.value.param == "model_type"


@pytest.mark.parametrize("model_type", [None, 3, ["llama"]])
def test_a_missing_type(model_type: object) -> None:
    with pytest.raises(ModelFormatError, match="model_type must be a string"):
        build_spec({**CONFIG, "model_type": model_type})


@pytest.mark.usefixtures("registered")
def test_register_model() -> None:
    config = {**CONFIG, "model_type": "my_llama"}
    register_model("my_llama", llama)
    assert build_spec(config) == build_spec(CONFIG)
    assert "my_llama" in families()
    register_model(
        "my_llama", Family(spec=lambda config: llama.spec({**config, "hidden_act": "gelu"}), names=llama.names)
    )
    assert build_spec(config).layers[0].ffn.act == "gelu"
    assert find_family(config).names(build_spec(config))["embed"] == "model.embed_tokens.weight"


@pytest.mark.usefixtures("registered")
def test_register_model_refuses() -> None:
    with pytest.raises(ConfigError, match="llama is built in"):
        register_model("llama", llama)
    with pytest.raises(ConfigError, match="needs the functions spec and names"):
        register_model("mine", ModuleType("mine"))
    with pytest.raises(ConfigError, match="model_type must be"):
        register_model("", llama)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real package, built and installed by pip into a folder that stands on sys.path for the test."""
    root = tmp_path_factory.mktemp("package")
    (root / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (root / "tortoise.py").write_text(MODULE, encoding="utf-8")
    target = root / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(target), str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    yield target
    sys.path.remove(str(target))
    sys.modules.pop("tortoise", None)


def test_an_installed_package_brings_a_model(installed: Path) -> None:
    spec = build_spec({**CONFIG, "model_type": "tortoise"})
    assert (spec.family, spec.embedding_scale) == ("tortoise", 2.0)
    assert "tortoise" in families()
    assert Path(sys.modules["tortoise"].__file__ or "").parent == installed


@pytest.mark.usefixtures("installed")
def test_a_broken_package_is_named() -> None:
    with pytest.raises(ConfigError, match="broken_tortoise = tortoise_that_is_not_there of octavo-tortoise cannot be"):
        build_spec({**CONFIG, "model_type": "broken_tortoise"})
    with pytest.raises(ConfigError, match="of octavo-tortoise: a model family needs the functions spec and names"):
        build_spec({**CONFIG, "model_type": "empty_tortoise"})

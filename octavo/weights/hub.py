"""A hub id in, a local path out: the needed files of one revision, downloaded or found in the cache.

huggingface_hub does the transfer, resumes what was cut off, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import glob
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from octavo.base.errors import ModelFormatError, ModelNotFoundError, OctavoError
from octavo.weights.gguf import gguf_models, split_parts

Progress = Callable[[str, int, int], None]

INDEX = "model.safetensors.index.json"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template*.jinja",
    INDEX,
)
SHARD = re.compile(r"^[^/]+-\d{5}-of-\d{5}\.safetensors$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """One revision of one repository, and how to reach it."""

    repo: str
    revision: str | None
    token: str | None
    cache_dir: str | None

    def __str__(self) -> str:
        return self.repo + (f" at revision {self.revision}" if self.revision else "")


def download(
    repo: str,
    file: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The repository's folder (safetensors) or .gguf file on this disk. Every file is of the same commit.

    file: a .gguf of the repository; None takes its safetensors, or its only .gguf.  progress(repo, done, total): bytes.
    Raises ModelNotFoundError or, where there are only pickled weights, ModelFormatError.
    """
    place = _Place(repo, revision, token, cache_dir)
    try:
        sizes = _listing(place)
        if sizes is None:
            return _cached(place, file)
        wanted, gguf = choose(place.repo, sizes, file)
        folder = _fetch(place, wanted, sum(sizes[name] for name in wanted), progress)
        return folder / gguf if gguf else folder
    except OctavoError:
        raise
    except Exception as error:  # whatever the client and its HTTP library raise: network, disk, protocol
        raise _translate(error, place) from error


def choose(repo: str, sizes: Mapping[str, int], file: str | None) -> tuple[list[str], str | None]:
    """From a repository's files: those to download, and the .gguf to open (None: the folder itself)."""
    if file is not None:
        folder, _, name = file.rpartition("/")
        parts = [f"{folder}/{part}" if folder else part for part in split_parts(name)]
        if missing := [part for part in parts if part not in sizes]:
            there = ", ".join(sorted(n for n in sizes if n.endswith(".gguf"))[:20]) or "none"
            raise ModelNotFoundError(f"{repo} has no file {missing[0]}; its .gguf files are: {there}", param="model")
        return parts, file
    weights = [name for name in sizes if "/" not in name and name.endswith(".safetensors")]
    if INDEX in sizes:
        weights = [name for name in weights if SHARD.match(name)] or weights
    elif "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if weights and "config.json" in sizes:
        return weights + [name for name in sizes if any(fnmatch(name, small) for small in SMALL_FILES)], None
    ggufs = gguf_models(sorted(name for name in sizes if name.endswith(".gguf")))
    if len(ggufs) == 1:
        return choose(repo, sizes, ggufs[0])
    if ggufs:
        listed = ", ".join(f"{repo}:{name}" for name in ggufs[:20])
        raise ModelNotFoundError(f"{repo} holds {len(ggufs)} .gguf files; give one of {listed}", param="model")
    raise ModelFormatError(
        f"{repo} holds no safetensors (with config.json) and no .gguf files; pickled weights (.bin, .pt) are never "
        "read because loading them can run code. Take another repository or revision",
        param="model",
    )


def _listing(place: _Place) -> dict[str, int] | None:
    """File -> bytes; None if the hub cannot be asked (offline, no connection, a fault on its side)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi(token=place.token).model_info(place.repo, revision=place.revision, files_metadata=True)
    except HFValidationError:
        raise
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if status < 500:
            raise
        _log.info("the hub was not asked about %s (%s); looking in the cache", place, type(error).__name__)
        return None
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _fetch(place: _Place, wanted: list[str], total: int, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download

    bar = None if progress is None else _reporting_bar(place.repo, total, progress)
    folder = snapshot_download(
        place.repo,
        revision=place.revision,
        token=place.token,
        cache_dir=place.cache_dir,
        allow_patterns=[glob.escape(name) for name in wanted],
        tqdm_class=bar,
    )
    if progress is not None:
        progress(place.repo, total, total)
    return Path(folder)


def _cached(place: _Place, file: str | None) -> Path:
    """What an earlier download left; raises huggingface_hub's LocalEntryNotFoundError if there is nothing."""
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            place.repo,
            revision=place.revision,
            cache_dir=place.cache_dir,
            local_files_only=True,
            allow_patterns=[glob.escape(file or "config.json")],
        )
    )
    there = {path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*") if path.is_file()}
    _, gguf = choose(f"{place.repo} (offline, in {folder})", there, file)
    return folder / gguf if gguf else folder


def _reporting_bar(what: str, total: int, progress: Progress) -> type[Any]:
    """The client's own bar on stderr, which also counts the bytes of all files for `progress`.

    The client makes one bar of bytes written and one (named .transfer) of bytes on the wire; the first is counted.
    """
    from huggingface_hub.utils.tqdm import tqdm

    lock, done = threading.Lock(), 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counted = options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            nonlocal done
            if self._counted and n:
                with lock:
                    done += int(n)
                    progress(what, min(done, total), total)
            return super().update(n)

    return Bar


def _translate(error: Exception, place: _Place) -> ModelNotFoundError:
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        message = f"{place} is gated: accept its terms on {hub}/{place.repo}, then set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = f"{place.repo} is no local path and not on {hub}, or it is private: check the name, or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{place.repo} on {hub} has no revision {place.revision}", param="revision")
    elif isinstance(error, errors.HFValidationError):
        message = f"{place.repo} is no local path and no valid hub id"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} cannot be reached"
        message = f"{place} is no local path, was not (wholly) downloaded before, and {reason}; download it once online"
    else:
        message = f"{place} could not be downloaded from {hub} ({type(error).__name__}: {str(error)[:300]}); try again"
    return ModelNotFoundError(message, param="model")

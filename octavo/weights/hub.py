"""A hub id in, a local path out: the needed files of one revision, downloaded or found in huggingface_hub's cache.

huggingface_hub keeps the cache, talks to the hub, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from octavo.base.errors import ModelFormatError, ModelNotFoundError, OctavoError
from octavo.weights.gguf import gguf_models, split_parts
from octavo.weights.transfer import Body, Interrupted, RemoteFile, fetch_blob

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
LARGEST_HTTP = 50 * 1000**3  # bytes; the hub's limit for one HTTP body
TIMEOUT = 30.0  # seconds without a byte
PLAIN_ETAG = re.compile(r"^[\w-]{8,128}$")
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


@dataclass(frozen=True)
class _Listing:
    """commit: the revision's.  sizes: file -> bytes."""

    commit: str
    sizes: Mapping[str, int]


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
        listing = _listing(place)
        if listing is None:
            return _cached(place, file)
        wanted, gguf = choose(place.repo, listing.sizes, file)
        folder = _fetch(place, listing, wanted, progress)
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


def _listing(place: _Place) -> _Listing | None:
    """What the revision holds; None if the hub cannot be asked (offline, no connection, a fault on its side)."""
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
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return _Listing(info.sha or place.revision or "main", sizes)


def _fetch(place: _Place, listing: _Listing, wanted: list[str], progress: Progress | None) -> Path:
    """Weights through weights.transfer (resumable), then the client for the small files and the snapshot's links."""
    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    # The client wants a class for its bars; ours counts the same bytes, so its bars stay off.
    quiet: Any = type("Quiet", (tqdm,), {"__init__": partialmethod(tqdm.__init__, disable=True)})
    total, done = sum(listing.sizes[name] for name in wanted), 0
    with tqdm(total=total, unit="B", unit_scale=True, desc=place.repo, disable=None) as bar:

        def count(size: int) -> None:
            nonlocal done
            done += size
            bar.update(size)
            if progress is not None:
                progress(place.repo, min(done, total), total)

        for name in wanted:
            if name.endswith((".safetensors", ".gguf")):
                _fetch_weights(place, listing, name, count)
        folder = snapshot_download(
            place.repo,
            revision=place.revision,
            token=place.token,
            cache_dir=place.cache_dir,
            allow_patterns=[glob.escape(name) for name in wanted],
            tqdm_class=quiet,
        )
        count(total - done)
    return Path(folder)


def _fetch_weights(place: _Place, listing: _Listing, name: str, count: Callable[[int], None]) -> None:
    """Put the file's contents into the client's cache, if they are not there."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    found = try_to_load_from_cache(place.repo, name, cache_dir=place.cache_dir, revision=listing.commit)
    if isinstance(found, str):
        count(listing.sizes[name])
        return
    url, headers = hf_hub_url(place.repo, name, revision=listing.commit), build_hf_headers(token=place.token)
    known = get_hf_file_metadata(url, headers=headers)
    if known.etag is None or known.size is None or not PLAIN_ETAG.match(known.etag) or known.size > LARGEST_HTTP:
        return  # not a hub that says what it has, or a file that only its own protocol carries: the client fetches it
    if urlsplit(known.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a token is for the hub alone, not for where it stores its files
    file = RemoteFile(name, known.etag, known.size, partial(_read, known.location, headers))
    cache = Path(place.cache_dir or constants.HF_HUB_CACHE)
    blobs = cache / f"models--{place.repo.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(blobs / f"{file.etag}.lock"):
        fetch_blob(file, blobs, count=count)


@contextmanager
def _read(url: str, headers: Mapping[str, str], start: int) -> Iterator[Body]:
    """weights.transfer's Reader, over the client's own HTTP session (its proxies, certificates and pools)."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    transport_error: Any = HfHubHTTPError.__bases__[0]  # its HTTP library's base error, whichever library it uses
    headers = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            yield Body(resumed=start > 0 and response.status_code == 206, chunks=response.iter_bytes())
    except transport_error as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if status < 500 and status not in (408, 429):
            raise
        raise Interrupted(f"{type(error).__name__}: {error}") from error


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

"""A hub id in, a local path out: the needed files of one revision, downloaded or found in huggingface_hub's cache.

huggingface_hub keeps the cache, talks to the hub, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, NoReturn

from octavo.base.config.env import cache_folder
from octavo.base.errors import ModelFormatError, ModelNotFoundError, OctavoError
from octavo.weights.files import map_file, read_text
from octavo.weights.gguf import IncompleteHeaderError, is_gguf, read_header
from octavo.weights.repository import TOKENIZER, choose, is_weights, small_files
from octavo.weights.safetensors import INDEX, read_index
from octavo.weights.transfer import Body, Interrupted, RemoteFile, fetch_beginning, fetch_blob

Progress = Callable[[str, int, int], None]

LARGEST_HTTP = 50 * 1000**3  # bytes; the hub's limit for one HTTP body
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before another try at what the hub says of a file
NOT_STORED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
SECRET = re.compile(r"Bearer .*", re.DOTALL)
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
    with_weights: bool = True,
    on_listing: Callable[[int], None] | None = None,
) -> Path:
    """The repository's folder (safetensors) or .gguf file on this disk. Every file is of the same commit.

    file: a .gguf of the repository or its format (Q4_K_M); None takes its safetensors, or its only .gguf.
    progress(repo, done, total): bytes.
    with_weights=False fetches what open_checkpoint(with_weights=False) needs: the folder without its safetensors, a
    .gguf's header; what was downloaded wholly is taken.  on_listing: told the weights' bytes, where the hub is asked.
    Raises ModelNotFoundError or, where there are only pickled weights, ModelFormatError.
    """
    place = _Place(repo, revision, _clean(token), cache_dir)
    with _translated(place):
        listing = _listing(place)
        if isinstance(listing, Exception):
            return _cached(place, file, with_weights=with_weights, why=listing)
        wanted, gguf = choose(place.repo, listing.sizes, file, indexed=_indexed(place, listing, file))
        if on_listing is not None:
            on_listing(sum(listing.sizes[name] for name in wanted if is_weights(name)))
        if not with_weights and gguf:
            return _fetch_headers(place, listing, wanted) / Path(gguf).name
        if not with_weights:
            wanted = [name for name in wanted if not is_weights(name)]
        folder = _fetch(place, listing, wanted, progress)
        return folder / gguf if gguf else folder


def download_tokenizer(
    repo: str,
    file: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """A folder with the repository's tokenizer.json and what belongs to it, or a .gguf of which the header is there.

    file and the errors: as download's. A repository needs no weights for this.
    """
    place = _Place(repo, revision, _clean(token), cache_dir)
    if file is None:
        with _translated(place):
            listing = _listing(place)
            if isinstance(listing, Exception):
                folder = _snapshot(place, TOKENIZER, why=listing)
                if (folder / TOKENIZER).is_file():
                    return folder
            elif TOKENIZER in listing.sizes:
                return _fetch(place, listing, small_files(listing.sizes), progress)
            elif not any(map(is_gguf, listing.sizes)):
                raise ModelFormatError(f"{place} has no {TOKENIZER} and no .gguf file", param="tokenizer")
    return download(
        repo, file, revision=revision, token=token, cache_dir=cache_dir, progress=progress, with_weights=False
    )


def _clean(token: str | None) -> str | None:
    """Without the newline of the file that it was read from; an empty one is none."""
    return (token or "").strip() or None


def _indexed(place: _Place, listing: _Listing, file: str | None) -> set[str]:
    """The files that the safetensors' index names; none where there is no index, or a .gguf is asked for."""
    if file is not None or not {INDEX, "config.json"} <= listing.sizes.keys():
        return set()
    return set(read_index(read_text(_client(place, [INDEX]) / INDEX).encode(), where=INDEX).values())


def _listing(place: _Place) -> _Listing | Exception:
    """What the revision holds; the error, where the hub cannot be asked or does not tell: the cache may still do."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    try:
        info = HfApi(token=place.token).model_info(
            place.repo, revision=place.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except (HFValidationError, RevisionNotFoundError):
        raise
    except Exception as error:
        level = logging.WARNING if _refuses(error) else logging.INFO
        _log.log(level, "the hub does not tell about %s (%s); looking in the cache", place, type(error).__name__)
        return error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return _Listing(info.sha or place.revision or "main", sizes)


def _fetch(place: _Place, listing: _Listing, wanted: list[str], progress: Progress | None) -> Path:
    """Weights through weights.transfer (resumable), then the client for the small files and the snapshot's links."""
    from tqdm import tqdm

    total, done = sum(listing.sizes[name] for name in wanted), 0
    drawn = getattr(progress, "draws", False)  # by whom the progress is told
    with tqdm(total=total, unit="B", unit_scale=True, desc=place.repo, disable=True if drawn else None) as bar:

        def count(size: int) -> None:
            nonlocal done
            done += size
            bar.update(size)
            if progress is not None:
                progress(place.repo, min(done, total), total)

        for name in wanted:
            if is_weights(name):
                _fetch_weights(place, listing, name, count)
        folder = _client(place, wanted)
        count(total - done)
    return folder


def _client(place: _Place, names: list[str]) -> Path:
    """The snapshot's folder, with these files in it."""
    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    # The client wants a class for its bars; ours counts the same bytes, so its bars stay off.
    quiet: Any = type("Quiet", (tqdm,), {"__init__": partialmethod(tqdm.__init__, disable=True)})
    return Path(
        snapshot_download(
            place.repo,
            revision=place.revision,
            token=place.token,
            cache_dir=place.cache_dir,
            allow_patterns=[glob.escape(name) for name in names],
            tqdm_class=quiet,
        )
    )


def _fetch_weights(place: _Place, listing: _Listing, name: str, count: Callable[[int], None]) -> None:
    """Put the file's contents into the client's cache, if they are not there."""
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    if _in_cache(place, listing, name):
        count(listing.sizes[name])
        return
    file = _remote(place, listing, name)
    if not PLAIN_ETAG.match(file.etag) or not 0 < file.size <= LARGEST_HTTP:
        return  # not a hub that says what it has, or a file that only its own protocol carries: the client fetches it
    cache = Path(place.cache_dir or constants.HF_HUB_CACHE)
    blobs = cache / f"models--{place.repo.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(blobs / f"{file.etag}.lock"):
        fetch_blob(file, blobs, count=count)


def _fetch_headers(place: _Place, listing: _Listing, parts: list[str]) -> Path:
    """A folder with all parts of a .gguf: the client's, if they are wholly there, or one of ours with their headers.

    Ours is named by the parts' etags. It is no place where the client, or a later download, looks for whole files.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    found = [_in_cache(place, listing, name) for name in parts]
    if found[0] is not None and all(found):
        return found[0].parent
    files = [_remote(place, listing, name) for name in parts]
    etags = "\n".join(file.etag or f"{place.repo} {listing.commit} {file.name}" for file in files)
    folder = cache_folder() / "headers" / hashlib.sha256(etags.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / "lock"):
        for file in files:
            target = folder / Path(file.name).name
            if not target.exists():
                fetch_beginning(file, target, enough=partial(_has_header, name=file.name, size=file.size))
    return folder


def _has_header(path: Path, *, name: str, size: int) -> bool:
    """False where more of the file is needed; size: the whole file's."""
    try:
        read_header(map_file(path), where=name, size=size)
    except IncompleteHeaderError:
        return False
    return True


def _in_cache(place: _Place, listing: _Listing, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place.repo, name, cache_dir=place.cache_dir, revision=listing.commit)
    return Path(found) if isinstance(found, str) else None


def _remote(place: _Place, listing: _Listing, name: str) -> RemoteFile:
    """The file as the hub describes it; its etag is "" if it says none.

    Each read asks the hub where the file lies: the address is signed, for an hour or so. The client's session sends
    the token to the hub alone, not on to where that stores its files.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url, headers = hf_hub_url(place.repo, name, revision=listing.commit), build_hf_headers(token=place.token)
    for pause in (*PAUSES, None):
        try:
            known = get_hf_file_metadata(url, headers=headers)
            break
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise
            time.sleep(pause)
    size = listing.sizes[name] if known.size is None else known.size
    return RemoteFile(name, known.etag or "", size, partial(_read, url, headers))


@contextmanager
def _read(url: str, headers: Mapping[str, str], start: int, stop: int | None) -> Iterator[Body]:
    """weights.transfer's Reader, over the client's own HTTP session (its proxies, certificates and pools)."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**headers, "Accept-Encoding": "identity"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
    try:
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            yield Body(resumed=start > 0 and response.status_code == 206, chunks=response.iter_bytes())
    except Exception as error:
        if not _may_pass(error):
            raise
        raise Interrupted(f"{type(error).__name__}: {error}") from error


def _snapshot(place: _Place, file: str, *, why: Exception) -> Path:
    """The folder of an earlier download. Where there is none, raises what `why` (the hub was not asked) comes to."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                place.repo,
                revision=place.revision,
                cache_dir=place.cache_dir,
                local_files_only=True,
                allow_patterns=[glob.escape(file)],
            )
        )
    except LocalEntryNotFoundError as error:
        _raise_absent(str(error), why)


def _raise_absent(what: str, why: Exception) -> NoReturn:
    """The hub's own word where it refused, else that the files are not here."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if _refuses(why):
        raise why
    raise LocalEntryNotFoundError(what) from why


def _cached(place: _Place, file: str | None, *, with_weights: bool, why: Exception) -> Path:
    """What an earlier download left; raises as _snapshot if there is nothing."""
    folder = _snapshot(place, file or "config.json", why=why)
    there = {path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*") if path.is_file()}
    if file is None and "config.json" in there:
        if not with_weights:
            return folder
        if not any(is_weights(name) for name in there):
            _raise_absent(f"{folder} has no weights", why)
    _, gguf = choose(f"{place.repo} (offline, in {folder})", there, file)
    return folder / gguf if gguf else folder


@contextmanager
def _translated(place: _Place) -> Iterator[None]:
    """Whatever the client and its HTTP library raise (network, disk, protocol) leaves as a ModelNotFoundError."""
    try:
        yield
    except OctavoError:
        raise
    except Exception as error:
        raise _translate(error, place) from error


def _refuses(error: Exception) -> bool:
    """The hub answered that it does not give this, or not now; False where it was not reached or is at fault."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code < 500


def _may_pass(error: Exception) -> bool:
    """The connection broke, or the server asks to come again: worth another try."""
    from huggingface_hub.errors import HfHubHTTPError

    transport_error: Any = HfHubHTTPError.__bases__[0]  # its HTTP library's base error, whichever library it uses
    if _refuses(error):
        return error.response.status_code in (408, 429)  # type: ignore[attr-defined]
    return isinstance(error, transport_error)


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
        cause = f" ({_said(error.__cause__)})" if error.__cause__ else ""
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} cannot be reached{cause}"
        message = f"{place} is no local path, was not (wholly) downloaded before, and {reason}; download it once online"
    elif isinstance(error, OSError) and error.errno in NOT_STORED:
        message = (
            f"{place} cannot be stored ({_said(error)}); free some space there, name another folder by download_dir or "
            "HF_HOME, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        )
    else:
        message = f"{place} could not be downloaded from {hub} ({_said(error)}); try again"
    return ModelNotFoundError(message, param="model")


def _said(error: BaseException) -> str:
    """Its kind and text, without a token that the HTTP library quotes."""
    return f"{type(error).__name__}: {SECRET.sub('Bearer ...', str(error))[:300]}"

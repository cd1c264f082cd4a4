"""A small Hugging Face hub on localhost: repositories held in memory, every request recorded."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import weight_files as make

API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+)(/.*)?)?$")
RESOLVE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


@dataclass(frozen=True)
class Seen:
    """One request: the revision that it asked for, and what it asked."""

    method: str
    path: str
    revision: str | None
    file: str | None
    token: str | None
    range: str | None
    signature: str = ""


@dataclass
class FakeHub:
    """revisions: repo -> branch, tag or commit -> commit.  files: commit -> name -> bytes.

    token: needed for everything, if set.  cut_after: the first file body ends after so many bytes; after_cut: the
    status of all later ones, if not 200.  ranges: honours Range.  etags: file -> etag in place of its SHA-1.
    down: every request is answered with 503.  refusal: the same with this status.  busy: so many HEADs are 503.
    signed: contents lie on another host, at addresses that are good for one answer.
    """

    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    token: str | None = None
    gated: bool = False
    cut_after: int | None = None
    after_cut: int | None = None
    ranges: bool = True
    etags: dict[str, str] = field(default_factory=dict)
    down: bool = False
    refusal: int | None = None
    busy: int = 0
    signed: bool = False
    signatures: list[str] = field(default_factory=list)
    cuts: int = 0

    def add(self, repo: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Commit these files; returns the commit."""
        commit = hashlib.sha1(repr((repo, revision, sorted(files))).encode()).hexdigest()
        self.revisions.setdefault(repo, {}).update({revision: commit, commit: commit})
        self.files[commit] = files
        return commit

    def bodies(self) -> list[Seen]:
        """Requests for file contents."""
        return [seen for seen in self.seen if seen.method == "GET" and seen.file]

    def __enter__(self) -> FakeHub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *parts: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                quoted = urlsplit(self.path).path  # a revision may hold a slash, which is quoted
                path, match = unquote(quoted), API.match(quoted) or RESOLVE.match(quoted)
                groups = {k: v and unquote(v) for k, v in match.groupdict().items()} if match else {}
                token, wanted = self.headers.get("Authorization"), self.headers.get("Range")
                revision, file = groups.get("revision"), groups.get("file")
                signature = urlsplit(self.path).query if file else ""
                hub.seen.append(Seen(self.command, path, revision, file, token, wanted, signature))
                if hub.down or hub.refusal:
                    return self.fail(hub.refusal or 503, "RepoNotFound" if hub.refusal == 404 else "Down")
                if self.command == "HEAD" and hub.busy:
                    hub.busy -= 1
                    return self.fail(503, "Busy")
                if hub.gated:
                    return self.fail(403, "GatedRepo")
                if match is None or groups["repo"] not in hub.revisions:
                    return self.fail(404, "RepoNotFound")
                if hub.token and token != f"Bearer {hub.token}" and not signature:
                    return self.fail(401, "RepoNotFound")
                commit = hub.revisions[groups["repo"]].get(revision or "main")
                if commit is None:
                    return self.fail(404, "RevisionNotFound")
                if file is None:
                    return self.describe(groups["repo"], commit, groups["what"])
                if file not in hub.files[commit]:
                    return self.fail(404, "EntryNotFound", commit)
                if hub.signed and not signature:
                    return self.redirect(hub.files[commit][file], commit)
                if signature and signature not in hub.signatures:
                    return self.fail(403, "Expired")
                if signature:
                    hub.signatures.remove(signature)
                return self.content(file, commit, wanted if hub.ranges else None)

            def redirect(self, raw: bytes, commit: str) -> None:
                signature = f"signature={len(hub.seen)}"
                hub.signatures.append(signature)
                self.send_response(302)
                self.send_header("Location", f"{hub.url.replace('127.0.0.1', 'localhost')}{self.path}?{signature}")
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(raw).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(raw)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def fail(self, status: int, code: str, commit: str = "") -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def describe(self, repo: str, commit: str, what: str | None) -> None:
                files = hub.files[commit]
                if what == "tree":
                    value: object = [
                        {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                        for n, b in files.items()
                    ]
                else:
                    siblings = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
                    value = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []}
                raw = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def content(self, file: str, commit: str, wanted: str | None) -> None:
                raw = hub.files[commit][file]
                first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or len(raw)) + 1, len(raw))
                cut = hub.cut_after if self.command == "GET" and not hub.cuts else None
                if self.command == "GET" and hub.cut_after is not None and hub.cuts and hub.after_cut:
                    self.fail(hub.after_cut, "Broken")
                    return
                self.send_response(206 if wanted else 200)
                self.send_header("ETag", f'"{hub.etags.get(file) or hashlib.sha1(raw).hexdigest()}"')
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Accept-Ranges", "bytes" if hub.ranges else "none")
                self.send_header("Content-Length", str(stop - start))
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(raw)}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(raw[start:stop][:cut])
                if cut is not None:
                    hub.cuts += 1
                    self.close_connection = True

        return Handler


def folder_files(**extra: bytes) -> dict[str, bytes]:
    """A repository with all that is needed, and much that is not."""
    needed = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return {
        **{name: json.dumps({"this": name}).encode() for name in needed},
        "chat_template.jinja": b"T",
        "special_tokens_map.json": b"{}",
        "model.safetensors": make.safetensors_bytes(make.small_safetensors()),
        "pytorch_model.bin": b"pickle",
        "README.md": b"#",
        "modeling_evil.py": b"raise SystemExit",
        "onnx/model.onnx": b"x",
        "original/consolidated.safetensors": b"x",
        "consolidated.safetensors": b"x",
        **extra,
    }

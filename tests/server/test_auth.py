"""Keys on every route but the open ones, Host and Origin on loopback, odd ways to write a URL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_llm import FakeLLM
from serving import LiveServer

from octavo.base.config.config import ServerConfig
from octavo.base.errors import ConfigError
from octavo.server.app import ASK, CONTROL, PAGE, WORK, App
from octavo.server.auth import Keys
from octavo.server.errors import HttpError
from octavo.server.origins import Origins

OPEN = {"/health", "/livez", "/readyz", "/ping", "/version", "/openapi.json", "/docs", "/", "/ui/{name}"}
KEY = "sk-secret-1"
SAMPLES = {"/v1/models/{model:path}": ("{model:path}", "fake/model"), "/ui/{name}": ("{name}", "main.js")}


@pytest.fixture(scope="module")
def locked() -> Iterator[LiveServer]:
    with LiveServer(FakeLLM(), api_key=["other", KEY]) as live:
        yield live


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_is_decided(locked: LiveServer) -> None:
    paths = [route.path for route in locked.app.routes]
    assert sorted(paths) == sorted([*WORK, *ASK, *PAGE, *(path for _, path, _ in CONTROL)])
    for path in sorted(set(paths)):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FROB"):
            filled = path.replace(*SAMPLES.get(path, ("{id}", "x")))
            status = locked.client.request(method, filled).status_code
            if path in OPEN:
                assert status == (200 if method == "GET" else 405), (method, path)
            else:
                assert status == 401, (method, path)


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/nope.js", "/nope", "/v1", "/v1/", "//nope", "/health//x", "/HEALTH", "/health/../v1/models"]
)
def test_unknown_paths_need_a_key_too(locked: LiveServer, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
    assert b" 401 " in locked.raw(head).partition(b"\r\n")[0]


@pytest.mark.parametrize("key", [KEY, "other"])
def test_a_key_opens(locked: LiveServer, key: str) -> None:
    assert locked.client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert locked.client.get("/metrics", headers=bearer(key)).status_code == 200
    assert locked.post("/v1/completions", {"prompt": "a"}, **bearer(key)).status_code == 200
    assert locked.client.get("/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer x y", "Bearer \xe9", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
def test_other_keys_do_not(locked: LiveServer, value: str) -> None:
    answer = locked.client.get("/v1/models", headers={"authorization": value.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "AuthenticationError"


def test_two_authorizations_are_none(locked: LiveServer) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
    assert locked.client.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        b"http://127.0.0.1/v1/models",
        b"http://evil.example/health/../v1/models",
        b"//v1/models",
        b"/%2fv1/models",
        b"/%76%31/models",
        b"/V1/models",
        b"/v1//models",
        b"/v1/models?x=/health",
        b"/health;/../v1/models",
        b"/v1/models%00/health",
        b"/health%2f..%2fv1%2fmodels",
        b"*",
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_odd_targets_are_not_open(locked: LiveServer, target: bytes, version: bytes) -> None:
    answer = locked.raw(b"GET " + target + b" HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
    status = answer.partition(b"\r\n")[0].split(b" ")[1]
    assert status in (b"401", b"400"), answer[:100]
    assert b"fake/model" not in answer


@pytest.mark.parametrize(
    ("method", "paths"),
    [
        ("GET", ["/v1/models/", "//v1/models", "/v1//models", "//v1//models//"]),
        ("GET", ["//v1/models/fake/model", "/metrics/", "//metrics"]),
        ("POST", ["/v1/completions/", "//v1/completions", "/v1//completions", "/v1/chat//completions"]),
    ],
)
def test_slashes_too_many(locked: LiveServer, method: str, paths: list[str]) -> None:
    """A base URL with a slash at its end, or a path with one: the route answers itself, to those with a key."""
    for path in paths:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 2\r\n"
        head += "content-type: application/json\r\n"
        refused = locked.raw(f"{head}\r\n{{}}".encode())
        assert b" 401 " in refused.partition(b"\r\n")[0]
        taken = locked.raw(f"{head}authorization: Bearer {KEY}\r\n\r\n{{}}".encode())
        status, _, rest = taken.partition(b"\r\n")
        # a body without a prompt is the route's own to refuse
        assert (b" 200 " in status) if method == "GET" else (b" 400 " in status and b"is required" in rest), taken
        assert b"location" not in taken.lower()
    for path in ("/health/", "//health", "/docs/"):
        head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
        assert b" 200 " in locked.raw(head.encode()).partition(b"\r\n")[0]


def test_slashes_of_a_name() -> None:
    with LiveServer(FakeLLM(), served_model_name=["/models/a//b"]) as live:
        for path in ("/v1/models//models/a//b", "/v1/models/%2Fmodels%2Fa%2F%2Fb"):
            assert live.client.get(live.url + path).json()["id"] == "/models/a//b"


def test_odd_hosts(locked: LiveServer) -> None:
    key = b"Authorization: Bearer " + KEY.encode()
    for host in (b"evil.example", b"127.0.0.1.evil.example", b"evil.example:8000", b"10.0.0.1", b"localhost@evil"):
        for line in (b"GET /v1/models", b"GET /health"):
            answer = locked.raw(line + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + key + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 403"), (host, answer[:60])
    twice = locked.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert twice.startswith(b"HTTP/1.1 400")
    for host in (b"localhost", b"127.0.0.1:99", b"[::1]:8000", b"LOCALHOST.", b"a.localhost", b"127.1.2.3"):
        answer = locked.raw(b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), (host, answer[:60])


def test_foreign_origins_are_refused_on_loopback(shared: LiveServer) -> None:
    ask = {"prompt": "a"}
    assert shared.post("/v1/completions", ask, origin="https://evil.example").status_code == 403
    assert shared.post("/v1/completions", ask, origin="null").status_code == 403
    assert "Origin 'file://'" in shared.post("/v1/completions", ask, origin="file://").json()["error"]["message"]
    assert shared.post("/v1/completions", ask, origin="http://localhost:3000").status_code == 200
    assert shared.post("/v1/completions", ask).status_code == 200


@pytest.mark.parametrize("page", ["http://localhost:3000", "http://127.0.0.1:8080", "tauri://localhost"])
def test_pages_of_the_same_machine_get_cors(shared: LiveServer, page: str) -> None:
    """Chat pages of other local servers, and desktop applications, which call from the browser."""
    asked = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = shared.client.options("/v1/chat/completions", headers=asked)
    answer = shared.post("/v1/completions", {"prompt": "a"}, origin=page)
    assert (preflight.status_code, answer.status_code) == (204, 200)
    assert not {"content-length", "content-type", "transfer-encoding"} & set(preflight.headers)
    for one in (preflight, answer):
        assert one.headers["access-control-allow-origin"] == page
        assert one.headers["vary"] == "origin"
    assert "access-control-allow-origin" not in shared.post("/v1/completions", {"prompt": "a"}).headers
    for other in ("http://localhost.evil.example", "http://evil.example/localhost", "null", "file://"):
        assert shared.client.options("/v1/chat/completions", headers={**asked, "origin": other}).status_code == 403


def test_pages_of_the_same_machine_are_strangers_to_a_server_for_others() -> None:
    origins = Origins("0.0.0.0", [])
    assert origins.headers(b"http://localhost:3000") == []
    assert origins.preflight("OPTIONS", b"http://localhost:3000", b"POST") is None


@pytest.mark.parametrize("told", ["file://", "file:///", "FILE://"])
def test_desktop_applications_may_be_allowed(told: str) -> None:
    origins = Origins("127.0.0.1", [told, "app://obsidian.md"])
    for origin in (b"file://", b"app://obsidian.md"):
        origins.check([b"127.0.0.1"], origin)
        assert (b"access-control-allow-origin", origin) in origins.headers(origin)


def test_allowed_origins_get_cors(llm: FakeLLM) -> None:
    page = "https://app.example"
    with LiveServer(llm, allowed_origins=[page], api_key=[KEY]) as live:
        asked = {"origin": page, "access-control-request-method": "POST"}
        preflight = live.client.options("/v1/completions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        told = preflight.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "content-type", "x-stainless-retry-count", "anthropic-version"} <= {*told}
        assert {"user-agent", "*"} <= {*told}  # Firefox's of openai's client; traceparent, x-title, ...
        answer = live.post("/v1/completions", {"prompt": "a"}, origin=page, **bearer(KEY))
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "request-id", "retry-after", "x-should-retry"} == {*exposed}
        assert live.post("/v1/completions", {"prompt": "a"}, origin=page).status_code == 401
        other = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        assert live.client.options("/v1/completions", headers=other).status_code == 403


@pytest.mark.parametrize("text", ["app.example", '["https://app.example"]', "https://a,https://b", "https://a/b", "/"])
def test_an_origin_that_no_browser_sends_is_refused(text: str, llm: FakeLLM) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        App(llm, ServerConfig(allowed_origins=[text]))  # type: ignore[arg-type]


def test_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "from-env")
    app = App(FakeLLM(), ServerConfig())  # type: ignore[arg-type]
    assert app.keys


def test_space_around_a_key_is_no_part_of_it() -> None:
    keys = Keys(["one\n", "  ", ""])
    assert keys.check("/v1/models", [b"Bearer one"])
    for value in (b"Bearer", b"Bearer ", b"Bearer   ", b"Bearer two"):
        with pytest.raises(HttpError, match="API key"):
            keys.check("/v1/models", [value])
    assert Keys([" "])  # it closes, to everybody

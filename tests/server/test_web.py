"""The page's files: what they are served with, what they may hold, and that they come with every install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from fake_llm import FakeLLM
from serving import LiveServer

from octavo.server.web import files

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.name for path in files.FOLDER.iterdir())
MOST_BYTES = 200_000  # all of them
MOST_LINES = 400  # one of them
# What a browser of two or three years ago (Safari 16.0, Firefox 115) has not, and at which the page would end
TOO_NEW = {
    ".css": r"light-dark\(|field-sizing|@scope|&",
    ".js": r"\(\?<[=!]|\.canParse\(|\.fromAsync\(|\.groupBy\(|withResolvers|AbortSignal\.any|Segmenter|checkVisibility"
    r"|requestIdleCallback|for await \(.*\.body\)|\bstatic \{",
}
NAMESPACE = "http://www.w3.org/2000/svg"  # the name of a language; nothing is fetched from there
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def text(name: str) -> str:
    return (files.FOLDER / name).read_text()


def url(name: str) -> str:
    return "/" if name == files.INDEX else files.PREFIX + name


@pytest.mark.parametrize("name", NAMES)
def test_headers(shared: LiveServer, name: str) -> None:
    answer = shared.client.get(url(name))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == KINDS[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.content == (files.FOLDER / name).read_bytes()


def test_what_a_browser_has_is_not_sent_again(shared: LiveServer) -> None:
    etag = shared.client.get("/ui/main.js").headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        again = shared.client.get("/ui/main.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in again.headers
    assert shared.client.get("/ui/main.js", headers={"if-none-match": '"x"'}).status_code == 200
    assert shared.client.get("/ui/dom.js").headers["etag"] != etag
    head = shared.client.head("/")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/ui/", "/ui/x.js", "/ui/index.html", "/ui/..%2ffiles.py", "/ui/%2e%2e/files.py"])
def test_nothing_else_is_served(shared: LiveServer, path: str) -> None:
    answer = shared.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"
    assert shared.post("/", {}).status_code == 405


def test_with_a_key_the_page_is_open_and_the_rest_is_not(llm: FakeLLM) -> None:
    with LiveServer(llm, api_key=["sk-secret"]) as live:
        for name in NAMES:
            answer = live.client.get(url(name))
            assert answer.status_code == 200
            assert "sk-secret" not in answer.text
        for path in ("/metrics", "/v1/models", "/ui/x.js"):
            assert live.client.get(path).status_code == 401


def test_it_can_be_turned_off(llm: FakeLLM) -> None:
    with LiveServer(llm, disable_ui=True) as live:
        assert {live.client.get(path).status_code for path in ("/", "/ui/main.js")} == {404}
    with LiveServer(FakeLLM(), disable_ui=True, api_key=["k"]) as live:
        assert {live.client.get(path).status_code for path in ("/", "/ui/main.js")} == {401}


def test_a_foreign_host_gets_no_page(shared: LiveServer) -> None:
    assert shared.client.get("/", headers={"host": "evil.example"}).status_code == 403


def test_it_is_small() -> None:
    assert set(map(url, NAMES)) == set(files.files())
    assert sum((files.FOLDER / name).stat().st_size for name in NAMES) < MOST_BYTES
    assert not [name for name in NAMES if text(name).count("\n") > MOST_LINES]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    found = re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[\w./-]*", text(name))
    assert set(found) <= {NAMESPACE}
    assert "@import" not in text(name)
    assert "url(" not in text(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith((".js", ".html"))])
def test_text_never_becomes_markup_or_code(name: str) -> None:
    words = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc"
    assert not re.findall(rf"{words}|\beval\(|new Function|[\"'`]javascript:|\bstyle=|\bon\w+=\"", text(name))


@pytest.mark.parametrize("name", [name for name in NAMES if Path(name).suffix in TOO_NEW])
def test_older_browsers_know_what_is_used(name: str) -> None:
    assert not re.findall(TOO_NEW[Path(name).suffix], text(name))


def test_every_import_is_there_and_every_file_is_used() -> None:
    imported = {name for one in NAMES if one.endswith(".js") for name in re.findall(r'from "\./([\w.]+)"', text(one))}
    named = set(re.findall(r'(?:href|src)="ui/([\w.]+)"', text(files.INDEX)))
    assert imported | named | {files.INDEX} == set(NAMES)


def test_it_is_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["octavo.server.web"] == ["static/*"]

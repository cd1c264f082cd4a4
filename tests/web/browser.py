"""Headless Chromium over ChromeDriver's W3C WebDriver protocol: as much of it as the tests of the page need."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

KEYS = {"enter": "\ue007", "escape": "\ue00c", "up": "\ue013", "shift": "\ue008", "control": "\ue009", "tab": "\ue004"}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
    "--lang=en",
]


def find() -> tuple[str, str] | None:
    """(Chromium, ChromeDriver) by OCTAVO_TEST_CHROMIUM, OCTAVO_TEST_CHROMEDRIVER or PATH; None where one is missing."""
    browsers = [os.environ.get("OCTAVO_TEST_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    browser = next((found for name in browsers if name and (found := shutil.which(name))), None)
    driver = shutil.which(os.environ.get("OCTAVO_TEST_CHROMEDRIVER") or "chromedriver")
    return (browser, driver) if browser and driver else None


class StaleElementError(RuntimeError):
    """The page drew an element anew between its being found and its being used."""


class Browser:
    """`with Browser() as browser`: one window. Elements are found by CSS selectors, afresh in each call."""

    def __init__(self) -> None:
        found = find()
        if found is None:
            raise FileNotFoundError("no Chromium with ChromeDriver on PATH")
        self._chromium, self._driver = found

    def __enter__(self) -> Browser:
        port = _free_port()
        self._profile = tempfile.TemporaryDirectory(prefix="octavo-web-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [self._driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        options = {"binary": self._chromium, "args": [*_ARGUMENTS, f"--user-data-dir={self._profile.name}"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._wait_for_driver()
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{made['sessionId']}"
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._http.close()
            self._process.terminate()
            self._process.wait(20)
            self._profile.cleanup()

    def _wait_for_driver(self) -> None:
        for _ in range(200):
            try:
                self._call("GET", "/status")
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise TimeoutError("ChromeDriver did not start")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body if method == "POST" else None)
        value = answer.json()["value"]
        if answer.status_code != 200:
            kind = StaleElementError if value["error"] == "stale element reference" else RuntimeError
            raise kind(f"{value['error']}: {value['message'][:500]}")
        return value

    def post(self, path: str, body: Any) -> Any:
        """A command of this session."""
        return self._call("POST", self._session + path, body)

    def open(self, url: str) -> None:
        """Go there, and wait until the page has loaded."""
        self.post("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What an async function's body returns, in the page; `arguments` are its arguments."""
        body = (
            "const done = arguments[arguments.length - 1];"
            f"(async (...args) => {{ {script} }})(...Array.prototype.slice.call(arguments, 0, -1))"
            ".then(value => done({value}), error => done({error: String(error)}));"
        )
        told = self.post("/execute/async", {"script": body, "args": list(arguments)})
        if "error" in told:
            raise RuntimeError(told["error"])
        return told.get("value")

    @contextmanager
    def tab(self) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
        """A second tab, in front: what goes to the first one, and what goes to it; closed at the end."""
        first = self._call("GET", self._session + "/window")
        second = self.post("/window/new", {"type": "tab"})["handle"]

        def go(handle: str) -> None:
            self.post("/window", {"handle": handle})

        go(second)
        try:
            yield lambda: go(first), lambda: go(second)
        finally:
            go(second)
            self._call("DELETE", self._session + "/window")
            go(first)

    def element(self, selector: str) -> str:
        """The reference of the first element; RuntimeError where there is none."""
        found: str = self.post("/element", {"using": "css selector", "value": selector})[_ELEMENT]
        return found

    def click(self, selector: str) -> None:
        """Click as a person would: fails where something covers it; an element drawn anew meanwhile is sought again."""
        while True:
            try:
                self.post(f"/element/{self.element(selector)}/click", {})
                return
            except StaleElementError:
                continue

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self.post(f"/element/{self.element(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys held together, by the names in KEYS or as characters, where the focus is."""
        codes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": "keyDown", "value": code} for code in codes]
        actions += [{"type": "keyUp", "value": code} for code in reversed(codes)]
        self.post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def texts(self, selector: str) -> list[str]:
        """The text of each element."""
        script = "return [...document.querySelectorAll(args[0])].map((each) => each.innerText)"
        found: list[str] = self.run(script, selector)
        return found

    def text(self, selector: str) -> str:
        """The text of the first element; "" where there is none."""
        return next(iter(self.texts(selector)), "")

    def count(self, selector: str) -> int:
        """How many there are."""
        return len(self.texts(selector))

    def visible(self, selector: str) -> bool:
        """Whether the first one is there and shown."""
        script = "return document.querySelector(args[0])?.checkVisibility({visibilityProperty: true}) ?? false"
        return bool(self.run(script, selector))

    def wait(self, condition: Callable[[], Any], *, seconds: float = 30.0) -> Any:
        """What `condition` gives once that is true; AssertionError with the page's text if it does not become so."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.text("body")[-2000:]
            time.sleep(0.03)
        return found

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.post("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def size(self, width: int, height: int, *, mobile: bool = False, scale: float = 1) -> None:
        """The window's inner size in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=mobile, deviceScaleFactor=scale
        )

    def colours(self, scheme: str) -> None:
        """What the system prefers: light or dark."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def errors(self) -> list[str]:
        """What the console has shown as errors since the last call, refusals by the content policy among them."""
        entries = self.post("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", self._session + "/screenshot")))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

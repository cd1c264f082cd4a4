"""The pictures of docs/web.md, from a running server: `python docs/tools/screenshots.py http://127.0.0.1:8000`.

Needs Chromium with ChromeDriver (tests/web/browser.py). For the engine's view it sends requests for a minute.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "web"))

import httpx  # noqa: E402
from browser import Browser  # noqa: E402

DOCS = ROOT / "docs"
SYSTEM = "You are a patient teacher who answers questions about nature, history and numbers in simple words."
EARLIER = ("Why is the sky blue?", "Plan a rainy Sunday")
SHOWN = ("What is the capital of France?", "Write a Python function that merges two sorted lists.")
LOAD_S = 75


def main(url: str) -> None:
    with Browser() as browser:
        browser.size(1200, 780)
        browser.colours("light")
        browser.open(url)
        browser.wait(lambda: browser.text(".status") == "Ready")
        browser.press("control", ",")
        browser.type("#setting-temperature", "0")
        browser.type("#setting-max_tokens", "220")
        browser.press("control", ",")
        for questions in ((EARLIER[0],), (EARLIER[1],), SHOWN):
            browser.press("control", "shift", "o")
            browser.wait(lambda: browser.visible(".welcome"))
            for question in questions:
                _ask(browser, question)
        browser.run("document.querySelector('.scroller').scrollTop = 0")
        time.sleep(0.5)
        browser.screenshot(DOCS / "web-chat.png")
        browser.colours("dark")
        browser.open(f"{url}/#/engine")
        end = time.monotonic() + LOAD_S
        clients = [threading.Thread(target=_client, args=(url, number, end)) for number in range(7)]
        for client in clients:
            client.start()
        time.sleep(LOAD_S - 5)
        browser.screenshot(DOCS / "web-engine.png")
        for client in clients:
            client.join()


def _ask(browser: Browser, question: str) -> None:
    before = browser.count(".assistant")
    browser.type("#message", question)
    browser.press("enter")
    browser.wait(lambda: browser.count(".assistant:not(.running) .speed") == before + 1, seconds=120)


def _client(url: str, number: int, end: float) -> None:
    dice = random.Random(number)
    time.sleep(dice.random() * 8)
    while time.monotonic() < end:
        question = dice.choice(["Tell a story about a fox.", "Explain rain.", "Count to twenty."])
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{question} ({dice.random()})"}]
        body = {"messages": messages, "stream": True, "max_tokens": dice.randint(20, 160)}
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
        time.sleep(dice.random() * 4)


if __name__ == "__main__":
    main(sys.argv[1])

"""What the tests of the page do again and again."""

from __future__ import annotations

from browser import Browser

ANSWER = ".message.assistant"
PROSE = f"{ANSWER} > .prose"


def visit(page: Browser, url: str) -> None:
    """Open the page, and wait until it stands."""
    page.open(url)
    page.wait(lambda: page.visible(".bar"))


def ask(page: Browser, text: str) -> None:
    page.type("#message", text)
    page.press("enter")


def settled(page: Browser) -> bool:
    return page.count(ANSWER) > 0 and page.count(".message.running") == 0  # in this order: it runs once it is there


def answered(page: Browser, text: str) -> None:
    """Send, and wait for the whole answer."""
    before = page.count(ANSWER)
    ask(page, text)
    page.wait(lambda: page.count(ANSWER) == before + 1 and settled(page))


def fresh(browser: Browser) -> None:
    """The usual window: wide, light, no errors from before."""
    browser.size(1280, 800)
    browser.colours("light")
    browser.errors()

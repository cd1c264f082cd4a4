"""The page around the chat: keys, focus, colours, narrow screens, scrolling, and a server that asks for a key."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from browser import Browser
from chatting import PROSE, answered, ask, fresh, settled, visit
from scripted import ScriptedServer

FOCUSED = "return document.activeElement.id || document.activeElement.getAttribute('aria-label')"
UNNAMED = """
    const all = [...document.querySelectorAll("button, input, textarea, a")];
    const named = (e) => e.innerText.trim() || e.getAttribute("aria-label") || e.labels?.length || e.ariaHidden;
    return all.filter((e) => !named(e)).map((e) => e.outerHTML);
"""
OVERFLOWS = """
    const wide = (e) => e.scrollWidth > e.clientWidth;
    return wide(document.documentElement) || wide(document.querySelector(".scroller"));
"""


def test_the_key_is_asked_for(chromium: Browser) -> None:
    fresh(chromium)
    with ScriptedServer(api_key=["sk-right"]) as server:
        visit(chromium, server.url)
        chromium.wait(lambda: "asks for an API key" in chromium.text("dialog"))
        chromium.type("#key", "sk-wrong")
        chromium.press("enter")
        chromium.wait(lambda: "not accepted" in chromium.text("dialog"))
        chromium.type("#key", "sk-right")
        chromium.press("enter")
        chromium.wait(lambda: chromium.text(".model") == "tiny-chat")
        answered(chromium, "Hello")
        assert chromium.text(PROSE) == "Yes."
        kept = chromium.run("return [{...sessionStorage}, JSON.stringify({...localStorage})]")
        assert kept[0] == {"octavo.key": "sk-right"}
        assert "sk-right" not in kept[1]
        visit(chromium, f"{server.url}/#/engine")
        chromium.wait(lambda: chromium.text(".tile b") == "0")
    chromium.errors()


def test_a_key_given_later_tells_the_model(chromium: Browser) -> None:
    fresh(chromium)
    with ScriptedServer(api_key=["sk-right"]) as server:
        visit(chromium, server.url)
        chromium.wait(lambda: chromium.visible("dialog"))
        chromium.press("escape")
        chromium.wait(lambda: not chromium.visible("dialog"))
        ask(chromium, "Hello")
        chromium.wait(lambda: chromium.visible("dialog"))
        chromium.type("#key", "sk-right")
        chromium.press("enter")
        chromium.wait(lambda: chromium.text(".model") == "tiny-chat")
    chromium.errors()


def test_the_focus_stays_in_the_list(page: Browser, server: ScriptedServer) -> None:
    for title in ("One", "Two"):
        page.press("control", "shift", "o")
        answered(page, title)
    page.run("document.querySelector('[aria-label=\"Rename One\"]').focus()")
    page.press("enter")
    page.wait(lambda: page.visible("dialog"))
    page.press("control", "a")
    page.type("#title", "New")
    page.press("enter")
    page.wait(lambda: page.run(FOCUSED) == "Rename New")
    page.press("tab")
    page.press("enter")
    page.wait(lambda: page.visible("dialog"))
    page.press("enter")
    page.wait(lambda: page.run("return document.activeElement.className") == "new")


def test_every_state_of_the_server_has_words(page: Browser, server: ScriptedServer) -> None:
    def told(word: str) -> str:
        page.run("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait(lambda: page.text(".status") == word)
        return page.text(".strip")

    server.app.traffic.paused = True
    assert "until it is resumed" in told("Paused")
    server.app.traffic.paused = False
    server.llm.state = "sleeping"
    assert "when it is woken" in told("Asleep")
    server.llm.state = "ready"
    server.app._services.canary.fault = "other tokens"
    assert "do not trust it" in told("Not to be trusted")
    page.errors()


def test_the_view_follows_until_the_reader_scrolls(page: Browser, server: ScriptedServer) -> None:
    lines: list[Any] = [{"content": f"line {i}\n\n"} for i in range(80)]
    more: list[Any] = [piece for i in range(20) for piece in ({"content": f"more {i}\n\n"}, 0.03)]
    server.say([*lines, 0.8, *more])
    ask(page, "Long")
    left = "const s = document.querySelector('.scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
    page.wait(lambda: "line 79" in page.text(PROSE))
    assert page.wait(lambda: page.run(left) < 3)
    page.run("document.querySelector('.scroller').scrollTop = 100")
    page.wait(lambda: settled(page))
    assert page.run("return document.querySelector('.scroller').scrollTop") == 100
    page.click('[aria-label="To the end"]')
    page.wait(lambda: page.run(left) < 3)


def test_keys_and_focus(page: Browser, server: ScriptedServer) -> None:
    assert page.run(FOCUSED) == "message"
    page.type("#message", "one")
    page.press("shift", "enter")
    page.type("#message", "two")
    height = "return document.querySelector('#message').offsetHeight"
    assert page.run("return document.querySelector('#message').value") == "one\ntwo"
    tall = page.run(height)
    page.press("enter")
    page.wait(lambda: settled(page))
    assert page.text(".bubble") == "one\ntwo"
    assert page.run(height) < tall
    page.press("control", ",")
    assert page.visible(".panel")
    assert page.run(FOCUSED) == "setting-system"
    page.press("escape")
    assert not page.visible(".panel")
    page.run("document.activeElement.blur()")
    page.press("?")
    page.wait(lambda: "New conversation" in page.text("dialog"))
    page.press("escape")
    page.press("control", "shift", "e")
    page.wait(lambda: page.visible(".engine"))
    page.press("control", "shift", "e")
    page.wait(lambda: page.visible(".chat") and page.text(".bubble") == "one\ntwo")
    page.run("document.activeElement.blur()")
    page.press("/")
    assert page.run(FOCUSED) == "message"
    assert page.run(UNNAMED) == []


def test_narrow_screens(page: Browser, server: ScriptedServer) -> None:
    server.say("A long line of code:\n\n```\n" + "x" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "y" * 200 + " | z |")
    page.size(360, 720, mobile=True)
    answered(page, "Wide?")
    assert page.run(OVERFLOWS) is False
    assert not page.visible(".sidebar")
    page.click('[aria-label="Conversations"].menu')
    page.wait(lambda: page.visible(".sidebar"))
    page.click(".new")
    page.wait(lambda: page.visible(".welcome") and not page.visible(".sidebar"))
    assert page.run(OVERFLOWS) is False
    page.click('[aria-label="Settings"]')
    assert page.visible("#setting-temperature")
    page.press("escape")


@pytest.mark.parametrize("view", ["chat", "engine"])
def test_print_is_the_whole_of_a_view(page: Browser, server: ScriptedServer, view: str) -> None:
    page.size(1280, 400)
    page.click("#theme")
    page.click("#theme")  # dark
    server.say("\n\n".join(f"line {i}" for i in range(200)))
    answered(page, "Long")
    page.press("control", "shift", "e")
    page.wait(lambda: page.text(".tile b") == "0")
    if view == "chat":
        page.press("control", "shift", "e")
    page.command("Emulation.setEmulatedMedia", media="print")
    try:
        page.wait(lambda: not page.visible(".sidebar"))
        assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        last = f"{PROSE} p:last-child" if view == "chat" else ".counts dd:last-child"
        below = "return document.documentElement.scrollHeight - args[0].getBoundingClientRect().bottom - scrollY"
        assert page.run(below.replace("args[0]", f"document.querySelector('{last}')")) >= 0
        assert page.count(last) == 1
        pdf = base64.b64decode(page.command("Page.printToPDF")["data"])
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
    finally:
        page.command("Emulation.setEmulatedMedia", media="")


def test_colours(page: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.colours("dark")
    dark = page.run(ground)
    assert light != dark
    page.click("#theme")
    assert page.run(ground) == light
    page.post("/refresh", {})
    page.wait(lambda: page.text(".status") == "Ready")
    assert page.run(ground) == light
    page.click("#theme")
    page.colours("light")
    assert page.run(ground) == dark

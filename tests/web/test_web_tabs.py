"""Two tabs on the same conversations: nothing that either wrote is lost, what either deleted stays so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from browser import Browser
from chatting import PROSE, answered, ask, fresh, settled, visit
from scripted import ScriptedServer

MUTE = "BroadcastChannel.prototype.postMessage = () => {}"  # as in a tab that sleeps
TITLES = ".conversations a"


@contextmanager
def second_tab(page: Browser) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What is shown, in another tab as well, to which the page has turned; how to turn to the first, and to this."""
    url = page.run("return location.href")
    with page.tab() as ways:
        fresh(page)
        visit(page, url)
        yield ways


def reload(page: Browser) -> None:
    page.post("/refresh", {})
    page.wait(lambda: page.visible(".bar"))


def delete(page: Browser, title: str) -> None:
    page.run(f"document.querySelector('[aria-label=\"Delete {title}\"]').click()")
    page.click("dialog .primary")


def test_each_shows_what_the_other_writes(page: Browser, server: ScriptedServer) -> None:
    server.say("One.", "Two.", "Three.")
    answered(page, "First")
    with second_tab(page) as (to_first, to_second):
        page.wait(lambda: page.texts(PROSE) == ["One."])
        answered(page, "Second")
        to_first()
        page.wait(lambda: page.texts(PROSE) == ["One.", "Two."])
        answered(page, "Third")
        assert [message["content"] for message in server.requests[2]["messages"]] == [
            *("First", "One.", "Second", "Two.", "Third")
        ]
        page.press("control", ",")
        page.type("#setting-system", "Be kind.")
        to_second()
        page.wait(lambda: page.texts(PROSE) == ["One.", "Two.", "Three."])
        page.wait(lambda: page.run("return document.querySelector('#setting-system').value") == "Be kind.")
        page.press("control", "shift", "o")
        answered(page, "Another")
        to_first()
        page.wait(lambda: page.texts(TITLES) == ["Another", "First"])


def test_tabs_that_do_not_hear_each_other_lose_nothing(page: Browser, server: ScriptedServer) -> None:
    server.say("One.", "Two.", "Three.")
    answered(page, "First")
    with second_tab(page) as (to_first, to_second):
        page.run(MUTE)
        answered(page, "In the second")
        to_first()
        page.run(MUTE)
        answered(page, "In the first")
        to_second()
        reload(page)
        page.wait(lambda: page.texts(PROSE) == ["One.", "Three."])
        assert page.text(".branches") == "2/2"
        page.run("document.querySelector('[aria-label=\"Earlier version\"]').click()")
        page.wait(lambda: page.texts(PROSE) == ["One.", "Two."])


@pytest.mark.parametrize("heard", [True, False])
def test_what_was_deleted_stays_deleted(page: Browser, server: ScriptedServer, heard: bool) -> None:
    answered(page, "First")
    with second_tab(page) as (to_first, to_second):
        page.wait(lambda: page.texts(TITLES) == ["First"])
        if not heard:
            page.run(MUTE)
        delete(page, "First")
        page.wait(lambda: page.visible(".welcome"))
        to_first()
        if heard:
            page.wait(lambda: page.visible(".welcome"))
        page.press("control", ",")
        page.type("#setting-system", "x")
        page.wait(lambda: page.count(TITLES) == 0 and page.visible(".welcome"))
        to_second()
        reload(page)
        assert page.count(TITLES) == 0


def test_a_deleted_conversation_does_not_come_back_with_its_answer(page: Browser, server: ScriptedServer) -> None:
    server.say([{"content": "Begun"}, 60, {"content": "."}])
    ask(page, "Secret")
    page.wait(lambda: page.texts(PROSE) == ["Begun"])
    time.sleep(1.6)  # so long that the next change would be kept at once
    delete(page, "Secret")
    page.wait(lambda: server.stopped == 1 and page.visible(".welcome"))
    assert page.run("return location.href").endswith("#/")
    reload(page)
    assert page.count(TITLES) == 0


def test_an_answer_that_grows_elsewhere_is_shown(page: Browser, server: ScriptedServer) -> None:
    server.say([{"content": "Begun"}, 1.6, {"content": ", growing"}, 1, {"content": ", done"}])
    ask(page, "Go")
    page.wait(lambda: page.texts(PROSE) == ["Begun"])
    with second_tab(page) as (to_first, _):
        page.wait(lambda: page.texts(PROSE) == ["Begun, growing"])
        page.wait(lambda: page.texts(PROSE) == ["Begun, growing, done"])
        to_first()
        page.wait(lambda: settled(page))
        assert page.texts(PROSE) == ["Begun, growing, done"]

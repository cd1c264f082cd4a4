"""Chat in a real browser: streaming, stopping, other answers, editing, what is kept, and what a model may not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import Browser
from chatting import PROSE, answered, ask, fresh, settled, visit
from scripted import DONE, Refusal, ScriptedServer


def test_an_answer_grows_and_tells_its_speed(page: Browser, server: ScriptedServer) -> None:
    server.say(
        [{"role": "assistant", "content": ""}, {"content": "One "}, 0.5, {"content": "two "}, *[{"content": "x"}] * 6]
    )
    ask(page, "Count")
    page.wait(lambda: page.text(PROSE) == "One")
    assert page.visible('[aria-label="Stop"]')
    page.wait(lambda: settled(page))
    assert page.text(PROSE) == "One two xxxxxx"
    stats = page.text(".stats")
    assert "tokens/s" in stats
    assert "first after" in stats
    assert "9 tokens" in stats
    assert page.text(".context") == "49 of 512 tokens"
    assert page.visible('[aria-label="Send"]')
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Count"}]
    assert server.requests[0]["model"] == "acme/tiny-chat"


def test_tokens_that_come_unseen_are_no_speed(page: Browser, server: ScriptedServer) -> None:
    call = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}]}
    server.say([{"role": "assistant", "content": ""}, *[{}] * 80, 0.2, call, 0.01, {"content": "."}])
    ask(page, "Call")
    page.wait(lambda: settled(page))
    assert "83 tokens" in page.text(".stats")
    assert "tokens/s" not in page.text(".stats")


def test_the_real_route_answers(chromium: Browser) -> None:
    from fake_llm import FakeLLM
    from serving import LiveServer

    llm = FakeLLM()
    llm.answer = "**Bold** and `code`."
    with LiveServer(llm) as live:
        fresh(chromium)
        visit(chromium, live.url)
        answered(chromium, "Hello")
        assert chromium.text(PROSE) == "Bold and code."
        assert chromium.texts(f"{PROSE} strong") == ["Bold"]
        assert "20 tokens" in chromium.text(".stats")
        assert not chromium.errors()


def test_stop_ends_it_on_the_server_too(page: Browser, server: ScriptedServer) -> None:
    for way in ("click", "key"):
        server.say([{"content": "Begun"}, 30, {"content": " never"}])
        ask(page, "Go")
        page.wait(lambda: page.texts(PROSE)[-1:] == ["Begun"])
        if way == "click":
            page.click('[aria-label="Stop"]')
        else:
            page.press("escape")
        page.wait(lambda: settled(page))
        assert "stopped" in page.texts(".stats")[-1]
    page.wait(lambda: server.stopped == 2)


LEAVE = """
    dispatchEvent(new Event("beforeunload"));
    ReadableStreamDefaultReader.prototype.read = () => Promise.reject(new TypeError("Error in input stream"));
"""


def test_an_answer_that_a_reload_breaks_off_was_stopped(page: Browser, server: ScriptedServer) -> None:
    server.say([{"content": "Begun"}, 1, {"content": ","}, 60])
    ask(page, "Go")
    page.wait(lambda: page.texts(PROSE) == ["Begun"])
    page.run(LEAVE)  # in the order of Firefox
    page.wait(lambda: settled(page))
    assert "stopped" in page.text(".stats")
    assert page.visible('[aria-label="Continue"]')
    assert not page.visible(".notice")


def test_turns_alternate_after_an_answer_without_text(page: Browser, server: ScriptedServer) -> None:
    server.say([30], Refusal(400, "no"), [{"reasoning": "Hm."}, "length"])
    ask(page, "Stopped")
    page.wait(lambda: len(server.requests) == 1)
    page.press("escape")
    page.wait(lambda: settled(page))
    for text in ("Refused", "Only thought", "Last"):
        answered(page, text)
    said = ["Stopped", "", "Refused", "", "Only thought", "", "Last"]
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]
    assert server.requests[-1]["messages"] == messages
    page.errors()


def test_another_answer_is_a_branch(page: Browser, server: ScriptedServer) -> None:
    server.say("First.", "Second.")
    answered(page, "Say")
    page.click('[aria-label="Regenerate"]')
    page.wait(lambda: page.text(PROSE) == "Second." and settled(page))
    assert page.text(".branches") == "2/2"
    assert server.requests[1]["messages"] == server.requests[0]["messages"]
    page.click('[aria-label="Earlier version"]')
    page.wait(lambda: page.text(PROSE) == "First.")


def test_an_edit_is_a_branch(page: Browser, server: ScriptedServer) -> None:
    server.say("About cats.", "More.", "About dogs.")
    answered(page, "Cats?")
    answered(page, "More?")
    page.run("document.querySelector('[aria-label=Edit]').click()")
    page.press("control", "a")
    page.type(".editor textarea", "Dogs?")
    page.press("enter")
    page.wait(lambda: page.texts(PROSE) == ["About dogs."] and settled(page))
    assert page.texts(".bubble") == ["Dogs?"]
    assert server.requests[2]["messages"] == [{"role": "user", "content": "Dogs?"}]
    page.run("document.querySelector('[aria-label=\"Earlier version\"]').click()")
    page.wait(lambda: page.texts(PROSE) == ["About cats.", "More."])
    page.run("document.querySelector('#message').focus()")
    page.press("up")
    page.wait(lambda: page.visible(".editor textarea"))
    page.press("escape")
    page.wait(lambda: not page.visible(".editor textarea"))


COMPOSE = """
    const keys = [["Enter", {keyCode: 229}], ["Escape", {isComposing: true}]]; // as in Safari; as everywhere
    const field = document.querySelector(args[0]);
    for (const [key, how] of keys) field.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, ...how}));
"""


def test_keys_of_an_input_method_are_its_own(page: Browser, server: ScriptedServer) -> None:
    server.say("Yes.", [{"content": "Begun"}, 1, {"content": ", done"}])
    page.type("#message", "ni hao")
    page.run(COMPOSE, "#message")
    assert page.count(".message") == 0
    page.press("enter")
    page.wait(lambda: settled(page))
    page.run("document.querySelector('[aria-label=Edit]').click()")
    page.run(COMPOSE, ".editor textarea")
    assert page.visible(".editor textarea")
    page.press("escape")
    ask(page, "More")
    page.wait(lambda: page.texts(PROSE)[1:] == ["Begun"])
    page.run(COMPOSE, "#message")
    page.wait(lambda: settled(page))
    assert page.texts(PROSE)[1:] == ["Begun, done"]


def test_the_editor_grows_with_its_text(page: Browser, server: ScriptedServer) -> None:
    answered(page, "One line")
    page.run("document.querySelector('[aria-label=Edit]').click()")
    height = "const field = document.querySelector('.editor textarea'); return [field.clientHeight, field.scrollHeight]"
    low, _ = page.run(height)
    for _ in range(8):
        page.press("shift", "enter")
    tall, needed = page.run(height)
    assert tall > low + 100
    assert tall >= needed


def test_an_edit_waits_for_the_answer_that_is_being_written(page: Browser, server: ScriptedServer) -> None:
    server.say("Yes.", "No.", [{"content": "Begun"}, 60, {"content": "."}], "Better.")
    answered(page, "Question")
    page.click('[aria-label="Regenerate"]')
    page.wait(lambda: page.texts(PROSE) == ["No."] and settled(page))
    page.run("document.querySelector('[aria-label=Edit]').click()")
    page.type(".editor textarea", ", and more")
    ask(page, "Next")
    page.wait(lambda: page.texts(PROSE)[1:] == ["Begun"])
    labels = "return [...document.querySelectorAll('.foot button:enabled')].map((each) => each.ariaLabel)"
    assert page.run(labels) == ["Copy", "Copy"]
    page.type(".editor textarea", "?")
    page.press("enter")
    page.wait(lambda: "Stop the answer" in page.text(".editor"))
    page.click('[aria-label="Stop"]')
    page.wait(lambda: settled(page))
    page.click(".editor [type=submit]")
    page.wait(lambda: page.texts(PROSE) == ["Better."] and settled(page))
    assert page.texts(".bubble") == ["Question, and more?"]


def test_a_cut_answer_goes_on(page: Browser, server: ScriptedServer) -> None:
    server.say([{"content": "Once upon"}, "length"], " a time.")
    answered(page, "Tell")
    page.click('[aria-label="Continue"]')
    page.wait(lambda: page.text(PROSE) == "Once upon a time." and settled(page))
    assert server.requests[1]["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert server.requests[1]["continue_final_message"] is True


def test_reasoning_is_folded(page: Browser, server: ScriptedServer) -> None:
    server.say(
        [{"reasoning": "Let me *think*"}, 0.6, {"reasoning": " more."}, {"content": "42"}],
        [{"reasoning_content": "Old name."}, {"content": "43"}],
        [{"reasoning": "Cut off in mid-"}, "length"],
    )
    ask(page, "Why?")
    page.wait(lambda: page.text(".thought summary") == "Thinking …")
    page.wait(lambda: settled(page))
    assert page.text(".thought summary").startswith("Thought for ")
    assert page.text(PROSE) == "42"
    assert not page.visible(".thought .prose")
    page.click(".thought summary")
    page.wait(lambda: page.text(".thought .prose") == "Let me think more.")
    answered(page, "Again?")
    assert page.texts(".thought[open]") == [page.text(".thought")]  # the second came folded
    answered(page, "Once more?")
    assert page.texts(".thought[open] .prose")[1:] == ["Cut off in mid-"]
    page.run("[...document.querySelectorAll('.thought summary')].at(-1).click()")
    answered(page, "Last?")
    assert page.count(".thought[open]") == 1
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "42"}


def test_tool_calls_are_shown_and_answered(page: Browser, server: ScriptedServer) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}
    pieces = [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"city":', ' "Paris"}')]
    server.say([{"tool_calls": [call]}, *pieces, "tool_calls"], "It rains.")
    page.press("control", ",")
    tools = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
    page.type("#setting-tools", tools)
    page.press("control", ",")
    answered(page, "Weather?")
    assert server.requests[0]["tools"] == json.loads(tools)
    assert page.text(".call figcaption") == "weather"
    assert json.loads(page.text(".call pre")) == {"city": "Paris"}
    page.type(".results textarea", "rain")
    page.click(".results button")
    page.wait(lambda: page.texts(PROSE)[-1:] == ["It rains."])
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert server.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]


def test_settings_reach_the_request(page: Browser, server: ScriptedServer) -> None:
    page.click('[aria-label="Settings"]')
    values = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "max_tokens": 99, "seed": 7,
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    }  # fmt: skip
    for name, value in values.items():
        page.type(f"#setting-{name}", str(value))
    page.type("#setting-system", "Be brief.")
    answered(page, "Hello")
    sent = server.requests[0]
    assert {name: sent[name] for name in values} == values
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    page.run("document.querySelector('.panel-body > .quiet').click()")
    answered(page, "Hello")
    assert not set(values) & set(server.requests[1])
    page.type("#setting-temperature", "9")
    assert page.run("return document.querySelector('#setting-temperature').getAttribute('aria-invalid')") == "true"
    answered(page, "Hello")
    assert "temperature" not in server.requests[2]
    page.type("#setting-top_p", "1e")  # no number: its value reads as empty
    assert page.run("return document.querySelector('#setting-top_p').getAttribute('aria-invalid')") == "true"


HOSTILE = """<img src=x onerror="window.hacked=1"> <script>window.hacked=1</script>

[a](javascript:window.hacked=1) [b](data:text/html,x) ![c](https://evil.example/x.png) [d](https://ok.example/"onclick=)

<iframe srcdoc="<script>parent.hacked=1</script>"></iframe>

| <svg onload=window.hacked=1> | `<b>` |
|---|---|
| <style>*{display:none}</style> | x |

```html"><img src=x onerror=window.hacked=1>
<script>window.hacked=1</script>
```
"""


EVENT_ATTRIBUTES = """
    const names = [...document.querySelectorAll(".message *")].flatMap((each) => each.getAttributeNames());
    return names.filter((name) => name.startsWith("on"));
"""


def test_what_a_model_writes_stays_text(page: Browser, server: ScriptedServer) -> None:
    call = {"tool_calls": [{"function": {"name": HOSTILE, "arguments": HOSTILE}}]}
    server.say(HOSTILE, [{"reasoning": HOSTILE}, {"content": "y"}], [call])
    for text in (HOSTILE.replace("\n", " "), "b", "c"):
        answered(page, text)
    assert page.run("return window.hacked") is None
    places, names = (".message", ".conversations"), ("img", "script", "iframe", "style")
    assert page.count(", ".join(f"{place} {name}" for place in places for name in names)) == 0
    addresses = page.run("return [...document.querySelectorAll('.message a')].map(a => a.getAttribute('href'))")
    assert {address.split(":")[0] for address in addresses} == {"https"}
    assert page.run(EVENT_ATTRIBUTES) == []


MAKE_MARKUP = """
    try { document.createElement("p").innerHTML = "<b>x</b>"; } catch (error) { return error.name }
    return "made";
"""
REACH_OUT = "try { await fetch('https://evil.example/'); } catch (error) { return error.name } return 'reached'"


def test_the_policy_holds(page: Browser) -> None:
    assert page.run(MAKE_MARKUP) == "TypeError"
    assert page.run(REACH_OUT) == "TypeError"
    assert all("Content Security Policy" in error or "TrustedHTML" in error for error in page.errors())


def test_refused_requests_wait_and_try_again(page: Browser, server: ScriptedServer) -> None:
    server.say(Refusal(429, "too many", {"retry-after": "1"}), Refusal(503, "full", {"retry-after": "40"}), "At last.")
    ask(page, "Hello")
    page.wait(lambda: "Trying again in" in page.text(".notice"))
    page.wait(lambda: "The server is busy. Trying again in" in page.text(".notice"))
    page.click(".notice button")
    page.wait(lambda: page.text(PROSE) == "At last." and settled(page))
    assert len(server.requests) == 3
    page.errors()


def test_errors_are_told_and_can_be_tried_again(page: Browser, server: ScriptedServer) -> None:
    error = {"message": "numbers went wrong", "type": "x", "param": None, "code": 500}
    broken = b"data: " + json.dumps({"error": error}).encode() + b"\n\n" + DONE
    server.say(Refusal(400, "temperature must be at most 2", param="temperature"), [{"content": "Half"}, broken, 5])
    ask(page, "Hello")
    page.wait(lambda: settled(page))
    assert "temperature must be at most 2 temperature" in page.text(".notice").replace("\n", " ")
    page.click(".notice button")
    page.wait(lambda: "numbers went wrong" in page.text(".notice") and settled(page))
    assert page.text(PROSE) == "Half"
    page.click(".notice button")
    page.wait(lambda: page.text(PROSE) == "Yes." and settled(page))
    assert page.text(".branches") == "2/2"
    page.errors()


def test_another_model_is_learned(page: Browser, server: ScriptedServer) -> None:
    names = server.app._services.names
    names.served = ["acme/other"]
    server.say(Refusal(404, "the model is not served here", param="model"))
    ask(page, "Hello")
    page.wait(lambda: page.text(".model") == "other" and settled(page))
    page.click(".notice button")
    page.wait(lambda: page.texts(PROSE) == ["Yes."])
    assert [request["model"] for request in server.requests] == ["acme/tiny-chat", "acme/other"]
    names.served = ["acme/third"]
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait(lambda: page.text(".model") == "third")
    page.errors()


def test_a_loading_model_is_waited_for(page: Browser, server: ScriptedServer) -> None:
    server.llm.state = "loading"
    ask(page, "Hello")
    page.wait(lambda: "The model is loading: weights" in page.text(".notice"))
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait(lambda: "weights (30 %)" in page.text(".strip"))
    server.llm.state = "ready"
    page.wait(lambda: page.text(PROSE) == "Yes.")
    page.wait(lambda: not page.visible(".strip"))
    page.errors()


def test_a_server_that_is_gone(chromium: Browser) -> None:
    fresh(chromium)
    with ScriptedServer() as server:
        visit(chromium, server.url)
        chromium.wait(lambda: chromium.text(".status") == "Ready")
    chromium.type("#message", "Hello")
    chromium.press("enter")
    chromium.wait(lambda: "The server does not answer" in chromium.text(".notice"))
    chromium.run("document.dispatchEvent(new Event('visibilitychange'))")
    chromium.wait(lambda: "nothing of yours is lost" in chromium.text(".strip"))
    chromium.errors()


def test_a_store_that_the_browser_closes_is_opened_again(page: Browser, server: ScriptedServer) -> None:
    server.say("One.", "Two.")
    answered(page, "First")
    page.command("Storage.clearDataForOrigin", origin=server.url, storageTypes="indexeddb")
    page.wait(lambda: page.run("return (await indexedDB.databases()).length === 0"))
    answered(page, "Second")
    assert not page.visible(".strip")
    page.post("/refresh", {})
    page.wait(lambda: page.texts(PROSE) == ["One.", "Two."])


RIGHT_TO_LEFT = """مرحبا world.

1. أولاً

> اقتباس

| عمود | b |
|---|---|
| 1 | 2 |

```
# مرحبا
```

Left to right."""
SIDES = """
    const side = (element) => { // where its text begins
        const range = document.createRange();
        range.selectNodeContents(element);
        const [text, box] = [range.getClientRects()[0], element.getBoundingClientRect()];
        return text.left - box.left < box.right - text.right ? "left" : "right";
    };
    return args[0].map((selector) => side(document.querySelector(selector)));
"""


def test_text_from_right_to_left(page: Browser, server: ScriptedServer) -> None:
    server.say(RIGHT_TO_LEFT)
    answered(page, "مرحبا")
    places = ["> p", "ol span", "blockquote p", "td", "pre", "> p:last-child"]
    assert page.run(SIDES, [f"{PROSE} {place}" for place in places]) == [*["right"] * 4, "left", "left"]
    direction = "return args[0].map((each) => getComputedStyle(document.querySelector(each)).direction)"
    page.type("#message", "مرحبا")
    found = page.run(direction, [f"{PROSE} ol", f"{PROSE} table", "#message", "h1", ".conversations a"])
    assert found == ["rtl"] * 5


def test_conversations_are_kept(page: Browser, server: ScriptedServer) -> None:
    server.say("Red.", "Blue.")
    answered(page, "First colour?")
    page.press("control", "shift", "o")
    page.wait(lambda: page.visible(".welcome"))
    answered(page, "Second colour?")
    assert page.texts(".conversations a") == ["Second colour?", "First colour?"]
    page.post("/refresh", {})
    page.wait(lambda: page.texts(PROSE) == ["Blue."])
    page.click(".conversations li:nth-child(2) a")
    page.wait(lambda: page.texts(PROSE) == ["Red."])
    page.press("control", "k")
    page.type(".find input", "blue")
    page.wait(lambda: page.texts(".conversations a") == ["Second colour?"])
    page.run("const f = document.querySelector('.find input'); f.value = ''; f.dispatchEvent(new Event('input'))")
    page.run("document.querySelector('[aria-label=\"Delete First colour?\"]').click()")
    page.click("dialog .primary")
    page.wait(lambda: page.texts(".conversations a") == ["Second colour?"])


NO_ROOM = """
    window.put ??= IDBObjectStore.prototype.put;
    const full = function (value) {
        const request = window.put.call(this, value);
        request.addEventListener("success", () => this.transaction.abort());
        return request;
    };
    IDBObjectStore.prototype.put = args[0] ? full : window.put;
"""


def test_an_answer_cut_by_a_reload_goes_on(page: Browser, server: ScriptedServer) -> None:
    server.say([{"content": "Half"}, 1.6, {"content": " of"}, 60], " it.")
    ask(page, "Go")
    page.wait(lambda: page.texts(PROSE) == ["Half of"])
    page.post("/refresh", {})
    page.wait(lambda: page.texts(PROSE) == ["Half of"] and "stopped" in page.text(".stats"))
    page.click('[aria-label="Continue"]')
    page.wait(lambda: page.texts(PROSE) == ["Half of it."] and settled(page))
    assert "stopped" not in page.text(".stats")


def test_what_the_browser_did_not_keep_is_told(page: Browser, server: ScriptedServer, tmp_path: Path) -> None:
    answered(page, "Old")
    page.run(NO_ROOM, True)
    page.press("control", "shift", "o")
    answered(page, "Keep me")
    page.wait(lambda: "did not keep" in page.text(".strip.fault"))
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click(".strip.fault button")
    file = tmp_path / "octavo-conversations.json"
    page.wait(lambda: file.exists() and "Keep me" in file.read_text())
    page.run(NO_ROOM, False)
    page.run("document.querySelector('[aria-label=\"Delete Old\"]').click()")
    page.click("dialog .primary")
    page.wait(lambda: not page.visible(".strip.fault"))
    page.post("/refresh", {})
    page.wait(lambda: page.texts(".conversations a") == ["Keep me"])
    page.errors()


def test_export_and_import(page: Browser, server: ScriptedServer, tmp_path: Path) -> None:
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    server.say([{"reasoning": "Hm."}, {"content": "Kept."}])
    answered(page, "Keep this")
    page.click('[aria-label="Export all conversations"]')
    file = tmp_path / "octavo-conversations.json"
    page.wait(lambda: file.exists() and file.stat().st_size)
    saved = json.loads(file.read_text())
    assert [node["content"] for node in saved["conversations"][0]["nodes"].values()] == ["Keep this", "Kept."]
    page.run("document.querySelector('[aria-label=\"Delete Keep this\"]').click()")
    page.click("dialog .primary")
    page.wait(lambda: page.count(".conversations a") == 0)
    page.type("input[type=file]", str(file))
    page.wait(lambda: page.texts(".conversations a") == ["Keep this"])
    page.click(".conversations a")
    page.wait(lambda: page.texts(PROSE) == ["Kept."] and page.count(".thought") == 1)


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '{"format": "octavo-conversations", "conversations": [{"nodes": {"a": {"role": "x"}}}]}'],
)
def test_what_is_no_export_is_refused(page: Browser, tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    page.type("input[type=file]", str(file))
    page.wait(lambda: "Nothing was imported" in page.text("dialog"))
    page.press("escape")
    assert page.count(".conversations a") == 0

"""The engine's view in a real browser: what /metrics says, as tiles, charts and percentiles."""

from __future__ import annotations

from browser import Browser
from chatting import answered
from scripted import ScriptedServer
from starlette.routing import Route

from octavo.base.types.messages import EngineStats
from octavo.server.exchange import Exchange, Reply
from octavo.server.services import Services


def tiles(page: Browser) -> dict[str, str]:
    return dict(zip(page.texts(".tile > span"), page.texts(".tile > b"), strict=True))


def test_numbers_charts_and_percentiles(page: Browser, server: ScriptedServer) -> None:
    for _ in range(90):
        server.app._services.metrics.requests.observe("time_to_first_token_seconds", 0.05)
    for _ in range(10):
        server.app._services.metrics.requests.observe("time_to_first_token_seconds", 9.0)
    server.app._services.metrics.requests.end("stop")
    server.llm.stats = EngineStats(num_running=3, num_waiting=2, kv_usage=0.25, generation_tokens=1000)
    page.click('.tabs a[data-view="engine"]')
    page.wait(lambda: tiles(page).get("Running") == "3")
    assert tiles(page)["Waiting"] == "2"
    assert tiles(page)["KV cache in use"] == "25 %"
    assert tiles(page)["Prefix hits"] == "–"
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in page.texts(".latencies tbody tr")}
    assert rows["Time to first token"] == ["51 ms", "60 ms", "9.8 s", "945 ms", "100"]
    assert rows["Whole request"] == ["–", "–", "–", "–", "0"]
    assert "Answers\n1" in page.text(".counts")
    assert "100 of 16 tokens" in page.text(".counts")
    server.llm.stats = EngineStats(
        num_running=4, kv_usage=0.5, generation_tokens=1500, prefix_queries=200, prefix_hits=150
    )
    page.wait(lambda: tiles(page)["Running"] == "4" and tiles(page)["Prefix hits"] == "75 %")
    page.wait(lambda: page.count(".charts .line.line-1") >= 3)
    generated = page.text(".legend .line-1 b")
    assert generated == "0" or float(generated) > 100  # the step of 500 tokens, or a second after it
    page.run("document.querySelector('.plot').dispatchEvent(new PointerEvent('pointermove', {clientX: 600}))")
    assert page.text(".legend .when")
    assert page.count(".chart") == 6


def test_a_server_that_began_anew(page: Browser, server: ScriptedServer) -> None:
    counts = (1, 100, 0)

    async def metrics(services: Services, exchange: Exchange) -> Reply:
        names = ("process_start_time_seconds", "octavo:prefix_cache_queries_total", "octavo:prefix_cache_hits_total")
        return Reply("".join(f"{name} {count}\n" for name, count in zip(names, counts, strict=True)).encode())

    server.app.routes.insert(0, Route("/metrics", metrics, methods=["GET"]))
    page.click('.tabs a[data-view="engine"]')
    page.wait(lambda: tiles(page).get("Generated") == "0")
    for start, queries, hits, shown in [
        (1, 200, 90, "90 %"),
        (1, 250, 20, "–"),  # a counter fell
        (1, 350, 70, "50 %"),
        (2, 450, 95, "–"),  # another process, which has counted more already
    ]:
        counts = (start, queries, hits)
        page.wait(lambda shown=shown: tiles(page)["Prefix hits"] == shown, seconds=5)


def test_prompt_tokens_from_the_cache_were_not_computed(page: Browser, server: ScriptedServer) -> None:
    server.llm.stats = EngineStats(prompt_tokens=1000, prefix_hits=900)
    page.click('.tabs a[data-view="engine"]')
    page.wait(lambda: "Prompt tokens computed\n100\n" in page.text(".counts"))


def test_a_failing_server_is_told(page: Browser, server: ScriptedServer) -> None:
    page.click('.tabs a[data-view="engine"]')
    page.wait(lambda: tiles(page).get("Running") == "0")
    server.app.routes[:] = [route for route in server.app.routes if route.path != "/metrics"]
    page.wait(lambda: "there is no such path" in page.text(".engine .notice"))
    page.errors()
    page.click('.tabs a[data-view="chat"]')
    answered(page, "Still there?")
    page.errors()

"""Log lines: JSON objects that carry the request's id, its route, status and time; parameters where they are wanted."""

from __future__ import annotations

from fake_llm import FakeLLM
from log_lines import Lines
from serving import LiveServer

from octavo.api.engine_process import spawn
from octavo.api.log import log_form


def test_every_answer_is_a_line_with_its_request(lines: Lines) -> None:
    with LiveServer(FakeLLM()) as server:
        server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}, **{"x-request-id": "one"})
        server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True}, **{"x-request-id": "two"})
        server.post("/v1/completions", {"prompt": 1}, **{"x-request-id": "bad"})
        answer = server.client.get("/nowhere")
    for name, status in (("one", 200), ("two", 200), ("bad", 400)):
        (line,) = lines.all(request_id=name, route="/v1/completions", method="POST", level="INFO")
        assert line["status"] == status
        assert 0 < line["seconds"] < 60
        assert "error" not in line
    (line,) = lines.all(request_id=answer.headers["x-request-id"])
    assert (line["route"], line["status"], line["level"]) == ("unmatched", 404, "DEBUG")


def test_a_failure_names_its_request(lines: Lines) -> None:
    llm = FakeLLM()
    llm.fail_at, llm.failure = 0, ValueError("oops")
    with LiveServer(llm) as server:
        server.post("/v1/completions", {"prompt": "a"}, **{"x-request-id": "mine"})
    (line,) = lines.all(request_id="mine", level="ERROR")
    assert "ValueError: oops" in line["error"]


def test_parameters_are_logged_on_demand_and_texts_never(lines: Lines) -> None:
    body = {"prompt": "secret\nline", "max_tokens": 2, "seed": 7, "stop": ["a\nb"]}
    with LiveServer(FakeLLM()) as server:
        server.post("/v1/completions", body, **{"x-request-id": "quiet"})
    assert not [line for line in lines.all() if "seed" in line["message"]]
    with LiveServer(FakeLLM(), enable_log_requests=True) as server:
        server.post("/v1/completions", body, **{"x-request-id": "told"})
    (line,) = [line for line in lines.all(request_id="told") if "seed" in line["message"]]
    assert "'seed': 7" in line["message"]
    assert "temperature" not in line["message"]
    assert "\n" not in line["message"]
    assert line["prompt_tokens"] == 12
    assert "secret" not in lines.stream.getvalue()


def test_the_engine_process_logs_in_the_same_form(lines: Lines) -> None:
    assert log_form() == "json"
    process = spawn("cpu")
    try:
        assert process.process.args[-2:] == ["json", "DEBUG"]  # type: ignore[index]
    finally:
        process.drop()

"""`octavo bench serve` against a live server: table, JSON fields, failures that are told; its parts one by one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_bench import chart, check_chart

from octavo.base.errors import EngineDeadError
from octavo.cli import main
from octavo.cli.bench import load, serve
from octavo.cli.bench.client import Client, Outcome, StreamReader
from octavo.cli.bench.datasets import Sample
from octavo.cli.bench.figures import write_json
from octavo.cli.bench.load import arrivals, make_body
from octavo.cli.bench.options import ServeOptions
from octavo.cli.bench.report import Timings, Wanted, details, summarise
from octavo.cli.bench.serve import result_path

FIELDS = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
    "burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests",
    *(f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip


def bench(server: Any, llama: str, *arguments: str) -> int:
    sizes = ["--num-prompts", "6", "--input-len", "8", "--output-len", "12"]
    return main(["bench", "serve", "--port", str(server.port), "--tokenizer", llama, *sizes, *arguments])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_table_and_fields(server: Any, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.llm.delay = 0.002
    save = ["--save-result", "--result-dir", str(tmp_path / "new"), "--metadata", "tp=1", "run=a=b"]
    assert bench(server, llama, *save, *chart(tmp_path / "c.png")) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.startswith("openai-infqps-model-")
    result = read(path)
    assert set(result) == FIELDS | {"tp", "run"}
    assert (result["tp"], result["run"], result["model_id"]) == ("1", "a=b", "fake/model")
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (6, 0, 72)
    assert result["total_input_tokens"] == sum(len(prompt) for prompt, *_ in server.llm.seen)
    assert result["output_throughput"] == pytest.approx(72 / result["duration"])
    assert 0 < result["mean_ttft_ms"] < result["mean_e2el_ms"]
    assert result["median_tpot_ms"] >= 2
    shown = capsys.readouterr().out
    assert "============ Serving Benchmark Result ============" in shown
    assert f"{'Successful requests:':<40} 6" in shown
    assert "Mean TTFT (ms):" in shown
    assert "E2EL" not in shown
    check_chart(tmp_path / "c.png")


def test_random_runs_ignore_eos_and_are_traced(server: Any, llama: str) -> None:
    assert bench(server, llama, "--temperature", "0", "--extra-body", '{"top_k": 3}') == 0
    params = [params for _, params, *_ in server.llm.seen]
    assert {(one.ignore_eos, one.temperature, one.top_k, one.max_tokens) for one in params} == {(True, 0.0, 3, 12)}


def test_chat_with_details(server: Any, llama: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello"}\n{"prompt": "Good day"}\n')
    data = ["--dataset-name", "custom", "--dataset-path", str(path), "--disable-shuffle", "--num-prompts", "2"]
    save = ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    assert bench(server, llama, "--backend", "openai-chat", *data, *save) == 0
    result = read(tmp_path / "r.json")
    assert [messages for messages, _ in server.llm.rendered] == [
        [{"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "Good day"}],
    ]
    assert result["output_lens"] == [12, 12]
    assert [len(itl) for itl in result["itls"]] == [11, 11]
    assert all(len(text) == 12 for text in result["generated_texts"])
    for ttft, itl, latency in zip(result["ttfts"], result["itls"], result["latencies"], strict=True):
        assert ttft + sum(itl) == pytest.approx(latency)


def test_concurrency_is_bounded_and_results_append(server: Any, llama: str, tmp_path: Path) -> None:
    server.llm.delay = 0.001
    save = ["--append-result", "--result-dir", str(tmp_path), "--result-filename", "r.jsonl"]
    for _ in range(2):
        assert bench(server, llama, "--max-concurrency", "2", "--num-warmups", "3", *save) == 0
    assert server.llm.most_running == 2
    assert len(server.llm.seen) == 2 * (6 + 3)
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["max_concurrent_requests"] for row in rows] == [2, 2]


def test_appended_results_begin_a_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"a": 1})
    for number in (2, 3):
        write_json(path, {"a": number}, append=True)
    assert path.read_text().endswith('}\n{"a": 2}\n{"a": 3}\n')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save-result", "--label", "a/b"], "--label a/b"),
        (["--save-result", "--result-filename", "/nowhere/r.json"], "/nowhere does not exist"),
        (["--save-result", "--result-dir", __file__], "--result-dir"),
        (["--save-result", "--result-filename", "x" * 300], "too long"),
        (["--base-url", "http://host:port"], "Invalid port"),
        (["--base-url", "http://[::1"], "is no server's address"),
        (["--base-url", "http://localhost:99999"], "up to 65535"),
        (["--base-url", ":99999"], "must be http://HOST:PORT"),
        (["--header", "X-A=\u00e9"], "printable ASCII"),
        (["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "0", "--ramp-up-end-rps", "2"], ">= 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def sent(*given: Any) -> None:
        raise AssertionError("it was sent")

    monkeypatch.setattr(serve, "_measure", sent)
    assert main(["bench", "serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_goodput(server: Any, llama: str, tmp_path: Path) -> None:
    save = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    assert bench(server, llama, "--goodput", "ttft:1000000", "e2el:0", *save) == 0
    assert read(tmp_path / "r.json")["request_goodput"] == 0
    assert bench(server, llama, "--goodput", "ttft:1000000", *save) == 0
    result = read(tmp_path / "r.json")
    assert result["request_goodput"] == result["request_throughput"]


def test_refused_requests_are_told(server: Any, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.llm.overloaded = True
    save = ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    assert bench(server, llama, *save, *chart(tmp_path / "c.png")) == 1
    shown = capsys.readouterr()
    assert f"{'Failed requests:':<40} 6" in shown.out
    assert shown.err.strip() == "6 failed: HTTP 503: the queue is full"
    result = read(tmp_path / "r.json")
    assert (result["completed"], result["failed"], result["output_lens"]) == (0, 6, [0] * 6)
    assert result["errors"] == ["HTTP 503: the queue is full"] * 6


def test_streams_that_break_are_told(server: Any, llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.llm.fail_at, server.llm.failure = 4, EngineDeadError("the engine process ended")
    server.llm.delay = 0.001
    assert bench(server, llama) == 1
    shown = capsys.readouterr()
    assert f"{'Successful requests:':<40} 0" in shown.out
    assert "6 failed: " in shown.err
    assert "the engine process ended" in shown.err


def test_the_server_must_answer_before_the_run(server: Any, llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, llama, "--model", "other", "--ready-check-timeout-sec", "30") == 2
    assert "refuses such a request: HTTP 404" in capsys.readouterr().err
    assert bench(server, llama, "--ready-check-timeout-sec", "30") == 0


def test_a_server_that_starts_is_waited_for(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_llm import FakeLLM
    from serving import LiveServer

    monkeypatch.setattr(load, "RETRY_S", 0.01)
    asked: list[int] = []
    models = Client.models

    async def late(self: Client) -> list[str]:
        asked.append(1)
        if len(asked) < 3:
            raise ValueError("ConnectError: refused")
        return await models(self)

    monkeypatch.setattr(Client, "models", late)
    with LiveServer(FakeLLM()) as server:
        assert bench(server, llama) == 2
        assert bench(server, llama, "--ready-check-timeout-sec", "30") == 0
    assert len(asked) == 3


def test_a_model_without_tokenizer_names_the_remedy(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--port", str(server.port), "--model", "/nowhere"]) == 2
    assert "name one by --tokenizer" in capsys.readouterr().err


def test_without_a_tokenizer_the_server_counts(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abc"}\n')
    data = ["--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "1", "--skip-tokenizer-init"]
    save = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    assert main(["bench", "serve", "--port", str(server.port), *data, *save]) == 0
    assert read(tmp_path / "r.json")["total_input_tokens"] == 4  # three bytes and a bos


def test_keys_and_headers(monkeypatch: pytest.MonkeyPatch, llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fake_llm import FakeLLM
    from serving import LiveServer

    with LiveServer(FakeLLM(), api_key=["sesame"]) as closed:
        assert bench(closed, llama) == 2
        assert "HTTP 401" in capsys.readouterr().err
        assert bench(closed, llama, "--header", "Authorization=Bearer sesame") == 0
        monkeypatch.setenv("OPENAI_API_KEY", "sesame")
        assert bench(closed, llama) == 0
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        assert bench(closed, llama, "--header", "Authorization=Bearer sesame") == 0


EVENTS = [
    b": keep-alive\n\n",
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"one"}}],"usage":null}\r\n\r\n',
    b'data: {"choices":[{"delta":{"reasoning":" two"}}]}\n\ndata: {"choices":[{"delta":{"content":" three"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\n',
    b"data: [DONE]\n\n",
]


def test_reading_a_stream() -> None:
    outcome = Outcome(prompt_len=3, start=10.0)
    reader = StreamReader(outcome)
    for number, data in enumerate(EVENTS):
        reader.feed(data, 11.0 + number)
    reader.finish()
    assert (outcome.error, outcome.text) == ("", "one two three")
    assert (outcome.ttft, outcome.itl, outcome.latency) == (3.0, [1.0, 0.0], 5.0)
    assert (outcome.prompt_len, outcome.output_tokens) == (5, 7)


def test_a_stream_may_be_cut_anywhere() -> None:
    whole = b"".join(EVENTS)
    for size in (1, 2, 7, 64):
        outcome = Outcome(prompt_len=3)
        reader = StreamReader(outcome)
        for start in range(0, len(whole), size):
            reader.feed(whole[start : start + size], 1.0)
        reader.finish()
        assert (outcome.text, len(outcome.itl), outcome.output_tokens) == ("one two three", 2, 7)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "broke off"),
        (EVENTS[2], "broke off"),
        (EVENTS[2] + b'data: {"error":{"message":"out of memory"}}\n\ndata: [DONE]\n\n', "out of memory"),
        (b'data: {"error":"plain"}\n\n', "plain"),
    ],
)
def test_what_a_stream_lacks(data: bytes, words: str) -> None:
    outcome = Outcome(prompt_len=3)
    reader = StreamReader(outcome)
    reader.feed(data, 1.0)
    reader.finish()
    assert words in outcome.error


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"502 Bad Gateway\r\n\r\n" + '{"error": "zu spät"}'.encode("latin-1"), "HTTP 502: {"),
        (b"200 OK\r\n\r\ndata: " + '{"error": "zu spät"}\n\n'.encode("latin-1"), "is no chunk"),
    ],
)
def test_answers_that_are_no_utf8_are_outcomes(answer: bytes, words: str) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + answer)
        writer.close()

    async def ask() -> Outcome:
        listener = await asyncio.start_server(reply, "127.0.0.1", 0)
        async with listener:
            url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            async with Client(base_url=url, headers={}, insecure=False) as client:
                return await client.send("/v1/completions", {}, Sample("a", 1, 1), request_id="a")

    assert words in asyncio.run(ask()).error


def test_arrivals() -> None:
    assert arrivals(ServeOptions(), 3) == [0.0, 0.0, 0.0]
    due = arrivals(ServeOptions(request_rate=5.0), 1000)
    assert (
        due == arrivals(ServeOptions(request_rate=5.0), 1000) != arrivals(ServeOptions(request_rate=5.0, seed=1), 1000)
    )
    assert due == sorted(due)
    assert due[-1] == pytest.approx(200.0)
    gaps = np.diff(due)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1.0, abs=0.15)
    assert arrivals(ServeOptions(request_rate=5.0, burstiness=float("inf")), 3) == pytest.approx([0.2, 0.4, 0.6])
    steady = np.diff(arrivals(ServeOptions(request_rate=5.0, burstiness=100.0), 1000))
    assert np.std(steady) / np.mean(steady) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_ramp_gets_faster(strategy: Any) -> None:
    options = ServeOptions(ramp_up_strategy=strategy, ramp_up_start_rps=2, ramp_up_end_rps=20, burstiness=1000.0)
    gaps = np.diff(arrivals(options, 500))
    assert gaps[:20].mean() == pytest.approx(1 / 2, rel=0.2)
    assert gaps[-20:].mean() == pytest.approx(1 / 20, rel=0.2)


def test_bodies() -> None:
    sample = Sample("text", 1, 9)
    options = ServeOptions(top_p=0.5, logprobs=2, extra_body={"max_tokens": 4, "x": 1})
    body = make_body(options, sample, model="m", ignore_eos=False)
    assert (body["prompt"], body["max_tokens"], body["logprobs"], body["top_p"], body["x"]) == ("text", 4, 2, 0.5, 1)
    assert "ignore_eos" not in body
    assert "temperature" not in body
    body = make_body(ServeOptions(backend="openai-chat", logprobs=2), sample, model="m", ignore_eos=True)
    assert body["messages"] == [{"role": "user", "content": "text"}]
    assert (body["max_completion_tokens"], body["top_logprobs"], body["ignore_eos"]) == (9, 2, True)


def test_figures_of_known_outcomes() -> None:
    outcomes = [
        Outcome(prompt_len=10, start=100.0, ttft=0.5, itl=[0.5, 1.0], latency=2.0, output_tokens=4),
        Outcome(prompt_len=20, start=101.0, ttft=1.0, itl=[], latency=1.0, output_tokens=1),
        Outcome(prompt_len=7, start=101.5, error="HTTP 500: x"),
        Outcome(prompt_len=30, start=102.0, ttft=0.25, itl=[0.25], latency=0.5, text="a b c"),
    ]
    timings = Timings(outcomes, lambda text: len(text.split()))
    assert timings.output_lens == [4, 1, 3]
    assert timings.seconds("tpot") == [0.5, 0.125]
    wanted = Wanted(["ttft"], [50.0, 99.5], {"ttft": 600, "tpot": 300})
    result = summarise(timings, outcomes, 4.0, wanted)
    assert (result["completed"], result["failed"]) == (3, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (60, 8)
    assert (result["output_throughput"], result["total_token_throughput"]) == (2.0, 17.0)
    assert result["request_goodput"] == 1 / 4  # the third alone keeps both bounds
    assert result["mean_ttft_ms"] == pytest.approx(np.mean([500, 1000, 250]))
    assert result["p99.5_itl_ms"] == pytest.approx(np.percentile([500, 1000, 250], 99.5))
    assert result["std_e2el_ms"] == pytest.approx(np.std([2000, 1000, 500]))
    assert result["max_concurrent_requests"] == 2
    assert result["max_output_tokens_per_s"] == pytest.approx(4 / 3 + 1 + 3)
    rows = details(timings, outcomes)
    assert rows["output_lens"] == [4, 1, 0, 3]
    assert rows["start_times"] == [0.0, 1.0, 1.5, 2.0]


def test_result_names() -> None:
    options = ServeOptions(max_concurrency=8, request_rate=4.0, label="mine")
    assert str(result_path(options, "org/m", "D")) == "mine-4.0qps-concurrency8-m-D.json"
    ramp = ServeOptions(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=9, result_dir="d")
    assert str(result_path(ramp, "m", "D")) == "d/openai-ramp-up-linear-1qps-9qps-m-D.json"

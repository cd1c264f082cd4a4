"""The server as a process: what it prints, how it drains, how it ends; ports that are taken."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import parse_events, wait_for

from octavo.base.config.config import ServerConfig
from octavo.base.errors import ConfigError
from octavo.server.launch import LAST_ARRIVALS_S, banner, say
from octavo.server.listener import listen

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Process:
    """served_fake.py, started; `url` once it listens. It is killed if a test leaves it running."""

    def __init__(self, **options: Any) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "served_fake.py"), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.first = self.line()
        self.url = re.search(r"http://\S+?(?=;)", self.first)[0]  # type: ignore[index]
        self.client = httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str]:
        """Its status and what it logged, once it has ended."""
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors

    def stream(self, tokens: int, found: list[list[Any]]) -> threading.Thread:
        """A stream that has begun, read on in a thread; its events come into `found`."""
        begun = threading.Event()

        def read() -> None:
            request = {"prompt": "a", "max_tokens": tokens, "stream": True}
            with (
                httpx.Client(trust_env=False, timeout=30) as client,
                client.stream("POST", self.url + "/v1/completions", json=request) as response,
            ):
                begun.set()
                found.append(parse_events(response.read().decode()))

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(10)
        return thread

    def status(self, path: str) -> int:
        return self.client.get(path).status_code


def test_it_prints_lines_that_work() -> None:
    with Process(server={"log_format": "json"}) as served:
        assert "loading fake/model" in served.first
        assert served.line().startswith(f"Ready: {served.url} serves fake/model")
        curl, python = served.line(), served.line()
        assert "curl " in curl
        for line in (curl, python):
            command = line.replace("python3", sys.executable).strip()
            printed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)
            assert "brown fox" in printed.stdout
        served.process.send_signal(signal.SIGINT)
        code, logged = served.end()
        assert code == 0
        assert "shutting down" in json.loads(logged.splitlines()[-1])["message"]


def test_a_drain_lets_streams_end_and_takes_no_new_ones() -> None:
    with Process(llm={"delay": 0.01}) as served:
        found: list[list[Any]] = []
        threads = [served.stream(100, found) for _ in range(5)]
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: served.status("/readyz") == 503)
        assert served.client.get("/readyz").json() == {"status": "draining"}
        assert served.status("/livez") == 200
        refused = served.client.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        for thread in threads:
            thread.join()
        assert [events[-1] for events in found] == ["[DONE]"] * 5
        assert [len(events) for events in found] == [101] * 5
        assert served.end()[0] == 0


def test_an_upload_that_ends_after_the_drain_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Process() as served:
        assert served.line().startswith("Ready")

        def body() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            served.process.send_signal(signal.SIGTERM)
            time.sleep(LAST_ARRIVALS_S + 0.2)
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nmine\r\n--b--'

        with suppress(httpx.TransportError):  # a busy machine may have cut it off
            served.client.post("/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
        assert served.end()[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("twice", [False, True])
def test_what_takes_too_long_is_cut_off_with_an_error(twice: bool) -> None:
    with Process(llm={"delay": 0.05}, server={"shutdown_timeout": 20.0 if twice else 0.3}) as served:
        found: list[list[Any]] = []
        thread = served.stream(400, found)
        served.process.send_signal(signal.SIGTERM)
        if twice:
            wait_for(lambda: served.status("/readyz") == 503)
            served.process.send_signal(signal.SIGTERM)
        thread.join(10)
        assert found[0][-1] == "[DONE]"
        assert found[0][-2]["error"]["code"] == 503
        assert len(found[0]) < 300
        assert served.end()[0] == 0


def test_a_stderr_that_nobody_reads_stops_nothing() -> None:
    with Process() as served:
        for number in range(500):  # a line each, 64 kB in all
            name = {"x-request-id": f"{number:0>128}"}
            answer = served.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "n": -1}, headers=name)
            assert answer.status_code == 400
        assert served.status("/livez") == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0


def test_it_listens_while_the_model_loads_and_can_be_stopped_then() -> None:
    with Process(loads_forever=True) as served:
        wait_for(lambda: served.client.get("/readyz").json()["status"] == "loading")
        assert served.status("/livez") == 200
        assert served.client.post("/v1/completions", json={"prompt": "a"}).status_code == 503
        served.process.send_signal(signal.SIGTERM)
        assert served.end()[0] == 0


def test_a_model_that_does_not_load() -> None:
    with Process(missing=True) as served:
        code, logged = served.end()
        assert code == 1
        assert "no such model: x" in logged
        assert "Traceback" not in logged


def test_a_warning_where_all_may_use_it() -> None:
    with Process(server={"host": "0.0.0.0"}) as served:
        assert served.url.startswith("http://127.0.0.1:")
        served.line()
        served.process.send_signal(signal.SIGTERM)
        assert "no --api-key" in served.end()[1]


def test_a_taken_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use; take another with --port"):
            listen("127.0.0.1", port)


def test_two_servers_do_not_share_a_port() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "8.8.8.8"])
def test_addresses_that_are_not_ours(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(host, 0)
    assert caught.value.param == "host"


def test_a_chunk_does_not_wait_for_the_acknowledgement_of_the_one_before() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_only_the_http_port_listens() -> None:
    with listen(ServerConfig().host, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("use", "path"),
    [
        ("chat", "/v1/chat/completions"),
        ("text", "/v1/completions"),
        ("ids", "/v1/completions"),
        ("embed", "/v1/embeddings"),
        ("classify", "/classify"),
        ("score", "/score"),
    ],
)
@pytest.mark.parametrize("key", [True, False])
def test_banner(use: str, path: str, key: bool) -> None:
    text = banner("http://127.0.0.1:1", "m", use, with_key=key)
    assert ("OCTAVO_API_KEY" in text) == key
    assert ("(set OCTAVO_API_KEY to a key" in text) == key
    assert text.count(f"http://127.0.0.1:1{path}") == 2
    (python,) = re.findall(r"python3 -c '(.*)'$", text, re.MULTILINE)
    compile(python, "banner", "exec")


def test_a_pipe_that_is_gone_ends_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        say("Ready")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # so that closing it does not fail

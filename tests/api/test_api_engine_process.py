"""The engine process dies with its parent, and minds no signal that is meant for the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from octavo.api.arguments import engine_config
from octavo.api.engine_process import spawn


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_gone(pid: int) -> bool:
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_parent_gone_before_the_config() -> None:
    process = spawn("cpu")
    process.sock.close()
    assert process.end(20) == 1


def test_signals_are_left_to_the_parent(llama: str) -> None:
    process = spawn("cpu")
    body = msgspec.msgpack.encode(engine_config(llama, {"device": "cpu", "kv_cache_memory_bytes": 2 << 20}))
    with process.sock as ours:
        ours.settimeout(30)
        ours.sendall(len(body).to_bytes(4, "little") + body)
        received = b""
        while b"Ready" not in received:
            received += ours.recv(65536)
        process.process.send_signal(signal.SIGINT)
        process.process.send_signal(signal.SIGTERM)
        ours.recv(65536)  # a heartbeat from after them
        ours.recv(65536)
        assert process.process.poll() is None
    assert process.end(20) == 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_engine_ends_with_a_killed_parent(llama: str) -> None:
    program = f"""
        import asyncio, sys
        from octavo import AsyncLLM
        async def main():
            llm = AsyncLLM({llama!r}, device="cpu", kv_cache_memory_bytes=2 << 20)
            await llm.start()
            print(llm.engine_pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    assert wait_gone(child)

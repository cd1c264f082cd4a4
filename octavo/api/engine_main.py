"""The engine process's entry: `python -m octavo.api.engine_main FD DEVICE LOG_FORM LOG_LEVEL`.

The first frame on FD is the EngineConfig.

It lives as long as the other end of the socket: signals meant for the serving process are ignored.
"""

from __future__ import annotations

import signal
import socket
import sys

import msgspec

from octavo.api.build import build_engine
from octavo.api.devices import prepare
from octavo.api.log import LogForm, set_up_logging
from octavo.base.config.config import EngineConfig
from octavo.engine.process import HEAD, run


def read_config(sock: socket.socket) -> EngineConfig:
    """The first frame. EOFError where the other side is gone."""
    size = int.from_bytes(_read_exactly(sock, HEAD), "little")
    return msgspec.msgpack.decode(_read_exactly(sock, size), type=EngineConfig)


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the serving process is gone")
        data += part
    return bytes(data)


def main(fd: int, device: str, form: LogForm, level: str) -> int:
    """Serve the engine on the socket `fd`; the exit code.

    device: what the config is going to name.  form, level: of log lines.
    """
    # Ctrl-C and a service manager's SIGTERM reach the whole process group, but draining needs the engine
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    set_up_logging(level, form=form)
    with socket.socket(fileno=fd) as sock:
        prepare(device)
        try:
            config = read_config(sock)
        except EOFError:
            return 1
        return run(lambda progress: build_engine(config, None, progress=progress), sock)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], "json" if sys.argv[3] == "json" else "text", sys.argv[4]))

"""A device's name in, an engine process out that waits for its config on a socket. Imports little: it comes early."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from octavo.api.log import log_form, log_level


@dataclass(frozen=True)
class EngineProcess:
    """The child, and our end of its only tie to this process: it ends when that is closed."""

    sock: socket.socket
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def end(self, timeout: float) -> int:
        """Wait for its end, killing it after `timeout` seconds; its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def drop(self) -> None:
        """End one that was never given a config."""
        self.sock.close()
        self.end(0)


def spawn(device: str) -> EngineProcess:
    """Start engine_main.py, which imports what the device (DeviceConfig.device) needs while it waits for its config.

    It imports from where this process does, and logs in the same form and at the same level.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [str(theirs.fileno()), device, log_form(), log_level()]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "octavo.api.engine_main", *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    return EngineProcess(ours, process)

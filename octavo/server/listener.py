"""An address in; an open socket, and granian serving an ASGI application on it in this process, out."""

from __future__ import annotations

import errno
import socket
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from octavo.base.errors import ConfigError

BACKLOG = 2048
HEADERS_READ_BUFFER = 32 << 10  # granian refuses heads of about twice this with 431
HEADERS_TIMEOUT_MS = 30_000
# granian would otherwise set handlers of its own up on stdout
_LOGGING: dict[str, Any] = {"formatters": {}, "handlers": {}, "loggers": {}}


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. ConfigError where the address cannot be had, saying why and what to do."""
    if not host:
        raise ConfigError("host='' is empty; name an address, 0.0.0.0 for all of this machine", param="host")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no name can be so
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"host={host!r} is no address of this machine: {reason}", param="host") from None
    listener = socket.socket(family, kind, protocol)
    try:
        # no SO_REUSEPORT: two servers on one port would share its clients without either knowing
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # connections inherit it: else a stream's first chunk waits for the acknowledgement of its head, up to 40 ms
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    listener.setblocking(False)
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use; take another with --port (0 takes a free one)", param="port"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs rights that this user has not; take one from 1024 up", param="port")
    return ConfigError(f"host={host!r} port={port}: {error.strerror}; is it an address of this machine?", param="host")


class HttpServer(Server):
    """granian on a socket that is already open, so that its port is known and a taken one is noticed.

    `await serve()` runs until `stop()`; then running requests are finished first.
    """

    def __init__(self, app: Any, listener: socket.socket) -> None:
        self._shd: Any
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADERS_TIMEOUT_MS, max_buffer_size=HEADERS_READ_BUFFER, keep_alive=True
            ),
            log_dictconfig=_LOGGING,
            log_level=LogLevels.error,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        # granian takes the descriptor over, and closes it when it ends; its stubs know neither
        holder: Any = SocketHolder
        self._shd = holder(self._listener.detach(), False, BACKLOG)
        self._ssp = None

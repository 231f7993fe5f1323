"""The transport of a connection and its flow control, as ``app.http.protocol`` needs them."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from app.http.protocol import HttpProtocol


class Flow(FlowControl):
    """uvicorn's flow control. While it is held, nothing is read, even if the application resumes reading."""

    _held = False

    def resume_reading(self) -> None:
        """Read again, when it is not held."""
        if self._held:
            self.read_paused = False
        else:
            super().resume_reading()

    def hold(self) -> None:
        """Stop reading until it is released."""
        self._held = True
        self._transport.pause_reading()

    def release(self) -> None:
        """Read again, unless the application has paused reading."""
        self._held = False
        if not self.read_paused:
            self._transport.resume_reading()


class Transport(asyncio.Transport):
    """The transport that uvicorn writes to. It watches the sending, and closes gracefully."""

    def __init__(self, inner: asyncio.Transport, protocol: HttpProtocol) -> None:
        super().__init__()
        self.inner = inner
        self._protocol = protocol
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, and watch whether the client reads it."""
        self.inner.write(data)
        self.written += len(data)
        self._protocol.watch_sending()

    def close(self) -> None:
        """Close the connection after the rest of the request."""
        self._protocol.finish()

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._protocol.closing or self.inner.is_closing()

    def pause_reading(self) -> None:
        """Stop reading."""
        self._protocol.flow.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._protocol.flow.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """As of the transport inside."""
        return self.inner.get_extra_info(name, default)

    @property
    def taken(self) -> int:
        """Bytes that the client's system has acknowledged."""
        return self.written - self.inner.get_write_buffer_size() - _unacknowledged(self.get_extra_info("socket"))


def _unacknowledged(connection: socket.socket | None) -> int:
    """Bytes in the socket's send queue that the peer has not acknowledged."""
    if sys.platform != "linux" or connection is None or connection.fileno() < 0:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0

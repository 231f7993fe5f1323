"""Accepts connections within a limit, and closes idle ones to make room for new ones."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import resource
import socket
import ssl
import struct
import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

RESERVE = 128
"""File descriptors that are kept free for weights, pipes and libraries."""

PROBE_CONNECTIONS = 16
"""Connections above the limit that are accepted for health probes when none is idle."""

ACCEPTS_AT_ONCE = 64
"""Connections that are accepted before other tasks of the event loop run."""

SHUTDOWN_SECONDS = 5.0
"""Maximum time for closing a TLS connection."""

RETRY_SECONDS = 0.2
"""Pause after a connection could not be accepted."""

LOG_SECONDS = 1.0
"""Minimum time between two log lines about connections that could not be accepted."""

OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

SO_ATTACH_FILTER = 26
SYN_FILTER = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""Classic BPF: load the TCP flags, keep SYN and ACK, drop the packet if SYN alone is set, else accept it."""

logger = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """The interface of a connection that ``Connections`` needs."""

    transport: asyncio.Transport
    """None until the connection is made."""
    handshake: asyncio.Task[None] | None
    """Sets up the connection; with TLS it ends after the handshake."""
    is_extra: bool
    """Whether it was accepted above the limit, because no other connection was idle."""

    @abstractmethod
    def evict(self) -> None:
        """Close the connection to make room for another one."""


class Connections:
    """The open connections of one server. Used in the event loop only.

    Args:
        limit: maximum number of open connections.

    Attributes:
        open: connections with a file descriptor, including those in a TLS handshake.
        draining: whether the listener is closed. Idle connections are closed soon then.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[HttpConnection] = set()
        self.draining = False
        self._idle: dict[HttpConnection, None] = {}  # in the order in which they became idle

    def add(self, connection: HttpConnection) -> None:
        """Add a new connection. Above the limit, close those that have been idle longest."""
        while len(self.open) >= self.limit and self.evict_one():
            pass
        connection.is_extra = len(self.open) >= self.limit
        self.open.add(connection)
        self._idle[connection] = None

    def claim_place(self, connection: HttpConnection) -> bool:
        """Close idle connections if needed; return whether the connection may send more than health probes."""
        self.set_idle(connection, idle=False)
        while connection.is_extra and len(self.open) > self.limit and self.evict_one():
            pass
        connection.is_extra = connection.is_extra and len(self.open) > self.limit
        return not connection.is_extra

    def remove(self, connection: HttpConnection) -> None:
        """Remove a connection that was closed."""
        self.open.discard(connection)
        self._idle.pop(connection, None)

    @property
    def is_full(self) -> bool:
        """Whether no further connection may be accepted, not even for a probe."""
        return len(self.open) >= self.limit + PROBE_CONNECTIONS and not self._idle

    def set_idle(self, connection: HttpConnection, *, idle: bool) -> None:
        """Record whether a connection waits for a request. An idle one may be closed to make room."""
        if connection not in self.open:
            return
        if not idle:
            self._idle.pop(connection, None)
        elif connection not in self._idle:
            self._idle[connection] = None

    def evict_one(self) -> bool:
        """Close the connection that has been idle longest; False if none is idle."""
        if not self._idle:
            return False
        oldest = next(iter(self._idle))
        self.remove(oldest)
        oldest.evict()
        return True


class Acceptor:
    """Accepts connections, within the limit, until it is closed. Used instead of ``asyncio.Server``.

    asyncio's server logs every failure with a traceback, does not count connections during a TLS handshake, and resets
    the connections in the accept queue when it is closed.

    Args:
        listener: bound, not listening yet.
        factory: creates the protocol of a connection.
        connections: the open connections.
        tls: context, for HTTPS.
        handshake_timeout: maximum seconds for a TLS handshake.
        backlog: length of the kernel's accept queue.
    """

    def __init__(
        self,
        listener: socket.socket,
        factory: Callable[[], HttpConnection],
        connections: Connections,
        *,
        tls: ssl.SSLContext | None,
        handshake_timeout: float,
        backlog: int,
    ) -> None:
        self.sockets = (listener,)
        self._listener = listener
        self._factory = factory
        self._connections = connections
        self._tls = tls
        self._handshake_timeout = handshake_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._logged_at = -LOG_SECONDS
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._accept)

    def turn_away(self) -> None:
        """Ignore new connections, if the system supports it. Those in the accept queue are still accepted.

        The client's system repeats an ignored SYN after a second. Then the port is closed or has another server.
        """
        if self._listener.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                os.unlink(self._listener.getsockname())  # noqa: PTH108 - may be bytes
        elif sys.platform == "linux":
            code = b"".join(struct.pack("HBBI", *each) for each in SYN_FILTER)
            memory = ctypes.create_string_buffer(code)
            program = struct.pack(
                "HL" if struct.calcsize("P") == 4 else "H6xQ", len(SYN_FILTER), ctypes.addressof(memory)
            )
            with contextlib.suppress(OSError):
                self._listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def close(self) -> None:
        """Accept the connections in the accept queue, then stop listening."""
        if self._listener.fileno() < 0:
            return
        if self._retry:
            self._retry.cancel()
        while self._accept():
            pass
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait for handshakes that have begun."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> bool:
        """Accept some connections, and return whether more may wait."""
        for _ in range(ACCEPTS_AT_ONCE):
            if self._connections.is_full:
                self._pause("MAX_CONNECTIONS connections are open, and none is idle")
                return False
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                self._pause(f"cannot accept connections: {error.strerror}")
                self._connections.evict_one()
                return False
            connection.setblocking(False)
            self._begin(connection)
        return True

    def _begin(self, connection: socket.socket) -> None:
        protocol = self._factory()
        protocol.handshake = self._loop.create_task(self._connect(connection, protocol))
        self._connections.add(protocol)
        self._tasks.add(protocol.handshake)
        protocol.handshake.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket, protocol: HttpConnection) -> None:
        timeouts = {}
        if self._tls:
            timeouts = {"ssl_handshake_timeout": self._handshake_timeout, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls, **timeouts)
        except (OSError, asyncio.CancelledError):  # disconnect, failed TLS handshake, or timeout
            if protocol.transport is None:
                connection.close()
                self._connections.remove(protocol)

    def _pause(self, reason: str) -> None:
        """Stop accepting for ``RETRY_SECONDS``, and log the reason at most once per ``LOG_SECONDS``."""
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(RETRY_SECONDS, self._resume)
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            logger.warning("%s; trying again", reason)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)


def connection_limit(chosen: int | Literal["auto"]) -> int:
    """The maximum number of open connections. Raises the soft limit of open files to the hard limit.

    Args:
        chosen: the setting; auto is the limit of open files minus a reserve.
    """
    files = _raise_file_limit()
    return max(1, files - min(RESERVE, files // 2)) if chosen == "auto" else chosen


def _raise_file_limit() -> int:

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems do not allow an infinite limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 2**20

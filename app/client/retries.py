"""When a request is sent again: after a lost connection, and when the server asks for it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import httpx

from ..errors import DeadlineExceeded, QueueFull, ServerUnreachable, ServiceError

FIRST_PAUSE = 0.25
"""Seconds between the first two attempts to reach a server; each further pause is twice as long."""

LONGEST_PAUSE = 4.0
"""Seconds between two attempts to reach a server, at most."""


LONGEST_S = 1e6
"""Timeouts above it, also infinite ones, are cut to it, because sockets take no longer ones. Seconds."""


def check_timeout(seconds: float) -> float:
    """A timeout that sockets accept.

    Raises:
        ValueError: if it is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"timeout={seconds:g} must be above 0 seconds")
    return min(seconds, LONGEST_S)


@dataclass
class Server:
    """The server of a client.

    Attributes:
        url: for messages.
        connect_timeout: seconds to wait for a server that has never answered.
        retry_window: seconds to wait for a server that has answered before.
        answered: whether it has ever sent a response.
    """

    url: str
    connect_timeout: float
    retry_window: float
    answered: bool = False

    @property
    def wait_s(self) -> float:
        """Seconds to wait for the server if it cannot be reached."""
        return self.retry_window if self.answered else self.connect_timeout


class Retries:
    """The attempts of one request.

    Args:
        server: that is asked.
        timeout: seconds until the response is of no use.
        request_id: put on every error that has no other.
    """

    def __init__(self, server: Server, timeout: float, request_id: str) -> None:
        self._server = server
        self._timeout = timeout
        self._request_id = request_id
        self._attempt_started = time.monotonic()
        self._deadline = self._attempt_started + timeout
        self._unreachable_since: float | None = None
        self._failures = 0

    def begin_attempt(self) -> float:
        """Note the start of an attempt, and return the seconds that are left.

        Raises:
            DeadlineExceeded: if none are left.
        """
        self.check_deadline()
        self._attempt_started = time.monotonic()
        return self._deadline - self._attempt_started

    def check_deadline(self) -> None:
        """Raise DeadlineExceeded if the time is over."""
        if time.monotonic() >= self._deadline:
            raise self._deadline_exceeded()

    def pause_after(self, error: ServiceError | httpx.TransportError) -> float:
        """Seconds to wait before the next attempt.

        A full queue is waited for until the deadline. A server that cannot be reached, or is not ready, is waited for
        during ``connect_timeout`` or ``retry_window``.

        Raises:
            ServiceError: if there is no next attempt: ServerUnreachable, DeadlineExceeded, or the server's own error.
        """
        now = time.monotonic()
        final, pause = self._judge(error)
        if isinstance(error, QueueFull):
            self._unreachable_since, self._failures = None, 0
        else:
            self._failures += 1
            self._unreachable_since = self._unreachable_since or self._attempt_started
            if now + pause >= self._unreachable_since + self._server.wait_s:
                raise final
        if now + pause > self._deadline:
            raise final
        # Clients that were refused together do not return together.
        return pause * random.uniform(1, 1.1)  # noqa: S311

    def unreachable(self, error: httpx.TransportError) -> ServerUnreachable:
        """The error that callers see if the server cannot be reached, or the connection breaks."""
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.UnsupportedProtocol):
            text = f"{self._server.url!r} is not the URL of a server: {reason}"
        elif self._server.answered:
            text = (
                f"Lost the connection to {self._server.url}, and could not connect again within "
                f"{self._server.retry_window:g} s (retry_window): {reason}"
            )
        else:
            text = (
                f"No server answered at {self._server.url} within {self._server.connect_timeout:g} s "
                f"(connect_timeout): {reason}. Check the URL, and whether the server runs."
            )
        unreachable = ServerUnreachable(text)
        unreachable.request_id = self._request_id
        unreachable.__cause__ = error
        return unreachable

    def _judge(self, error: ServiceError | httpx.TransportError) -> tuple[ServiceError, float]:
        """The error to raise if there is no further attempt, and the pause before one.

        Raises:
            ServiceError: if a further attempt is useless.
        """
        if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout):
            return self.unreachable(error), min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        if isinstance(error, httpx.TimeoutException):
            raise self._deadline_exceeded() from error
        if isinstance(error, ServiceError):
            error.request_id = error.request_id or self._request_id
            if error.retry_after is not None and error.status in (429, 503):
                return error, float(error.retry_after)
            raise error
        raise self.unreachable(error)

    def _deadline_exceeded(self) -> DeadlineExceeded:
        error = DeadlineExceeded(
            f"No result within {self._timeout:g} s. Raise timeout or timeout_ms, or send a smaller image."
        )
        error.request_id = self._request_id
        return error

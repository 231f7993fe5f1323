"""ASGI middleware of Ray's HTTP proxies, which turns their plain text errors into problem documents.

If a replica is killed, its in-flight requests fail and the proxy sends no response. Such a request can be repeated
safely, so this middleware answers 503 with ``Retry-After``. A proxy holds bodies until a replica takes them, so their
size is limited here too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLarge, DeadlineExceeded, Draining, NotReady, QueueFull, ServiceError
from app.http.middleware import REQUEST_ID, send_problem
from app.settings import Settings

RAY_PREFIX = b"/-/"
"""Path prefix of Ray's own endpoints: the health of the proxy, its routes."""


def middleware() -> list[Middleware]:
    """The middleware of a proxy. Ray calls this function, which RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names."""
    limit = os.environ.get("SWIN2SR_MAX_BODY_BYTES") or Settings.model_fields["max_body_bytes"].default
    return [Middleware(ProxyAnswers, max_body_bytes=int(limit))]


class ProxyAnswers:
    """Answers every request as the service does.

    Args:
        app: Ray's proxy.
        max_body_bytes: largest body in bytes, multipart framing included.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["raw_path"].startswith(RAY_PREFIX):
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self.max_body_bytes, _identity(scope))
        headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
        headers.append((b"x-request-id", exchange.identity.encode()))
        await self.app({**scope, "headers": headers}, exchange.receive, exchange.send)
        await exchange.finish()


def _identity(scope: Scope) -> str:
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)


class _Exchange:
    """One request and its response in a proxy."""

    def __init__(self, receive: Receive, send: Send, max_body_bytes: int, identity: str) -> None:
        self.identity = identity
        self._receive, self._send = receive, send
        self._room = self._max_body_bytes = max_body_bytes
        self._begun = self._left = False
        self._replacement: ServiceError | None = None

    async def receive(self) -> Message:
        """The next message of the client, or a disconnect once the body is too large."""
        message = await self._receive()
        self._room -= len(message.get("body", b""))
        self._left = self._left or message["type"] == "http.disconnect"
        return message if self._room >= 0 else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Forward a response of a replica; hold back one of the proxy itself."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            self._replacement = _replace(message["status"], headers)
            self._begun = self._replacement is None
            message = {**message, "headers": _once(message["headers"], b"x-request-id")}
        if self._begun:
            await self._send(message)

    async def finish(self) -> None:
        """Send a problem document if no response was sent."""
        if self._begun or self._left:
            return
        error = self._replacement or NotReady("The replica handling this request died. Retry.", retry_after=1)
        if self._room < 0:
            limit = self._max_body_bytes
            error = BodyTooLarge(
                f"The body is larger than MAX_BODY_BYTES ({limit} bytes).", limit=limit, actual=limit - self._room
            )
        await send_problem(self._send, error, self.identity)


def _replace(status: int, headers: Mapping[str, str]) -> ServiceError | None:
    """The error for a response of the proxy itself; None for a response of a replica."""
    if headers.get("content-type", "").partition(";")[0] == "application/problem+json":
        return None
    after = headers.get("retry-after", "1")
    match status:
        case 404:
            return Draining("The service is starting or shutting down.")
        case 408:
            return DeadlineExceeded("No replica accepted the request in time.")
        case 429:
            return QueueFull("All replicas are busy and their queue is full.", retry_after=int(after))
        case 503:
            return NotReady("No replica accepts requests now.", retry_after=int(after))
    return None


def _once(headers: list[tuple[bytes, bytes]], name: bytes) -> list[tuple[bytes, bytes]]:
    """Keep only the first header with a name, because Ray appends its own to the service's."""
    seen = False
    kept = []
    for each in headers:
        if each[0].lower() == name and seen:
            continue
        seen = seen or each[0].lower() == name
        kept.append(each)
    return kept

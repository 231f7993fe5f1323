"""HTTP/1.1 on one connection: uvicorn's protocol, with limits for slow, silent and malicious clients."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from app.errors import NotReady
from app.http.connections import Connections, HttpConnection
from app.http.cors import CrossOrigin
from app.http.middleware import encode_problem, send_problem
from app.http.parser import EVENTS_AT_ONCE, Parser, describe
from app.http.transport import Flow, Transport

SEND_BYTES = 64 * 1024
"""Bytes that a client must read within the send timeout."""

LINGER_SECONDS = 5.0
"""How long the rest of a request is read and dropped after its response. Closing at once would reset the connection,
and the client could lose the response."""

IDLE_SECONDS = 0.5
"""How long an idle connection stays open after the listener was closed, because a request may be on its way."""

DRAIN_SHARE = 4
"""While draining, the send timeout is at most the drain timeout divided by this."""

logger = logging.getLogger("app.access")


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of a client in seconds."""

    headers: float
    """For sending the headers of a request."""
    send: float
    """For reading ``SEND_BYTES`` of its response, or the rest."""
    drain: float
    """For everything, after the shutdown has begun."""


class HttpProtocol(H11Protocol, HttpConnection):
    """uvicorn's protocol for h11, with timeouts, limits and problem documents.

    A subclass, because uvicorn limits only the time between two requests. It has no limits for the first request, for
    slow headers and for clients that do not read, and its error responses are plain text.

    Args:
        config, server_state, app_state: of uvicorn.
        timeouts: of this connection.
        connections: of the server.
        cors: adds CORS headers to responses that are made outside of the application.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        timeouts: Timeouts,
        connections: Connections,
        cors: CrossOrigin | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = self.parser = Parser(self.choose_app)
        self.handshake = None
        self.is_extra = False
        self.closing = False
        self._timeouts = timeouts
        self._send_timeout = timeouts.send
        self._connections = connections
        self._cors = cors
        self._served = self.app
        self._request_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._mark = (0.0, 0)  # time, and bytes that the client had acknowledged then

    @property
    def is_active(self) -> bool:
        """Whether a request is being processed."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self.flow = self._reading = Flow(transport)
        self.transport = self._output = Transport(transport, self)
        if self not in self._connections.open:  # evicted during the handshake
            transport.abort()
        elif self._connections.draining:
            self.shutdown()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers, and notify the application."""
        self.closing = True
        self._connections.remove(self)
        self._unset_keepalive_if_required()
        for timer in (self._request_timer, self._send_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle received data. After the last response it is dropped."""
        if not self.closing:
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle a limited number of events, and the rest in a later call of the event loop."""
        self.parser.left = EVENTS_AT_ONCE
        super().handle_events()
        if self.parser.interrupted and not self.closing:
            self._reading.hold()
            self.loop.call_soon(self._continue)
        self._update()

    def choose_app(self, request: h11.Request) -> None:
        """Choose the application that handles a request: above the limit of connections it is refused."""
        is_welcome = self._connections.claim_place(self) or request.target.startswith(b"/health/")
        self.app = self._served if is_welcome else self._cors or refuse_connection

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of the current one."""
        super().on_response_complete()
        self._update()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text, which is less precise
        """Respond to malformed HTTP with a problem document, and close the connection."""
        fault = self.parser.fault
        error = describe(fault)
        if self.is_active:  # the body is malformed: end the application's request
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        identity = secrets.token_hex(16)
        fields = {"status": error.status, "request_id": identity, "outcome": error.code, "fault": str(fault)[:100]}
        client = {"client": self.client[0]} if self.client else {}
        logger.info("malformed request", extra={**client, **fields})
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers, body = encode_problem(error, identity)
            cors = self._cors.headers_for(self.parser.origin) if self._cors else []
            headers = [*self.server_state.default_headers, *headers, *cors, (b"connection", b"close")]
            reason = STATUS_PHRASES[error.status]
            response = h11.Response(status_code=error.status, headers=headers, reason=reason)
            content = () if self.parser.is_head else (h11.Data(data=body), h11.EndOfMessage())
            for event in (response, *content):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """Finish requests that have begun or arrive within ``IDLE_SECONDS``. Each response closes its connection."""
        self._send_timeout = min(self._timeouts.send, self._timeouts.drain / DRAIN_SHARE)
        if self.is_active:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(IDLE_SECONDS, self._close_if_idle)

    def evict(self) -> None:
        """Close the connection to make room for another one."""
        if self.transport is not None:
            self._output.inner.close()
        elif self.handshake:
            self.handshake.cancel()

    def finish(self) -> None:
        """Close the connection. If the request has not ended, drop the rest for ``LINGER_SECONDS`` first."""
        if self.closing:
            return
        self.closing = True
        inner = self._output.inner
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR) and self.parser.fault is None:
            inner.close()
            return
        if inner.can_write_eof():
            inner.write_eof()
        self._reading.release()
        inner.resume_reading()
        self._set_request_timer(LINGER_SECONDS)

    def watch_sending(self) -> None:
        """Abort the connection later if its client does not read the response."""
        if self._send_timer is None and self._output.inner.get_write_buffer_size():
            self._mark = (time.monotonic(), self._output.taken)
            self._send_timer = self.loop.call_later(self._send_timeout / 4, self._check_sending)

    def _should_upgrade(self) -> bool:
        """Return False: no other protocol is supported. uvicorn would log a warning."""
        return False

    def _check_sending(self) -> None:
        self._send_timer = None
        inner, now = self._output.inner, time.monotonic()
        if not inner.get_write_buffer_size():
            return
        taken = self._output.taken
        if taken - self._mark[1] >= SEND_BYTES:
            self._mark = (now, taken)
        elif now - self._mark[0] >= self._send_timeout:
            path = quote(self.scope["path"]) if self.scope else ""
            logger.info("aborted %s: the client reads too slowly", path, extra={"seconds": round(now - self._mark[0])})
            inner.abort()
            return
        self._send_timer = self.loop.call_later(self._send_timeout / 4, self._check_sending)

    def _continue(self) -> None:
        if not self.closing:
            self._reading.release()
            self.handle_events()

    def _update(self) -> None:
        """Set the timer of the request, and whether the connection is idle."""
        if self.closing:
            return
        self._connections.set_idle(self, idle=not self.is_active)
        if self.is_active or self._is_at_rest:
            if self._request_timer:
                self._request_timer.cancel()
                self._request_timer = None
            if not self.is_active and self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._request_timer is None:
            self._set_request_timer(self._timeouts.headers)

    @property
    def _is_at_rest(self) -> bool:
        """Whether it is kept alive after a complete request, and no byte of the next one has arrived."""
        return self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _set_request_timer(self, seconds: float) -> None:
        if self._request_timer:
            self._request_timer.cancel()
        self._request_timer = self.loop.call_later(seconds, self._output.inner.close)

    def _close_if_idle(self) -> None:
        if not self.is_active and not self.conn.trailing_data[0]:
            self.transport.close()


async def refuse_connection(scope: Scope, _receive: Receive, send: Send) -> None:
    """Respond to a request on a connection above the limit."""
    error = NotReady("Too many connections are open. Send the request again after the time in Retry-After.")
    scope["headers"] = [*scope["headers"], (b"connection", b"close")]  # uvicorn closes the connection then
    identity = secrets.token_hex(16)
    client = scope["client"][0] if scope["client"] else ""
    logger.info("too many connections", extra={"status": error.status, "request_id": identity, "client": client})
    await send_problem(send, error, identity)

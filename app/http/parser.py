"""Parses HTTP/1.1 with h11, within limits of the work for one call of the event loop."""

from __future__ import annotations

import re
from collections.abc import Callable

import h11

from app.errors import BadRequest, HeadersTooLarge, ServiceError

HEADER_BYTES = 64 * 1024
"""Maximum length of the request line and the headers."""

MOST_HEADERS = 256
"""Maximum number of header lines, because each costs time in the event loop: 12,000 short ones took 28 ms."""

EVENTS_AT_ONCE = 64
"""Parts of a request that are handled before other tasks of the event loop run, so that a million tiny chunks do not
block it."""

TOO_MANY = "too many headers"

BLANK_LINES = re.compile(rb"(?:\r?\n)*")
ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)
ORIGIN = re.compile(rb"^origin:[ \t]*([!-~]+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Parser(h11.Connection):
    """h11's parser with a limited number of events per call of the event loop.

    It ignores blank lines before a request, and accepts the target as a URL, which proxies send (RFC 9112, 2.2 and
    3.2.2): the host of the URL replaces ``Host``.

    Args:
        on_request: called with each request.

    Attributes:
        left: remaining events of this call.
        interrupted: whether further events are available.
        fault: the error of a malformed request.
        is_head: whether the current request is ``HEAD``, so that its response has no body.
        origin: the header ``Origin`` of the current request; empty if it has none, or it has not arrived.
    """

    def __init__(self, on_request: Callable[[h11.Request], None]) -> None:
        super().__init__(h11.SERVER, HEADER_BYTES)
        self._on_request = on_request
        self.left = EVENTS_AT_ONCE
        self.interrupted = False
        self.fault: h11.RemoteProtocolError | None = None
        self.is_head = False
        self.origin = ""

    def next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        """The next event, or ``NEED_DATA``."""
        self.interrupted = self.left == 0
        if self.interrupted:
            return h11.NEED_DATA
        self.left -= 1
        try:
            if self.their_state is h11.IDLE:
                self._receive_buffer.maybe_extract_at_most(_blank(self.trailing_data[0]))
                received = self.trailing_data[0]
                if received == b"\r":  # possibly half of a blank line
                    return h11.NEED_DATA
                self._read_head(received)
            event = super().next_event()
            if isinstance(event, h11.Request):
                self.is_head = event.method == b"HEAD"
                _check_size(event)
                _check_framing(event)
                event = _in_origin_form(event)
                self._on_request(event)
        except h11.RemoteProtocolError as error:
            self.fault = error
            raise
        return event

    def _read_head(self, received: bytes) -> None:
        """Refuse many headers before they are parsed, and keep ``Origin`` for the response to a malformed request."""
        self.is_head = received.startswith(b"HEAD ")
        end = re.search(rb"\n\r?\n", received)
        head = received[: end.start() + 1] if end else received
        found = ORIGIN.search(head)
        self.origin = found[1].decode() if found else ""
        if head.count(b"\n") > MOST_HEADERS + bool(end):
            raise h11.RemoteProtocolError(TOO_MANY, error_status_hint=431)


def describe(fault: h11.RemoteProtocolError | None) -> ServiceError:
    """The error for the client that sent malformed HTTP."""
    if str(fault) == TOO_MANY:
        return HeadersTooLarge(f"The request has more than {MOST_HEADERS} headers. Send fewer.", limit=MOST_HEADERS)
    if fault is not None and fault.error_status_hint == 431:
        return HeadersTooLarge(
            f"The request line and headers exceed {HEADER_BYTES} bytes. Send shorter headers.", limit=HEADER_BYTES
        )
    reason = re.sub(r"\bbytearray\((.*)\)", r"\1", str(fault))
    return BadRequest(f"This is not well-formed HTTP/1.1: {reason[:200]}.")


def _blank(received: bytes) -> int:
    """Length of the blank lines at the beginning."""
    match = BLANK_LINES.match(received)
    return match.end() if match else 0


def _check_size(request: h11.Request) -> None:
    """Refuse long headers that arrived in one piece; h11 checks only incomplete ones."""
    size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
    if size > HEADER_BYTES:
        raise h11.RemoteProtocolError("the headers are too long", error_status_hint=431)


def _check_framing(request: h11.Request) -> None:
    """Refuse a body whose end a proxy may have found elsewhere (RFC 9112, 6.1)."""
    names = {name for name, _ in request.headers}
    if names >= {b"content-length", b"transfer-encoding"}:
        raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
    if b"transfer-encoding" in names and request.http_version < b"1.1":
        raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")


def _in_origin_form(request: h11.Request) -> h11.Request:
    """The request with its target as a path, or as ``*``. A URL's host replaces ``Host``."""
    if request.method == b"CONNECT":
        raise h11.RemoteProtocolError("CONNECT is for proxies, and this server is none")
    if request.target.startswith(b"/") or (request.method, request.target) == (b"OPTIONS", b"*"):
        return request
    url = ABSOLUTE.fullmatch(request.target)
    if url is None:
        raise h11.RemoteProtocolError(f"the request target {request.target[:100]!r} is neither a path nor an http URL")
    host, path = url[1], url[2] or (b"*" if request.method == b"OPTIONS" else b"/")
    return h11.Request(
        method=request.method,
        target=path if path[:1] != b"?" else b"/" + path,
        headers=[(b"host", host), *((name, value) for name, value in request.headers if name != b"host")],
        http_version=request.http_version,
    )

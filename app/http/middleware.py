"""Middleware of every request: an id, a log line, metrics, and responses to unexpected failures. Pure ASGI."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Draining, InternalError, ServiceError
from app.tracing import Tracer

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
TRACEPARENT = re.compile(
    r"(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
KEY = "swin2sr"
PROBLEM = "application/problem+json"
SLICE = 256 * 1024
"""Bytes of a body that are sent at once."""

LONGEST_PATH = 1000
"""Characters of a path in the log."""

PROBES = ("/health/", "/v2/health/", "/metrics")
"""Paths of probes, which come every few seconds. Successful ones are logged at DEBUG."""

logger = logging.getLogger("app.access")


def request_id(scope: Scope) -> str:
    """The id of a request."""
    return str(scope.get(KEY, {}).get("request_id", ""))


def trace_id(headers: Mapping[str, str]) -> str:
    """The trace id in ``traceparent`` (W3C Trace Context); empty if it is missing or malformed."""
    match = TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    return match[1] if match else ""


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix of a proxy."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(prefix) if path == prefix or path.startswith(f"{prefix}/") else path


def arrived_at(scope: Scope) -> float:
    """When a request arrived, ``time.monotonic()``."""
    return float(scope[KEY]["arrived_at"])


def add_log_fields(scope: Scope, **log_fields: object) -> None:
    """Add fields to a request's log line; the metrics read some of them."""
    scope.setdefault(KEY, {}).setdefault("log_fields", {}).update(log_fields)


def on_failure(scope: Scope, end: Callable[[ServiceError], Awaitable[None]]) -> None:
    """Register how a response that has begun is ended, if a failure or the shutdown stops it."""
    scope.setdefault(KEY, {})["end"] = end


class RequestContext:
    """Gives every request an id, and logs it when it has ended.

    Args:
        app: the next application.
        on_start: called with the path of each request.
        on_end: called with its path, its log fields, and its duration in seconds.
        tracer: exports the spans of requests, if there is one.
        is_draining: whether the server is shutting down; every response closes its connection then.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_start: Callable[[str], None],
        on_end: Callable[[str, dict[str, object], float], None],
        tracer: Tracer | None,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app = app
        self.on_start = on_start
        self.on_end = on_end
        self.tracer = tracer
        self.is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        identity = sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)
        log_fields: dict[str, object] = {"client": _address(scope)}
        if trace := trace_id(headers):
            log_fields["trace_id"] = trace
        scope[KEY] = {"request_id": identity, "arrived_at": started, "log_fields": log_fields}
        counted = "" if scope["method"] == "OPTIONS" else route_path(scope)  # CORS preflights are not counted
        status = 0
        self.on_start(counted)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-Id"] = identity
                if self.is_draining():
                    response_headers["Connection"] = "close"
            for slice_ in _slices(message):
                await send(slice_)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            self.on_end(counted, log_fields, seconds)
            if self.tracer and not counted.startswith(PROBES):
                name = f"{scope['method']} {counted or scope['path']}"
                self.tracer.record(name, headers, {**log_fields, "status": status}, seconds)
            _log(scope, status, {"request_id": identity, "seconds": round(seconds, 4), **log_fields})


class FailureResponses:
    """Responds to unexpected exceptions, and to requests that the shutdown cancels.

    Args:
        app: the next application.
        is_draining: whether the server is shutting down; requests that are cancelled then get 503.
    """

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async def end(error: ServiceError) -> bool:
            if not begun:
                await refuse(scope, send, error)
                return True
            add_log_fields(scope, outcome=error.code)
            if "end" not in scope[KEY]:
                return False
            await scope[KEY]["end"](error)
            return True

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            aborted = Draining("The server shut down before it could respond. Send the request again.")
            if not (self.is_draining() and await end(aborted)):
                raise
        except Exception:  # the outermost handler
            logger.exception("a request failed", extra={"request_id": request_id(scope)})
            if not await end(
                InternalError("Unexpected server error. Look for the request id of this response in the server's log.")
            ):
                raise


def _address(scope: Scope) -> str:
    """The client's address; empty if a proxy sent something else."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "unix" if host == "unix" else ""


def _log(scope: Scope, status: int, log_fields: Mapping[str, object]) -> None:
    level = logging.DEBUG if status < 400 and route_path(scope).startswith(PROBES) else logging.INFO
    path = quote(scope["path"][:LONGEST_PATH])
    logger.log(level, "%s %s", scope["method"][:50], path, extra={"status": status, **log_fields})


def _slices(message: Message) -> Iterator[Message]:
    """Divide a long body, because copying a hundred megabytes at once would block the event loop."""
    body = message.get("body", b"")
    if len(body) <= SLICE:
        yield message
        return
    for start in range(0, len(body), SLICE):
        more = message.get("more_body", False) or start + SLICE < len(body)
        yield {**message, "body": body[start : start + SLICE], "more_body": more}


def problem_document(scope: Scope, error: ServiceError) -> dict[str, object]:
    """The problem document of an error, with the ids of the request."""
    trace = trace_id(Headers(scope=scope))
    return {**error.problem(request_id(scope)), **({"trace_id": trace} if trace else {})}


async def refuse(scope: Scope, send: Send, error: ServiceError) -> None:
    """Respond with an error outside of Starlette's error handlers, and log it."""
    add_log_fields(scope, outcome=error.code)
    await send_problem(send, error, request_id(scope), trace_id(Headers(scope=scope)))


async def send_problem(send: Send, error: ServiceError, identity: str, trace: str = "") -> None:
    """Send the problem document of an error, with the ids of the request."""
    headers, body = encode_problem(error, identity, trace)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def encode_problem(error: ServiceError, identity: str, trace: str = "") -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the problem document of an error."""
    body = json.dumps({**error.problem(identity), **({"trace_id": trace} if trace else {})}).encode()
    headers = [
        (b"content-type", PROBLEM.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", identity.encode()),
        *((name.lower().encode(), value.encode()) for name, value in extra_headers(error).items()),
    ]
    return headers, body


def extra_headers(error: ServiceError) -> dict[str, str]:
    """Headers of an error's response: ``Retry-After`` if it has one, and ``WWW-Authenticate`` for 401."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return {**headers, "WWW-Authenticate": "Bearer"} if error.status == 401 else headers

"""Around every request: an id, a clock, one log line, and an answer to what nobody expected. Pure ASGI."""

from __future__ import annotations

import asyncio
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

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
KEY = "swin2sr"
SLICE = 256 * 1024
"""Bytes of a body that are sent at once."""

PROBED = ("/health/", "/v2/", "/metrics")
"""Where machines ask every few seconds: an answer that is as it should be is no news for the log."""

logger = logging.getLogger("app.access")


def request_id(scope: Scope) -> str:
    """The id of a request."""
    return str(scope.get(KEY, {}).get("request_id", ""))


def arrived_at(scope: Scope) -> float:
    """When a request arrived, ``time.monotonic()``."""
    return float(scope[KEY]["arrived_at"])


def add_log_fields(scope: Scope, **log_fields: object) -> None:
    """Remember log_fields about a request for its log line and the metrics."""
    scope.setdefault(KEY, {}).setdefault("log_fields", {}).update(log_fields)


def on_failure(scope: Scope, end: Callable[[ServiceError], Awaitable[None]]) -> None:
    """How to end an answer that has begun, if something unexpected or the server's end stops it."""
    scope.setdefault(KEY, {})["end"] = end


class RequestContext:
    """Gives every request an id, and logs it when it is over.

    Args:
        app: what answers.
        on_start: told the path of each request.
        on_end: told its path again, the log_fields noted about it, and the seconds that it took.
        is_leaving: whether the server is about to end; a request that is cancelled then is told so.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_start: Callable[[str], None],
        on_end: Callable[[str, dict[str, object], float], None],
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app = app
        self.on_start = on_start
        self.on_end = on_end
        self.is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        sent = Headers(scope=scope).get("x-request-id", "")
        identity = sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)
        log_fields: dict[str, object] = {}
        scope[KEY] = {"request_id": identity, "arrived_at": started, "log_fields": log_fields}
        status = 0
        self.on_start(scope["path"])

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            for slice_ in _slices(message):
                await send(slice_)

        async def end(error: ServiceError) -> bool:
            log_fields["outcome"] = error.code
            if not status:
                await send_problem(send_with_id, error, identity)
            elif "end" in scope[KEY]:
                await scope[KEY]["end"](error)
            else:
                return False
            return True

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            gone = Draining("This server ended before it could answer. Send the request again.")
            if not (self.is_leaving() and await end(gone)):
                raise
        except Exception:  # the outermost handler: whatever it was, the caller gets an answer and the log the truth
            logger.exception("a request failed", extra={"request_id": identity})
            if not await end(InternalError("Something went wrong here. The log has it under this request id.")):
                raise
        finally:
            seconds = time.monotonic() - started
            self.on_end(scope["path"], log_fields, seconds)
            _log(scope, status, {"request_id": identity, "seconds": round(seconds, 4), **log_fields})


def _log(scope: Scope, status: int, log_fields: Mapping[str, object]) -> None:
    level = logging.DEBUG if status < 400 and scope["path"].startswith(PROBED) else logging.INFO
    logger.log(level, "%s %s", scope["method"], quote(scope["path"]), extra={"status": status, **log_fields})


def _slices(message: Message) -> Iterator[Message]:
    """A long body piece by piece: copying a hundred megabytes at once would hold up the event loop."""
    body = message.get("body", b"")
    if len(body) <= SLICE:
        yield message
        return
    for start in range(0, len(body), SLICE):
        more = message.get("more_body", False) or start + SLICE < len(body)
        yield {**message, "body": body[start : start + SLICE], "more_body": more}


async def send_problem(send: Send, error: ServiceError, identity: str) -> None:
    """Answer with an error where no framework does: its problem document and the request's id."""
    body = json.dumps(error.problem(identity)).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", identity.encode()),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

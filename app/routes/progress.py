"""Responses with progress, for requests with ``Accept: multipart/mixed``.

Errors before the request is in the queue have their own status and a problem document, as in plain responses. Later the
status is 200, and the parts of a ``multipart/mixed`` body arrive as the request progresses (CRLF line ends, the
boundary in ``Content-Type``, ``Content-Length`` in every part). ``app/routes/examples.py`` has an example.

- ``queued``: ``position`` 1 is next. ``running``: ``tile`` of ``tiles`` are done. A tile counts once for the colours,
  once more for the alpha plane, and eight times with the ensemble.
- The latest progress part is repeated after 8 s without news, so that proxies do not close the stream.
- There is at least one part of each state. If the client reads slowly, older parts of the same state are dropped.
- The last part is the image with the headers of a plain response, or ``application/problem+json`` with the ``status``
  and ``Retry-After`` of a plain response.
- Each part is sent with the delimiter that follows it, so that it is complete on arrival.
- A disconnect cancels the request, as in plain responses.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.batching.jobs import JobProgress
from app.errors import ServiceError
from app.http.handlers import problem_response
from app.http.middleware import add_log_fields, on_failure
from app.routes.connection import while_connected

MIXED = "multipart/mixed"
REPEAT_SECONDS = 8.0
"""Time without progress after which the latest part is repeated, because proxies close idle streams."""


def wants_progress(request: Request) -> bool:
    """Whether the ``Accept`` header contains ``multipart/mixed``."""
    ranges = request.headers.get("accept", "").split(",")
    return any(each.partition(";")[0].strip().lower() == MIXED for each in ranges)


class ProgressResponse(Response):
    """The progress of some work, then its response.

    Args:
        work: gets a callback for progress, which may be called in any thread, and returns the response of the last
            part.
        repeat_after: seconds without progress after which the latest part is repeated.

    Raises:
        ServiceError: when called, if the work fails before it made any progress; nothing was sent then.
    """

    def __init__(
        self,
        work: Callable[[Callable[[JobProgress], None]], Awaitable[Response]],
        *,
        repeat_after: float = REPEAT_SECONDS,
    ) -> None:
        super().__init__()
        self._work = work
        self._repeat_after = repeat_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        parts = _MultipartWriter(send)

        async def end(error: ServiceError) -> None:
            await parts.end(problem_response(Request(scope), error))

        try:
            await while_connected(receive, self._stream(scope, parts, end))
        except ClientDisconnect:
            if not parts.begun:
                raise
            add_log_fields(scope, outcome="cancelled")

    async def _stream(
        self, scope: Scope, parts: _MultipartWriter, end: Callable[[ServiceError], Awaitable[None]]
    ) -> None:
        updates = _ProgressQueue()
        task = asyncio.ensure_future(self._work(updates.put))
        task.add_done_callback(lambda _task: updates.ring())
        last: list[JobProgress] = []
        try:
            while not (task.done() and updates.is_empty):
                for progress in await updates.take(self._repeat_after) or last:
                    if not parts.begun:
                        await parts.begin()
                        on_failure(scope, end)
                    last = [progress]
                    await parts.add(json.dumps(_describe(progress), separators=(",", ":")).encode())
            await parts.end(await self._answer(task, scope, begun=parts.begun))
        finally:
            task.cancel()

    async def _answer(self, task: asyncio.Future[Response], scope: Scope, *, begun: bool) -> Response:
        try:
            return await task
        except ServiceError as error:
            if not begun:
                raise
            return problem_response(Request(scope), error)


def _describe(progress: JobProgress) -> dict[str, object]:
    position = {"position": progress.position} if progress.state == "queued" else {}
    return {"state": progress.state, **position, "tile": progress.done, "tiles": progress.total}


class _ProgressQueue:
    """Passes progress from any thread to the event loop. Of each state only the newest is kept."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[JobProgress] = deque()
        self._bell = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def put(self, progress: JobProgress) -> None:
        """Called in any thread."""
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._keep, progress)

    def ring(self) -> None:
        """Wake the reader without progress."""
        self._bell.set()

    async def take(self, seconds: float) -> deque[JobProgress]:
        """Wait for progress or ``ring``, for at most ``seconds``, and return the progress."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._bell.wait(), seconds)
        self._bell.clear()
        taken, self._waiting = self._waiting, deque()
        return taken

    def _keep(self, progress: JobProgress) -> None:
        if self._waiting and self._waiting[-1].state == progress.state:
            self._waiting.pop()
        self._waiting.append(progress)
        self._bell.set()


class _MultipartWriter:
    """Sends a multipart body part by part, each with the delimiter that follows it."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False
        self._boundary = secrets.token_hex(16).encode()

    async def begin(self) -> None:
        self.begun = True
        headers = [
            (b"content-type", f"{MIXED}; boundary={self._boundary.decode()}".encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # asks nginx to pass on what it gets
        ]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(b"--" + self._boundary)

    async def add(self, document: bytes) -> None:
        """Send a JSON part."""
        await self._write(self._part({"content-type": "application/json", "content-length": len(document)}, document))

    async def end(self, answer: Response) -> None:
        """Send the last part: a response with its headers."""
        await self._write(self._part(answer.headers, bytes(answer.body)) + b"--\r\n", more=False)

    def _part(self, headers: Mapping[str, object], content: bytes) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return b"\r\n" + lines.encode("latin-1") + b"\r\n" + content + b"\r\n--" + self._boundary

    async def _write(self, chunk: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})

"""One request to an application without a socket: the test decides what arrives, reads along, and may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tests.scripted import PATIENCE


class Connection:
    """The three arguments of an ASGI application, for ``POST /v1/upscale`` with a whole body.

    Args:
        body: of the request.
        headers: of the request.
        query: options of the query string.

    Attributes:
        status, headers, body: of the answer so far.
    """

    def __init__(self, body: bytes, headers: Mapping[str, str], query: str = "") -> None:
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/upscale",
            "raw_path": b"/v1/upscale",
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self._left = asyncio.Event()
        self._sent = asyncio.Condition()

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def receive(self) -> dict[str, object]:
        """The application's next message: the body, then, when the test says so, the end."""
        if self._messages:
            return self._messages.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, object]) -> None:
        """What the application answers."""
        async with self._sent:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], list(message["headers"])
            self.body += message.get("body", b"")
            self._sent.notify_all()

    async def wait_for(self, text: bytes) -> None:
        """Wait until the answer so far holds this."""
        async with asyncio.timeout(PATIENCE), self._sent:
            await self._sent.wait_for(lambda: text in self.body)

"""The service on a socket in this process, with scripted upscalers: what a browser can be driven against."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from tests.scripted import PATIENCE

PLAIN = {"loop": "asyncio", "http": "h11", "ws": "none"}
"""As in ``app.server``: whatever else is installed."""


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The application's address while it listens on a free port of this machine."""
    server = _Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1, **PLAIN))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listening.wait(PATIENCE), "it does not listen"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()

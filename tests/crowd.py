"""Requests that wait together in the queue of a whole application with all of its middleware."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from tests.connections import Connection
from tests.scripted import PATIENCE
from tests.service import noise, pixels_of, png, running

ASKING = {"accept": "multipart/mixed", "content-type": "image/png"}


class Crowd:
    """Requests that wait in the queue while the network holds the first one.

    Args:
        app: with the variant ``lightweight-x2``.
        gate: what holds the network's calls.
    """

    def __init__(self, app, gate):
        self.app, self.gate = app, gate
        self.tasks = []

    def send(self, connection):
        self.tasks.append(asyncio.create_task(self.app(connection.scope, connection.receive, connection.send)))
        return connection

    async def hold(self):
        self.gate.close()
        held = self.send(Connection(png(noise(8, 8)), ASKING))
        await asyncio.to_thread(self.gate.wait_until_reached)
        return held

    async def queue(self, *images, headers=ASKING, query=""):
        connections = []
        for image in images:
            body = image if isinstance(image, bytes) else png(image)
            connections.append(self.send(Connection(body, headers, query)))
            await connections[-1].wait_for(b'"state":"queued"')
        return connections

    async def release(self):
        self.gate.open()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self.tasks)


@asynccontextmanager
async def crowd(app, gate):
    """A crowd before a booted application."""
    async with running(app):
        await app.state.service.boot(lambda: None)
        yield Crowd(app, gate)


def image_of(connection):
    """The image in a ``multipart/mixed`` answer, or None."""
    start = bytes(connection.body).find(b"\x89PNG")
    return None if start < 0 else pixels_of(bytes(connection.body)[start:])

"""A server of the real protocol and acceptor in this event loop, and connections to it byte by byte."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.server import ServerState

from app import sockets
from app.http.connections import Acceptor, Connections
from app.http.cors import CrossOrigin
from app.http.protocol import HttpProtocol, Timeouts, refuse_connection
from app.server import configure
from app.settings import Settings
from tests.scripted import PATIENCE

GET = b"GET /thing HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """An application and a server for it in this event loop.

    Args:
        send, headers, keep_alive: timeouts in seconds.
        limit: of connections.
        answer: what the application sends.
        tls: context of the server.
        listener: bound; a free port of this machine by default.
        origins: of CORS.
    """

    def __init__(
        self,
        *,
        send=20.0,
        headers=20.0,
        keep_alive=20.0,
        limit=100,
        answer=b"hello",
        tls=None,
        listener=None,
        origins=(),
    ):
        self.answer = answer
        self.application = None
        self.requests = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads_body = True
        self.left = 0
        self._writers = []
        settings = Settings(keep_alive_ms=int(keep_alive * 1000))
        self.state = ServerState()
        self.connections = Connections(limit)
        config = configure(self, settings)
        timeouts = Timeouts(headers=headers, send=send, drain=100.0)
        options = {"timeouts": timeouts, "connections": self.connections}
        if origins:
            options["cors"] = CrossOrigin(refuse_connection, origins)
        self.listener = listener or sockets.listen("127.0.0.1", 0)
        self.acceptor = Acceptor(
            self.listener,
            lambda: HttpProtocol(config, self.state, {}, **options),
            self.connections,
            tls=tls,
            handshake_timeout=headers,
            backlog=100,
        )

    async def __call__(self, scope, receive, send):
        if self.application:
            await self.application(scope, receive, send)
            return
        body = b""
        if self.reads_body:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left += 1
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        self.requests.append((scope["path"], body))
        if not scope["path"].startswith("/health"):
            await self.gate.wait()
        length = str(len(self.answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for start in range(0, len(self.answer), 1 << 18):
            end = start + (1 << 18)
            await send(
                {
                    "type": "http.response.body",
                    "body": self.answer[start:end],
                    "more_body": end < len(self.answer),
                }
            )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_error):
        self.gate.set()
        self.acceptor.close()
        for writer in self._writers:
            writer.transport.abort()
        await self.until(lambda: not self.connections.open and not self.state.tasks)

    async def connect(self, data=b"", **options):
        """Reader and writer of a new connection that has sent this."""
        client = socket.socket(self.listener.family)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.listener.getsockname())
        reader, writer = await asyncio.open_connection(sock=client, limit=4096, **options)
        writer.write(data)
        self._writers.append(writer)
        return reader, writer

    async def ask(self, data=GET):
        """Everything that is answered until the connection is closed."""
        reader, writer = await self.connect(data)
        answer = await rest(reader)
        writer.close()
        return answer

    async def until(self, condition):
        """Wait for a condition."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - conditions of sockets have no events
                await asyncio.sleep(0.01)


async def rest(reader):
    """What comes until the end; ConnectionResetError if it is no clean one."""
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


async def response(reader, length=5):
    """A head and a body of this length."""
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
        return head, await reader.readexactly(length)


def run(scenario):
    return asyncio.run(scenario())

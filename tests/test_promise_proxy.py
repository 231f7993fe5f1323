"""Promise 26: mixed load behind nginx, with clients that leave, read slowly or say nothing, and two restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections import Counter

import httpx
import pytest

from tests.scripted_server import ScriptedServer
from tests.server import free_ports
from tests.service import noise, pixels_of, png
from tests.test_nginx import NGINX, balance  # noqa: F401 - a fixture
from tests.test_promise_process import memory_of

SECONDS = float(os.environ.get("PROVE_SECONDS", "3600"))
"""How long the load lasts."""

GROWTH = 100 * 2**20
"""Bytes that a process may grow by after its first tenth."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


class Crowd:
    """Clients of all kinds at one address, until a time.

    Args:
        url: of nginx.
        until: ``time.monotonic()`` of the end.

    Attributes:
        outcomes: how many requests ended how.
        faults: what should not have happened.
    """

    def __init__(self, url: str, until: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._url = url
        self._until = until
        self._random = random.Random(1)
        self._address = url.removeprefix("http://").split(":")

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self._until

    async def ask(self) -> None:
        """Images of mixed sizes and formats on kept connections: each is answered with its image."""
        async with httpx.AsyncClient(timeout=120) as client:
            while self.goes_on:
                height, width = self._random.randint(8, 300), self._random.randint(8, 300)
                body = png(noise(height, width, seed=self._random.randint(0, 9)))
                query = f"?format={self._random.choice(['png', 'jpeg', 'webp'])}"
                accept = self._random.choice(["*/*", "multipart/mixed"])
                headers = {"content-type": "image/png", "accept": accept}
                try:
                    answer = await client.post(f"{self._url}/v1/upscale{query}", content=body, headers=headers)
                except httpx.HTTPError as error:
                    self.faults.append(repr(error))
                    continue
                self.outcomes[str(answer.status_code)] += 1
                if answer.status_code == 429 or (answer.status_code == 503 and "retry-after" in answer.headers):
                    await asyncio.sleep(0.2)
                elif answer.status_code != 200:
                    self.faults.append(f"{answer.status_code} {answer.text[:200]}")
                elif accept == "*/*" and pixels_of(answer.content).shape[:2] != (2 * height, 2 * width):
                    self.faults.append("a lost or foreign response")
                elif accept != "*/*" and not answer.content.endswith(b"--\r\n"):
                    self.faults.append("a stream without its end")

    async def misbehave(self) -> None:
        """Say nothing, send half, read slowly or not at all, and leave."""
        while self.goes_on:
            kind = self._random.choice(["silent", "half", "unread", "slow"])
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (self._address[0], int(self._address[1])))
            reader, writer = await asyncio.open_connection(sock=client, limit=2048)
            body = png(noise(300, 300))
            head = "POST /v1/upscale HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            if kind != "silent":
                writer.write(head.encode() + (body[: len(body) // 2] if kind == "half" else body))
            leaves = min(self._until, time.monotonic() + self._random.uniform(0.2, 8))
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < leaves:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(500) if kind == "slow" else asyncio.sleep(1), 0.2)
                    await asyncio.sleep(0.1)
            self.outcomes[kind] += 1
            writer.transport.abort()


def test_promise_26_an_hour_behind_nginx_with_restarts(balance):  # noqa: F811 - the fixture
    """No 502, no reset, no lost response, and memory that stays; each process is restarted once under the load."""
    ports = free_ports(2)
    settings = {"seconds": 0.5, "drain_delay_ms": 2000, "drain_timeout_ms": 60_000, "send_timeout_ms": 5000}

    def start(port):
        server = ScriptedServer(port=port, **settings)
        server.__enter__()
        return server

    servers = [start(port) for port in ports]
    growth: list[int] = []

    async def scenario():
        crowd = Crowd(balance(*ports), time.monotonic() + SECONDS)
        clients = [asyncio.create_task(crowd.ask()) for _ in range(6)]
        clients += [asyncio.create_task(crowd.misbehave()) for _ in range(4)]
        await asyncio.sleep(SECONDS / 10)
        before = memory_of(servers[1])
        await asyncio.sleep(SECONDS / 4)
        assert await asyncio.to_thread(servers[0].stop) == 0
        servers[0] = await asyncio.to_thread(start, ports[0])
        await asyncio.sleep(SECONDS / 4)
        growth.append(memory_of(servers[1]) - before)
        assert await asyncio.to_thread(servers[1].stop) == 0
        servers[1] = await asyncio.to_thread(start, ports[1])
        await asyncio.gather(*clients)
        return crowd

    try:
        crowd = asyncio.run(scenario())
        assert [server.stop() for server in servers] == [0, 0]
    finally:
        for server in servers:
            server.__exit__()
    print(f"\n{dict(crowd.outcomes)}, memory grew by {growth[0] // 2**20} MiB, {len(crowd.faults)} faults")
    assert crowd.faults == []
    assert crowd.outcomes["200"] > SECONDS / 10
    assert growth[0] < GROWTH

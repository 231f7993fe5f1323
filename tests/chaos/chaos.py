"""A crowd that does everything wrong, and keeps books: ``python -m tests.chaos.chaos REQUESTS``.

Valid and broken uploads, callers that leave before and while they are served, slow bodies, faults and missing memory in
the network, a worker that dies: against the real server. Afterwards what the clients counted has to be what it counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import Counter

import httpx

from tests.chaos.metrics import Books
from tests.scripted_server import ScriptedServer, Spell
from tests.service import noise, png, png_header

SETTINGS = {"upload_timeout_ms": 2000, "max_queue_requests": 24, "drain_timeout_ms": 60_000}
PATIENCE = 60.0
TOGETHER = 32

GOOD = [png(noise(*size, seed=index)) for index, size in enumerate([(8, 8), (33, 17), (60, 90), (150, 200)])]
BAD = [b"", b"no image", GOOD[2][:80], GOOD[1][:-20], png_header(40_000, 25_000), png_header(20, 30)]
CURSED = {spell: png(spell.cast(noise(16, 16))) for spell in (Spell.FAULT, Spell.NO_MEMORY)}
DEADLY = png(Spell.DEATH.cast(noise(16, 16)))


class Chaos:
    """Clients of one server.

    Args:
        url: of the server.
        seed: of the dice.

    Attributes:
        outcomes: what clients were told, by code; ``ok`` for an image.
        left: how many left without waiting for an answer.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        self.outcomes: Counter[str] = Counter()
        self.left = 0
        self._url = url
        self._dice = random.Random(seed)

    async def run(self, requests: int) -> None:
        """Send so many requests, some at a time; one in two hundred kills the worker."""
        deeds = iter([*(self._dice.choices(*zip(*self._deeds().items(), strict=True))[0] for _ in range(requests))])
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE, limits=limits) as client:

            async def visit() -> None:
                for deed in deeds:
                    await deed(client)

            await asyncio.gather(*(visit() for _ in range(TOGETHER)))

    def _deeds(self):
        return {
            self._ask: 60,
            self._send_rubbish: 15,
            self._ask_nonsense: 6,
            self._curse: 8,
            self._leave: 8,
            self._stall: 2,
            self._kill: 0.5,
        }

    async def _ask(self, client: httpx.AsyncClient) -> None:
        headers = {"content-type": "image/png"}
        if self._dice.random() < 0.3:
            headers["accept"] = "multipart/mixed"
        await self._post(client, self._dice.choice(GOOD), headers)

    async def _send_rubbish(self, client: httpx.AsyncClient) -> None:
        await self._post(client, self._dice.choice(BAD))

    async def _ask_nonsense(self, client: httpx.AsyncClient) -> None:
        params = self._dice.choice([{"quality": "0"}, {"variant": "x3"}, {"variant": "jpeg"}, {"timeout_ms": "1"}])
        await self._post(client, self._dice.choice(GOOD), params=params)

    async def _curse(self, client: httpx.AsyncClient) -> None:
        await self._post(client, self._dice.choice(list(CURSED.values())))

    async def _kill(self, client: httpx.AsyncClient) -> None:
        await self._post(client, DEADLY)

    async def _post(self, client, body, headers=None, params=None) -> None:
        response = await client.post(
            "/v1/upscale", content=body, headers=headers or {"content-type": "image/png"}, params=params
        )
        self.outcomes[_outcome(response)] += 1

    async def _leave(self, _client: httpx.AsyncClient) -> None:
        """Announce a body, send it or half of it, and go."""
        body = self._dice.choice(GOOD)
        _, writer = await self._connect(body)
        writer.write(body if self._dice.random() < 0.7 else body[: len(body) // 2])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.transport.abort()
        self.left += 1

    async def _stall(self, _client: httpx.AsyncClient) -> None:
        """Send half a body, and wait for the server's timeout."""
        body = GOOD[1]
        reader, writer = await self._connect(body)
        writer.write(body[: len(body) // 2])
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        self.outcomes["upload_too_slow"] += 1
        writer.close()

    async def _connect(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/upscale HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        return reader, writer


def _outcome(response: httpx.Response) -> str:
    """What an answer says; a ``multipart/mixed`` one says it in its last part."""
    kind = response.headers["content-type"]
    if kind.startswith("image/"):
        return "ok"
    if kind == "application/problem+json":
        return response.json()["code"]
    boundary = kind.partition("boundary=")[2].encode()
    head, _, content = response.content.split(b"--" + boundary)[-2].strip(b"\r\n").partition(b"\r\n\r\n")
    return "ok" if b"image/png" in head else str(httpx.Response(200, content=content).json()["code"])


def balance(requests: int, seed: int = 0) -> str:
    """Run, wait until the server is quiet, and compare the books.

    Returns:
        What happened, for a person to read.

    Raises:
        AssertionError: if the books do not agree.
    """
    with ScriptedServer(seconds=0.05, **SETTINGS) as server:
        chaos = Chaos(server.url, seed)
        asyncio.run(asyncio.wait_for(chaos.run(requests), 20 + requests * 0.2))
        while not (books := Books(server.url)).is_quiet():
            pass  # those who left are still being noticed
        counted = books.by("swin2sr_requests_total", "outcome")
        # Who left may have been served, refused, or seen leaving; everybody else was told what was counted.
        extra = {code: number - chaos.outcomes[code] for code, number in counted.items()}
        assert all(number >= 0 for number in extra.values()), (counted, chaos.outcomes)
        assert set(chaos.outcomes) <= set(counted)
        unheard = requests - sum(chaos.outcomes.values())
        assert unheard == chaos.left
        # A connection that was cut before its headers were read was never a request.
        assert sum(extra.values()) <= unheard
        assert sum(number for code, number in extra.items() if code not in ("cancelled", "ok", "queue_full")) <= unheard
        assert books["swin2sr_request_duration_seconds_count"] == sum(counted.values())
        assert books["swin2sr_rejected_total"] == counted.get("queue_full", 0)
        assert counted["ok"] > 0
        assert {"internal_error", "out_of_memory", "not_ready", "cancelled"} <= set(counted)
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert server.stop() == 0
    return f"{requests} requests, {chaos.left} left: {dict(sorted(counted.items()))}"


if __name__ == "__main__":
    print(balance(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))

"""Clients that do everything wrong, and count the results: ``python -m tests.chaos.chaos REQUESTS``.

Valid and broken uploads, callers that leave before and while they are served, slow bodies, faults and missing memory in
the network, a worker that dies: against the real server. Afterwards its counts have to agree with those of the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import Counter

import httpx

from tests.chaos.metrics import MetricsSnapshot
from tests.scripted_server import Failure, ScriptedServer
from tests.service import noise, png, png_header

SETTINGS = {"upload_timeout_ms": 2000, "max_queue_requests": 24, "drain_timeout_ms": 60_000}
PATIENCE = 60.0
CLIENTS = 32

GOOD = [png(noise(*size, seed=index)) for index, size in enumerate([(8, 8), (33, 17), (60, 90), (150, 200)])]
BAD = [b"", b"no image", GOOD[2][:80], GOOD[1][:-20], png_header(40_000, 25_000), png_header(20, 30)]
FAILING = {failure: png(failure.mark(noise(16, 16))) for failure in (Failure.FAULT, Failure.NO_MEMORY)}
CRASHING = png(Failure.CRASH.mark(noise(16, 16)))


class Chaos:
    """Clients of one server.

    Args:
        url: of the server.
        seed: of the random numbers.

    Attributes:
        outcomes: results of requests, by code; ``ok`` for an image.
        left: how many clients disconnected without waiting for an answer.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        self.outcomes: Counter[str] = Counter()
        self.left = 0
        self._url = url
        self._random = random.Random(seed)

    async def run(self, requests: int) -> None:
        """Send so many requests, some at a time; one in two hundred kills the worker."""
        requests_to_send = iter(
            [*(self._random.choices(*zip(*self._requests().items(), strict=True))[0] for _ in range(requests))]
        )
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE, limits=limits) as client:

            async def visit() -> None:
                for send in requests_to_send:
                    await send(client)

            await asyncio.gather(*(visit() for _ in range(CLIENTS)))

    def _requests(self):
        return {
            self._send_image: 60,
            self._send_broken_image: 15,
            self._send_invalid_option: 6,
            self._send_failing_image: 8,
            self._leave: 8,
            self._stall: 2,
            self._crash_worker: 0.5,
        }

    async def _send_image(self, client: httpx.AsyncClient) -> None:
        headers = {"content-type": "image/png"}
        if self._random.random() < 0.3:
            headers["accept"] = "multipart/mixed"
        await self._post(client, self._random.choice(GOOD), headers)

    async def _send_broken_image(self, client: httpx.AsyncClient) -> None:
        await self._post(client, self._random.choice(BAD))

    async def _send_invalid_option(self, client: httpx.AsyncClient) -> None:
        params = self._random.choice([{"quality": "0"}, {"variant": "x3"}, {"variant": "jpeg"}, {"timeout_ms": "1"}])
        await self._post(client, self._random.choice(GOOD), params=params)

    async def _send_failing_image(self, client: httpx.AsyncClient) -> None:
        await self._post(client, self._random.choice(list(FAILING.values())))

    async def _crash_worker(self, client: httpx.AsyncClient) -> None:
        await self._post(client, CRASHING)

    async def _post(self, client, body, headers=None, params=None) -> None:
        response = await client.post(
            "/v1/upscale", content=body, headers=headers or {"content-type": "image/png"}, params=params
        )
        self.outcomes[_outcome(response)] += 1

    async def _leave(self, _client: httpx.AsyncClient) -> None:
        """Announce a body, send it or half of it, and close the connection."""
        body = self._random.choice(GOOD)
        _, writer = await self._connect(body)
        writer.write(body if self._random.random() < 0.7 else body[: len(body) // 2])
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
    """Run, wait until the server is idle, and compare its metrics with the clients' counts.

    Returns:
        What happened, for a person to read.

    Raises:
        AssertionError: if they do not agree.
    """
    with ScriptedServer(seconds=0.05, **SETTINGS) as server:
        chaos = Chaos(server.url, seed)
        asyncio.run(asyncio.wait_for(chaos.run(requests), 20 + requests * 0.2))
        while not (metrics := MetricsSnapshot(server.url)).is_quiet():
            pass  # the server still notices disconnected clients
        counted = metrics.by("swin2sr_requests_total", "outcome")
        # A disconnected client may be counted as served, refused or cancelled; for others the counted outcome is exact.
        extra = {code: number - chaos.outcomes[code] for code, number in counted.items()}
        assert all(number >= 0 for number in extra.values()), (counted, chaos.outcomes)
        assert set(chaos.outcomes) <= set(counted)
        unanswered = requests - sum(chaos.outcomes.values())
        assert unanswered == chaos.left
        # A connection that was cut before its headers were read was never a request.
        assert sum(extra.values()) <= unanswered
        refused = {code: number for code, number in extra.items() if code not in ("cancelled", "ok", "queue_full")}
        assert sum(refused.values()) <= unanswered
        assert metrics["swin2sr_request_duration_seconds_count"] == sum(counted.values())
        assert metrics["swin2sr_rejected_total"] == counted.get("queue_full", 0)
        assert counted["ok"] > 0
        assert {"internal_error", "out_of_memory", "not_ready", "cancelled"} <= set(counted)
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert server.stop() == 0
    return f"{requests} requests, {chaos.left} disconnected: {dict(sorted(counted.items()))}"


if __name__ == "__main__":
    print(balance(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))

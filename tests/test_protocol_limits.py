"""The limit of connections: which connections are closed or refused when too many are open."""

from __future__ import annotations

import asyncio
import errno
import json

import pytest

from app import sockets
from app.http.connections import PROBE_CONNECTIONS
from tests.protocol_server import GET, Site, response, rest, run

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def test_at_the_limit_the_longest_idle_connection_goes():
    """Connections that are silent or kept alive are closed, the oldest first; those with a request stay."""

    async def scenario():
        async with Site(limit=2) as site:
            site.gate.clear()
            active, _ = await site.connect(GET)
            await site.until(lambda: site.requests)
            silent, _ = await site.connect()
            await site.until(lambda: len(site.connections.open) == 2)
            kept, writer = await site.connect(LIVE)
            assert await rest(silent) == b""
            await response(kept)
            newest, _ = await site.connect(LIVE)
            assert await rest(kept) == b""
            await response(newest)
            site.gate.set()
            assert (await response(active))[1] == b"hello"
            writer.close()

    run(scenario)


def test_a_new_connection_is_refused_if_none_is_idle():
    """503 with Retry-After and a problem document; health is answered still, and later everything."""

    async def scenario():
        async with Site(limit=1) as site:
            site.gate.clear()
            active, _ = await site.connect(GET)
            await site.until(lambda: site.requests)
            refused = await site.ask(GET)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"retry-after: " in refused
            problem = json.loads(refused.partition(b"\r\n\r\n")[2])
            assert problem["code"] == "not_ready"
            assert len(problem["request_id"]) == 32
            live, _ = await site.connect(LIVE)
            assert (await response(live))[0].startswith(b"HTTP/1.1 200")
            site.gate.set()
            await response(active)
            later, _ = await site.connect(GET)
            assert (await response(later))[0].startswith(b"HTTP/1.1 200")

    run(scenario)


def test_a_flood_beside_requests_is_bounded():
    """However many connect, few more than the limit are open."""

    async def scenario():
        async with Site(limit=2) as site:
            site.gate.clear()
            for number in range(2):
                await site.connect(GET)
                await site.until(lambda number=number: len(site.requests) == number + 1)
            for _ in range(5 * PROBE_CONNECTIONS):
                await site.connect(b"GET /half")
            await asyncio.sleep(0.1)
            assert len(site.connections.open) <= 2 + PROBE_CONNECTIONS
            live, _ = await site.connect(LIVE)
            await response(live)
            site.gate.set()

    run(scenario)


def test_beyond_every_place_connections_wait_to_be_accepted(caplog):
    """Where even the places for probes have requests, the log says so, and later the next connection is served."""

    async def scenario():
        async with Site(limit=1) as site:

            async def answer(_scope, _receive, send):
                await site.gate.wait()
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
                await send({"type": "http.response.body", "body": b"hello"})

            site.application = answer
            site.gate.clear()
            waiting = [await site.connect(GET)]
            await site.until(lambda: site.state.tasks)
            waiting += [await site.connect(LIVE) for _ in range(PROBE_CONNECTIONS)]
            await site.until(lambda: len(site.state.tasks) == 1 + PROBE_CONNECTIONS)
            waiting.append(await site.connect(LIVE))
            await site.until(lambda: "none is idle" in caplog.text)
            assert len(site.connections.open) == 1 + PROBE_CONNECTIONS
            site.gate.set()
            for reader, _ in waiting:
                assert (await response(reader))[0].startswith(b"HTTP/1.1 200")

    run(scenario)


@pytest.mark.slow
def test_failures_to_accept_are_logged_once_a_second(caplog):
    """Without a free file descriptor idle connections are closed, and accepting continues."""

    class Exhausted:
        """A listener whose first attempts fail."""

        def __init__(self, listener):
            self.failures = 5
            self._listener = listener

        def __getattr__(self, name):
            return getattr(self._listener, name)

        def accept(self):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self._listener.accept()

    async def scenario():
        async with Site(listener=Exhausted(sockets.listen("127.0.0.1", 0))) as site:
            reader, _ = await site.connect(GET)
            await response(reader)

    run(scenario)
    warnings = [each for each in caplog.records if "cannot accept" in each.getMessage()]
    assert 1 <= len(warnings) <= 2
    assert not any(each.exc_info for each in warnings)

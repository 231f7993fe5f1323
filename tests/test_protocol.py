"""Connections by hand: slow, silent, greedy and malformed clients of the real server's protocol and acceptor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import ssl
import subprocess

import pytest
import uvicorn
from uvicorn.server import ServerState

from app import sockets
from app.http.connections import PROBE_CONNECTIONS, Acceptor, Connections
from app.http.cors import CrossOrigin
from app.http.parser import EVENTS_AT_ONCE, HEADER_BYTES, MOST_HEADERS
from app.http.protocol import HttpProtocol, Timeouts, refuse_connection
from app.http.settings import HttpSettings
from app.server import configure
from app.settings import Settings
from tests.scripted import PATIENCE

GET = b"GET /thing HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


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


async def teapot(_scope, _receive, _send):
    """An application that is never asked."""


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


@pytest.mark.parametrize("begun", [b"", b"GET /thing HTTP/1.1\r\nHost", GET[:-2]])
def test_promise_22_a_connection_with_unfinished_headers_is_closed(begun):
    """Silent from the start, or in the middle: nothing is answered, and the place is free again."""

    async def scenario():
        async with Site(headers=0.2) as site:
            assert await site.ask(begun) == b""
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_a_byte_now_and_then_gains_no_time():
    """Headers that come bit by bit have the same time in all; the next request on a connection too."""

    async def scenario():
        async with Site(headers=0.3) as site:
            reader, writer = await site.connect(GET)
            await response(reader)

            async def drip():
                with contextlib.suppress(ConnectionError):
                    while not reader.at_eof():
                        writer.write(b"G")
                        await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            with contextlib.suppress(ConnectionError):
                await rest(reader)
            await dripping
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_an_idle_connection_outlives_the_time_for_headers():
    """``KEEP_ALIVE_MS`` is its own time; after it the connection is closed without a reset."""

    async def scenario():
        async with Site(headers=0.1, keep_alive=PATIENCE) as site:
            reader, writer = await site.connect(GET)
            await response(reader)
            await asyncio.sleep(0.2)
            writer.write(GET)
            await response(reader)
        async with Site(headers=PATIENCE, keep_alive=0.1) as site:
            reader, _ = await site.connect(GET)
            await response(reader)
            assert await rest(reader) == b""

    run(scenario)


def test_a_body_that_never_ends_after_its_response():
    """After an early response, a client that continues to send byte by byte is disconnected."""

    async def scenario():
        async with Site(headers=0.2) as site:
            site.reads_body = False
            head = b"POST /thing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            reader, writer = await site.connect(head)
            await response(reader)
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"x")
                    await asyncio.sleep(0.02)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.01)
            await site.until(lambda: not site.connections.open)

    run(scenario)


@pytest.mark.parametrize("pace", ["dead", "one kilobyte at a time"])
def test_promise_22_a_client_that_does_not_read_is_aborted(pace, caplog):
    """The application is cancelled, and the log has a line."""
    caplog.set_level(logging.INFO)

    async def scenario():
        async with Site(send=0.4, answer=bytes(32 << 20)) as site:
            reader, _writer = await site.connect(GET)
            with contextlib.suppress(ConnectionError):
                while site.connections.open:
                    await asyncio.sleep(0.02)
                    if pace != "dead":
                        await reader.read(1000)
            await site.until(lambda: not site.state.tasks)

    run(scenario)
    assert "the client reads too slowly" in caplog.text


@pytest.mark.slow
def test_a_slow_reader_that_continues_is_served():
    """64 KiB within the time are enough, however long all of it takes."""

    async def scenario():
        async with Site(send=0.5, answer=bytes(8 << 20)) as site:
            reader, _writer = await site.connect(GET)
            await reader.readuntil(b"\r\n\r\n")
            left = 8 << 20
            while left:
                left -= len(await reader.read(256 << 10))
                if left % 7 == 0:
                    await asyncio.sleep(0.05)

    run(scenario)


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


def test_tiny_chunks_leave_others_their_turn():
    """Thousands of parts in one write: the body is whole, and the event loop goes round in between."""

    async def scenario():
        async with Site() as site:
            count = 20_000
            head = b"POST /thing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            turns = 0

            def turn():
                nonlocal turns
                turns += 1
                if not site.requests:
                    asyncio.get_running_loop().call_soon(turn)

            turn()
            await site.ask(head + b"1\r\nA\r\n" * count + b"0\r\n\r\n")
            assert site.requests == [("/thing", b"A" * count)]
            assert turns > count // EVENTS_AT_ONCE

    run(scenario)


def test_pipelined_requests_are_answered_in_order():
    """Several in one write, with bodies: each has its answer, and only then the next one begins."""

    async def scenario():
        async with Site() as site:
            post = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            reader, _ = await site.connect(b"".join(post % number for number in range(5)))
            for _ in range(5):
                await response(reader)
            assert site.requests == [(f"/{number}", b"abc") for number in range(5)]

    run(scenario)


CHUNKED = b"POST /thing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"BAD\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: odd\r\n\r\nx", 400, "bad_request"),
        (CHUNKED + b"zz\r\n\r\n", 400, "bad_request"),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"0\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEADER_BYTES + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 50_000 + b"\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * MOST_HEADERS + b"\r\n", 431, "headers_too_large"),
        (b"POST / HTTP/1.1\r\nHost: a\r\n" + b"X:\n" * MOST_HEADERS, 431, "headers_too_large"),
    ],
)
def test_malformed_http_gets_a_problem_document(data, status, code, caplog):
    """Whatever is wrong, and however much was sent: the answer arrives whole, and the log has one plain line."""
    caplog.set_level(logging.INFO)

    async def scenario():
        async with Site() as site:
            return await site.ask(data)

    answer = run(scenario)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert "bytearray" not in problem["detail"]
    assert f"x-request-id: {problem['request_id']}".encode() in head.lower()
    [record] = [each for each in caplog.records if each.name.startswith("app")]
    assert record.getMessage() == "malformed request"
    assert record.exc_info is None


ORIGIN = b"Origin: https://page.example\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + ORIGIN + b"\r\n", 400),  # without Host
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + ORIGIN.lower() + b"X: \x00\r\n\r\n", 400),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n" + ORIGIN + b"\r\n", 400),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\n" + ORIGIN + b"\r\n") + b"zz\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + ORIGIN + b"X: " + b"x" * HEADER_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + ORIGIN + b"X: y\r\n" * MOST_HEADERS + b"\r\n", 431),
        (GET.replace(b"\r\n\r\n", b"\r\n" + ORIGIN + b"\r\n"), 503),  # above the limit of connections
    ],
)
@pytest.mark.parametrize(
    ("origins", "allowed"), [(["https://page.example"], b"https://page.example"), (["*"], b"*"), (["https://b"], None)]
)
def test_refusals_of_the_connection_may_be_read_by_allowed_origins(data, status, origins, allowed):
    """Responses that the application does not see have the headers of CORS too."""

    async def scenario():
        async with Site(origins=origins, limit=1) as site:
            if status == 503:
                site.gate.clear()
                await site.connect(GET)
                await site.until(lambda: site.requests)
            return await site.ask(data)

    head = run(scenario).partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 %d " % status)
    assert head.count(b"vary: origin") == 1
    assert (b"access-control-expose-headers" in head) == (b"x-request-id" in head)
    if allowed:
        assert head.count(b"access-control-allow-origin: " + allowed + b"\r\n") == 1
    else:
        assert b"access-control-allow-origin" not in head


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HEAD ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"HEAD /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * MOST_HEADERS + b"\r\n", 431),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * HEADER_BYTES + b"\r\n\r\n", 431),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT /thing HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"HEAD / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_a_malformed_head_is_answered_without_a_body(data, status, caplog):
    """A response to ``HEAD`` has headers only, and nothing fails."""

    async def scenario():
        async with Site() as site:
            site.reads_body = False
            site.gate.clear()
            return await site.ask(data)

    head, _, body = run(scenario).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in head
    assert (body == b"") == data.startswith(b"HEAD")
    assert not [record for record in caplog.records if record.exc_info]


def test_the_origin_of_an_earlier_request_does_not_count():
    """Nor that of a request behind a malformed one."""

    async def scenario():
        async with Site(origins=["https://page.example"]) as site:
            earlier = GET.replace(b"\r\n\r\n", b"\r\n" + ORIGIN + b"\r\n")
            return await site.ask(earlier + b"BAD\r\n\r\n" + earlier)

    answer = run(scenario)
    assert answer.count(b"HTTP/1.1 400") == 1
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n" * 100])
@pytest.mark.parametrize("pieces", [1, 1000])
def test_blank_lines_before_a_request_are_ignored(blank, pieces):
    """The first one and later ones, in one piece or a byte at a time; a blank line alone is no request."""

    async def scenario():
        async with Site() as site:
            reader, writer = await site.connect()
            for _ in range(2):
                data = blank + GET
                for start in range(0, len(data), -(-len(data) // pieces)):
                    writer.write(data[start : start + -(-len(data) // pieces)])
                    await asyncio.sleep(0)
                await response(reader)
            writer.write(blank)
            writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            return await rest(reader), len(site.requests)

    answer, served = run(scenario)
    assert answer.startswith(b"HTTP/1.1 200")
    assert served == 3


def test_blank_lines_give_no_more_time_for_a_request():
    """A new connection that sends nothing else is closed."""

    async def scenario():
        async with Site(headers=0.2) as site:
            reader, writer = await site.connect()

            async def drip():
                while not writer.is_closing():
                    writer.write(b"\r\n")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(drip())
            try:
                return await rest(reader)
            finally:
                task.cancel()

    with contextlib.suppress(ConnectionResetError):
        assert run(scenario) == b""


@pytest.mark.parametrize(
    ("line", "host", "target"),
    [
        (b"GET http://Other.example:80/thing?a=b HTTP/1.1", b"Other.example:80", (b"/thing", b"a=b")),
        (b"GET HTTPS://other.example/%41/ HTTP/1.1", b"other.example", (b"/%41/", b"")),
        (b"GET http://[::1]:8000/thing HTTP/1.0", b"[::1]:8000", (b"/thing", b"")),
        (b"GET http://other.example HTTP/1.1", b"other.example", (b"/", b"")),
        (b"GET http://other.example?a=http://x/ HTTP/1.1", b"other.example", (b"/", b"a=http://x/")),
        (b"OPTIONS http://other.example HTTP/1.1", b"other.example", (b"*", b"")),
        (b"OPTIONS * HTTP/1.1", b"x", (b"*", b"")),
        (b"GET //thing HTTP/1.1", b"x", (b"//thing", b"")),
    ],
)
def test_a_target_may_be_a_url(line, host, target):
    """As proxies send it; its host counts, not that of the header (RFC 9112, 3.2)."""

    async def scenario():
        async with Site() as site:
            seen = []

            async def app(scope, _receive, send):
                seen.append(scope)
                await send({"type": "http.response.start", "status": 204})
                await send({"type": "http.response.body"})

            site.application = app
            head = b"" if b"HTTP/1.0" in line else b"Host: x\r\n"
            await site.ask(line + b"\r\n" + head + b"Connection: close\r\n\r\n")
            return seen

    [scope] = run(scenario)
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]
    assert (scope["raw_path"], scope["query_string"]) == target


@pytest.mark.parametrize(
    "target",
    [b"ftp://x/", b"http:///thing", b"http://user@x/", b"http:thing", b"http://?a", b"thing", b"*", b"x:443", b"?a=b"],
)
def test_other_targets_are_malformed(target):
    """They have no host or no path."""

    async def scenario():
        async with Site() as site:
            return await site.ask(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)

    assert run(scenario).startswith(b"HTTP/1.1 400")


def test_a_malformed_body_ends_its_request():
    """The application gets a disconnect, and there is one response."""

    async def scenario():
        async with Site() as site:
            reader, writer = await site.connect(CHUNKED + b"3\r\nabc\r\n")
            await site.until(lambda: site.state.tasks)
            writer.write(b"zz\r\n\r\n")
            answer = await rest(reader)
            await site.until(lambda: site.left)
            return answer

    answer = run(scenario)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400")


def test_another_protocol_is_ignored_without_a_warning(caplog):
    """Curl requests h2c; the response is HTTP/1.1, and no warning is logged."""

    async def scenario():
        async with Site() as site:
            upgrade = (
                b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
            )
            return await site.ask(GET.replace(b"\r\n\r\n", b"\r\n" + upgrade + b"\r\n"))

    assert run(scenario).startswith(b"HTTP/1.1 200")
    assert not caplog.records


def test_an_early_response_arrives_though_the_body_does_too():
    """A refusal before megabytes were read is not lost to a reset."""

    async def scenario():
        async with Site() as site:
            site.reads_body = False
            head = b"POST /thing HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\nConnection: close\r\n\r\n"
            reader, writer = await site.connect(head + bytes(4_000_000))
            answer = await rest(reader)
            await writer.drain()  # it was read, not reset
            writer.close()
            await site.until(lambda: not site.connections.open)
            return answer

    assert run(scenario).endswith(b"\r\n\r\nhello")


async def drain(site):
    """Leave as the server does."""
    site.acceptor.turn_away()
    await asyncio.sleep(0.1)
    site.connections.draining = True
    site.acceptor.close()
    await site.acceptor.wait_closed()
    for connection in list(site.state.connections):
        connection.shutdown()


def test_draining_serves_what_has_begun_and_resets_nothing():
    """A kept connection with its next request, half a request, and one in the accept queue are all answered."""

    async def scenario():
        async with Site() as site:
            kept, kept_writer = await site.connect(GET)
            await response(kept)
            half, half_writer = await site.connect(GET[:20])
            await site.until(lambda: len(site.connections.open) == 2)
            asyncio.get_running_loop().remove_reader(site.listener)  # the loop is too busy to accept
            queued, _ = await site.connect(GET)
            silent, _ = await site.connect()
            await drain(site)
            kept_writer.write(GET)
            half_writer.write(GET[20:])
            for reader in (kept, half, queued):
                assert (await response(reader))[1] == b"hello"
            for reader in (kept, half, queued, silent):
                assert await rest(reader) == b""  # closed, not reset
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_after_draining_the_port_is_closed():
    """Refused, or never answered: not accepted and then reset."""

    async def scenario():
        async with Site() as site:
            address = site.listener.getsockname()
            await drain(site)
            with pytest.raises(OSError):  # noqa: PT011 - refused
                await asyncio.open_connection(*address)

    run(scenario)


@pytest.mark.slow
def test_a_unix_socket_is_a_place_to_listen(tmp_path):
    """A file that a dead server left is replaced, one in use is not; while draining the file is gone."""
    path = tmp_path / "socket"

    async def scenario():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with Site(listener=sockets.listen_unix(path), headers=0.3) as site:
            with pytest.raises(OSError, match="Cannot listen on"):
                sockets.listen_unix(path)
            reader, writer = await site.connect(GET)
            await response(reader)
            assert await site.ask(b"") == b"", "the time for headers counts here too"
            writer.write(GET)
            await response(reader)
            await drain(site)
            assert not path.exists()
            assert await rest(reader) == b""

    run(scenario)


def test_most_headers_are_served():
    """Lines of the body do not count, nor those of the next request."""

    async def scenario():
        async with Site() as site:
            head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n" + b"X: y\r\n" * (MOST_HEADERS - 2)
            reader, _ = await site.connect((head + b"\r\n" + b"\n" * 999) * 2)
            await response(reader)
            await response(reader)

    run(scenario)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "999.1.1.1", "x" * 300, "a b", "[::1]"])
def test_a_host_that_does_not_exist_is_named(host):
    """With the setting."""
    with pytest.raises(OSError, match="Cannot listen on HOST") as error:
        sockets.listen(host, 0)
    assert host[:100] in str(error.value)


def test_a_busy_unix_socket_is_not_taken(tmp_path):
    """A full accept queue does not mean that its server is dead."""
    path = tmp_path / "socket"
    with sockets.listen_unix(path) as busy, contextlib.ExitStack() as stack:
        busy.listen(0)
        code = 0
        while code == 0:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            code = client.connect_ex(str(path))
        with pytest.raises(OSError, match="Cannot listen on"):
            sockets.listen_unix(path)
        assert path.is_socket()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return {"ssl_certfile": folder / "cert.pem", "ssl_keyfile": folder / "key.pem"}


@pytest.mark.slow
def test_tls_has_the_same_limits(certificate):
    """A handshake that does not come counts as silence and as a connection; requests and draining are as ever."""

    async def scenario():
        config = configure(teapot, Settings(**certificate))
        trusting = ssl.create_default_context(cafile=str(certificate["ssl_certfile"]))
        async with Site(tls=config.ssl, headers=1.0, limit=2) as site:
            assert await site.ask(b"") == b""
            silent, _ = await site.connect()
            await site.until(lambda: len(site.connections.open) == 1)
            reader, writer = await site.connect(GET, ssl=trusting, server_hostname="localhost")
            await response(reader)
            other, _ = await site.connect(GET, ssl=trusting, server_hostname="localhost")
            with contextlib.suppress(ConnectionError):
                assert await rest(silent) == b""
            await response(other)
            writer.write(GET)
            await drain(site)
            await response(reader)
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_a_bad_certificate_stops_the_start(certificate, tmp_path):
    """With the names of both settings; a key alone is refused by the settings."""
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(ValueError, match=r"SSL_CERTFILE .*bad\.pem"):
        configure(teapot, Settings(ssl_certfile=tmp_path / "bad.pem"))
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:word", "-in", certificate["ssl_keyfile"]]
    encrypted = subprocess.run([*command, "-out", tmp_path / "key.pem"], check=False, capture_output=True)
    assert encrypted.returncode == 0
    with pytest.raises(ValueError, match="must not have a passphrase"):  # nobody is asked for it
        configure(teapot, Settings(**{**certificate, "ssl_keyfile": tmp_path / "key.pem"}))
    with pytest.raises(ValueError, match=r"SSL_KEYFILE .* needs SSL_CERTFILE"):
        HttpSettings(ssl_keyfile=certificate["ssl_keyfile"])


def test_the_configuration_trusts_no_proxy_by_itself():
    """Uvicorn would believe 127.0.0.1; TRUSTED_PROXIES decides here."""
    assert not configure(teapot, Settings()).proxy_headers
    assert isinstance(configure(teapot, Settings()), uvicorn.Config)

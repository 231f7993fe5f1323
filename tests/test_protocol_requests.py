"""The bytes of requests: what is accepted, and how malformed requests are answered."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from app.http.parser import HEADER_BYTES, MOST_HEADERS
from tests.protocol_server import GET, Site, response, rest, run

CHUNKED = b"POST /thing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

ORIGIN = b"Origin: https://page.example\r\n"


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


def test_most_headers_are_served():
    """Lines of the body do not count, nor those of the next request."""

    async def scenario():
        async with Site() as site:
            head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n" + b"X: y\r\n" * (MOST_HEADERS - 2)
            reader, _ = await site.connect((head + b"\r\n" + b"\n" * 999) * 2)
            await response(reader)
            await response(reader)

    run(scenario)


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

"""The middleware in Ray's proxies: every request ends in an answer of the service's own kind."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.responses import PlainTextResponse, Response

from app.http.handlers import PROBLEM
from app.ray.proxy import ProxyAnswers, middleware
from app.settings import Settings
from tests.connections import Connection

LIMIT = 100


def exchange(app, body=b"image", leave=False, path=b"/v1/upscale", **headers):
    """One request through the middleware to an application that replaces Ray's proxy."""
    connection = Connection(body, {name.replace("_", "-"): value for name, value in headers.items()})
    connection.scope["raw_path"] = path
    if leave:
        connection.leave()
    asyncio.run(ProxyAnswers(app, LIMIT)(connection.scope, connection.receive, connection.send))
    return connection


def problem_of(connection):
    """The problem document of an answer."""
    headers = dict(connection.headers)
    assert headers[b"content-type"].decode() == PROBLEM
    assert int(headers[b"content-length"]) == len(connection.body)
    document = json.loads(connection.body)
    assert document["status"] == connection.status
    assert document["request_id"] == headers[b"x-request-id"].decode()
    return document, headers


async def answer_nothing(_scope, receive, _send):
    """What Ray's proxy does for a request whose replica is killed."""
    await receive()


def test_a_lost_request_is_to_be_sent_again():
    """Without any answer of the proxy, it is 503 with the time after which trying again makes sense."""
    document, headers = problem_of(exchange(answer_nothing, x_request_id="mine"))
    assert (document["status"], document["code"], document["request_id"]) == (503, "not_ready", "mine")
    assert headers[b"retry-after"] == b"1"


def test_a_client_that_disconnected_gets_no_response():
    """A caller that left gets nothing, and nothing fails."""

    async def read_all(_scope, receive, _send):
        while (await receive())["type"] != "http.disconnect":
            pass

    assert exchange(read_all, leave=True).status == 0


@pytest.mark.parametrize(
    ("status", "after", "expected"),
    [
        (404, None, (503, "draining", b"1")),
        (408, None, (504, "deadline_exceeded", None)),
        (429, "3", (429, "queue_full", b"3")),
        (503, None, (503, "not_ready", b"1")),
    ],
)
def test_the_proxys_own_words_become_problem_documents(status, after, expected):
    """Ray's plain text errors become problem documents."""
    headers = {"retry-after": after} if after else None
    document, headers = problem_of(exchange(PlainTextResponse("Ray's own", status, headers)))
    assert (document["status"], document["code"], headers.get(b"retry-after")) == expected


@pytest.mark.parametrize("status", [404, 503])
def test_a_replicas_own_errors_pass(status):
    """A problem document of the service is passed on unchanged."""
    own = Response(b'{"code": "its own"}', status, {"Retry-After": "7"}, PROBLEM)
    connection = exchange(own)
    assert (connection.status, bytes(connection.body)) == (status, b'{"code": "its own"}')
    assert dict(connection.headers)[b"retry-after"] == b"7"


def test_images_pass_piece_by_piece():
    """The pieces of an answer are not kept back, and Ray's second request id is."""
    pieces = []

    async def stream(_scope, _receive, send):
        headers = [(b"content-type", b"image/png"), (b"X-Request-Id", b"one"), (b"x-request-id", b"two")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (b"abc", b"def"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            pieces.append(bytes(connection.body))
        await send({"type": "http.response.body", "body": b""})

    connection = Connection(b"", {})
    asyncio.run(ProxyAnswers(stream, LIMIT)(connection.scope, connection.receive, connection.send))
    assert pieces == [b"abc", b"abcdef"]
    assert connection.headers == [(b"content-type", b"image/png"), (b"X-Request-Id", b"one")]


@pytest.mark.parametrize(("size", "fits"), [(LIMIT, True), (LIMIT + 1, False)])
def test_bodies_are_bounded_while_no_replica_reads_them(size, fits):
    """One byte more than the limit, and the proxy keeps nothing of it: 413."""
    seen = []

    async def keep(_scope, receive, _send):
        seen.append((await receive())["type"])

    document, _ = problem_of(exchange(keep, bytes(size)))
    assert seen == ["http.request" if fits else "http.disconnect"]
    assert document["code"] == ("not_ready" if fits else "body_too_large")
    if not fits:
        assert (document["limit"], document["actual"]) == (LIMIT, LIMIT + 1)


@pytest.mark.parametrize("sent", ["x" * 129, "two words", ""])
def test_request_ids_are_limited_before_ray_sees_them(sent):
    """Ray repeats whatever id it gets: an unfit one is replaced."""
    seen = []

    async def note(scope, _receive, _send):
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")

    document, _ = problem_of(exchange(note, x_request_id=sent))
    assert [value.decode() for value in seen] == [document["request_id"]]
    assert len(document["request_id"]) == 32


def test_rays_own_addresses_are_left_alone():
    """The proxy's health check answers in Ray's words."""
    connection = exchange(PlainTextResponse("no", 503), path=b"/-/healthz")
    assert (connection.status, bytes(connection.body)) == (503, b"no")


def test_the_limit_is_the_environments(monkeypatch):
    """Ray makes the middleware in its proxies; it has the setting's default, or the variable's value."""
    [made] = middleware()
    assert made.kwargs["max_body_bytes"] == Settings().max_body_bytes
    monkeypatch.setenv("SWIN2SR_MAX_BODY_BYTES", "1234")
    [made] = middleware()
    assert made.kwargs["max_body_bytes"] == 1234

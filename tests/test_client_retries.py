"""Retries of the client: after which answers, how long it waits, and which error it raises at the end."""

from __future__ import annotations

import io
import json

import httpx
import pytest

from app import errors
from app.client import Client, Progress, ServerUnreachable
from tests.scripted_client import IMAGE, problem, scripted


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when the client sleeps; it remembers for how long."""

    class Clock:
        now, pauses = 1000.0, []

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.pauses.append(seconds)
            self.now += seconds

    clock = Clock()
    clock.pauses = []
    monkeypatch.setattr("app.client.retries.time", clock)
    monkeypatch.setattr("app.client.clients.time", clock)
    monkeypatch.setattr("app.client.retries.random.uniform", lambda low, _high: low)
    return clock


def test_it_waits_as_the_server_says(clock):
    """429 and 503 are tried again after ``Retry-After``, the whole image each time, with the time that is left."""
    client, requests = scripted(
        problem(errors.QueueFull("", retry_after=7)),
        problem(errors.Draining("", retry_after=2)),
        httpx.Response(200, headers=IMAGE, content=b"pixels"),
    )
    with client:
        assert client.upscale(b"original", timeout=100).content == b"pixels"
    assert clock.pauses == [7, 2]
    assert [body for _, body in requests] == [b"original"] * 3
    assert [request.url.params["timeout_ms"] for request, _ in requests] == ["100000", "93000", "91000"]


def test_what_will_not_change_is_not_tried_again(clock):
    """A refusal of the request, and a bug of the server's."""
    for error in (errors.InvalidImage(""), errors.InternalError(""), errors.DeadlineExceeded("")):
        client, requests = scripted(problem(error))
        with client, pytest.raises(type(error)):
            client.upscale(b"x")
        assert len(requests) == 1
    assert clock.pauses == []


def test_a_full_queue_is_waited_for_until_the_deadline(clock):
    """Then its own error is raised, without waiting in vain."""
    client, requests = scripted(problem(errors.QueueFull("", retry_after=40)))
    with client, pytest.raises(errors.QueueFull):
        client.upscale(b"x", timeout=100)
    assert clock.pauses == [40, 40]
    assert len(requests) == 3


def test_a_lost_connection_is_tried_again(clock):
    """The pauses become longer, up to 4 s; a server that has answered before is waited for during ``retry_window``."""
    client, requests = scripted(
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.Response(200, headers=IMAGE, content=b"pixels"),
        httpx.ConnectError("refused"),
    )
    with client:
        assert client.upscale(b"x").content == b"pixels"
        assert clock.pauses == [0.25, 0.5]
        clock.pauses.clear()
        with pytest.raises(
            ServerUnreachable, match=r"Lost the connection to http://test.*retry_window\): refused"
        ) as lost:
            client.upscale(b"x")
    assert 50 < sum(clock.pauses) <= 60
    assert max(clock.pauses) == 4
    assert lost.value.request_id == requests[-1][0].headers["x-request-id"]


@pytest.mark.parametrize("call", [lambda client: client.upscale(b"x"), lambda client: client.variants()])
def test_a_server_that_never_answered_is_not_waited_for_long(clock, call):
    """Within ``connect_timeout``, with the URL and what to check, as an error of the tree and a ConnectionError."""
    client, _ = scripted(httpx.ConnectError("refused"))
    with client, pytest.raises(errors.ServerUnreachable, match=r"http://test within 5 s \(connect_timeout\): refused"):
        call(client)
    assert 2 < sum(clock.pauses) <= 5
    assert issubclass(errors.ServerUnreachable, ConnectionError)
    assert issubclass(errors.ServerUnreachable, errors.ServiceError)
    assert errors.ServerUnreachable is ServerUnreachable
    client, _ = scripted(httpx.ConnectError("refused"), connect_timeout=100)
    clock.pauses.clear()
    with client, pytest.raises(errors.ServerUnreachable, match="within 100 s"):
        call(client)
    assert 90 < sum(clock.pauses) <= 100


def test_a_connection_that_hangs_counts_from_its_start(clock):
    """A first attempt that takes the whole ``connect_timeout`` is the last one."""

    def hang(_request):
        clock.now += 5
        raise httpx.ConnectTimeout("timed out")

    with (
        Client("http://test", transport=httpx.MockTransport(hang)) as client,
        pytest.raises(ServerUnreachable, match="timed out"),
    ):
        client.upscale(b"x")
    assert clock.pauses == []


def test_the_list_of_variants_is_waited_for_like_an_image(clock):
    """Also through a restart of a server that has answered before."""
    listed = httpx.Response(200, json={"default": "x2", "variants": []})
    client, _ = scripted(listed, httpx.ConnectError("refused"), problem(errors.Draining("", retry_after=3)), listed)
    with client:
        assert client.variants().default == client.variants().default == "x2"
    assert clock.pauses == [0.25, 3]
    client, _ = scripted(httpx.ReadTimeout("silent"))
    with client, pytest.raises(ServerUnreachable, match="silent"):
        client.variants()


def test_timeout_ms_shortens_the_timeout(clock):
    """The smaller of the two is the deadline, which the server gets and which ends the waiting."""
    client, requests = scripted(problem(errors.QueueFull("", retry_after=2)))
    with client:
        with pytest.raises(errors.QueueFull):
            client.upscale(b"x", timeout_ms=5000)
        assert clock.pauses == [2, 2]
        with pytest.raises(errors.QueueFull):
            client.upscale(b"x", timeout=3, timeout_ms=5000)
        client, late = scripted(httpx.ReadTimeout("late"))
        with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.5 s.*timeout_ms") as exceeded:
            client.upscale(b"x", timeout_ms=500)
    assert [request.url.params["timeout_ms"] for request, _ in requests] == ["5000", "3000", "1000", "3000", "1000"]
    assert exceeded.value.request_id == late[0][0].headers["x-request-id"]


def test_a_proxy_without_a_server_is_a_server_that_is_away(clock):
    """An HTML page instead of a problem document is not taken as an answer."""
    html = {"Content-Type": "text/html"}
    client, _ = scripted(
        httpx.Response(502, headers=html, content=b"<html>"),
        httpx.Response(200, headers=IMAGE, content=b"pixels"),
    )
    with client:
        assert client.upscale(b"x").content == b"pixels"
    assert clock.pauses == [5]
    client, _ = scripted(httpx.Response(404, headers=html, content=b"<html>"))
    with client, pytest.raises(errors.RequestError, match="404"):
        client.upscale(b"x")
    client, _ = scripted(httpx.Response(200, headers=html, content=b"<html>"))
    with client, pytest.raises(errors.ServiceError, match="200"):
        client.upscale(b"x")


def test_an_answer_goes_into_a_file_and_starts_over_after_a_break(clock):
    """Nothing of the broken answer is left, and what stood before it in the file stays."""

    def breaks():
        def stream():
            yield b"broken answer, longer than the good one"
            raise httpx.ReadError("reset")

        return httpx.Response(200, headers=IMAGE, content=stream())

    client, _ = scripted(breaks, httpx.Response(200, headers=IMAGE, content=b"pixels"))
    file = io.BytesIO()
    file.write(b"mine:")
    with client:
        answer = client.upscale(b"x", into=file)
    assert file.getvalue() == b"mine:pixels"
    assert (answer.content, answer.variant) == (b"", "small-x2")
    assert clock.pauses == [0.25]


def mixed(*parts, end=b"--"):
    """A ``multipart/mixed`` answer of (headers, content) pairs."""
    body = b"--B"
    for headers, content in parts:
        body += b"\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        body += b"\r\n" + content + b"\r\n--B"
    headers = {"Content-Type": "multipart/mixed; boundary=B", "X-Request-Id": "one"}
    return httpx.Response(200, headers=headers, content=body + end)


JSON = ({"Content-Type": "application/json"}, b'{"state":"running","tile":1,"tiles":2,"more":1}')


def test_a_streamed_answer_that_ends_early_is_tried_again(clock):
    """The progress of both attempts is reported."""
    steps = []
    client, _ = scripted(mixed(JSON, end=b""), mixed(JSON, (IMAGE, b"pixels")))
    with client:
        answer = client.upscale(b"x", on_progress=steps.append)
    assert (answer.content, answer.request_id, answer.variant) == (b"pixels", "one", "small-x2")
    assert steps == [Progress("running", tile=1, tiles=2)] * 2
    assert clock.pauses == [0.25]


def test_a_streamed_problem_is_raised_and_heeded(clock):
    """Also with its ``Retry-After``, which is a header of its part."""
    full = errors.OutOfMemory("", retry_after=3)
    document = {"Content-Type": "application/problem+json", "Retry-After": "3"}
    client, _ = scripted(
        mixed(JSON, (document, json.dumps(full.problem()).encode())),
        mixed(JSON, (document, json.dumps(errors.InvalidImage("broken").problem()).encode())),
    )
    with client, pytest.raises(errors.InvalidImage, match="broken"):
        client.upscale(b"x", on_progress=lambda _step: None)
    assert clock.pauses == [3]

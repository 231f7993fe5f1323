"""Responses with progress: the same requests, errors and cancellation as for plain responses."""

from __future__ import annotations

import asyncio
import email
import json

import numpy as np
import pytest
from starlette.responses import Response

from app.batching.jobs import JobProgress
from app.routes.progress import REPEAT_SECONDS, ProgressResponse
from tests.connections import Connection
from tests.scripted import PATIENCE, ScriptedUpscaler
from tests.service import enlarged, noise, pixels_of, png, running, scripted_app

PIXELS = noise(200, 300)
ASKING = {"accept": "multipart/mixed", "content-type": "image/png"}


@pytest.fixture
def upscaler():
    return ScriptedUpscaler()


@pytest.fixture
def app(tmp_path, upscaler):
    return scripted_app(tmp_path, {"max_queue_requests": 2}, lightweight_x2=upscaler)


def ask(app, body=None, headers=ASKING, **request):
    """The answer to one request."""

    async def exchange():
        async with running(app) as client:
            content = png(PIXELS) if body is None else body
            return await client.post("/v1/upscale", content=content, headers=headers, **request)

    return asyncio.run(exchange())


def parts_of(response):
    """The parts of an answer, read by a parser that is not ours; each must be as long as it says."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + response.content).get_payload()
    for part in parts:
        assert len(part.get_payload(decode=True)) == int(part["content-length"])
    return parts


def progress_of(parts):
    return [json.loads(part.get_payload()) for part in parts if part.get_content_type() == "application/json"]


def test_progress_comes_before_the_image(app):
    """Queued with a position, running with tile n of m, then the image with the headers of a plain answer."""
    response = ask(app)
    assert response.status_code == 200
    parts = parts_of(response)
    progress = progress_of(parts)
    assert progress[0] == {"state": "queued", "position": 1, "tile": 0, "tiles": 6}
    assert {each["state"] for each in progress[1:]} == {"running"}
    tiles = [each["tile"] for each in progress]
    assert tiles == sorted(tiles)
    assert {each["tiles"] for each in progress} == {6}
    image = parts[-1]
    assert image.get_content_type() == "image/png"
    np.testing.assert_array_equal(pixels_of(image.get_payload(decode=True)), enlarged(PIXELS))
    assert image["X-Swin2SR-Tiles"] == "6"
    assert image["X-Swin2SR-Precision"] == "exact"
    assert image["X-Swin2SR-Variant"] == "lightweight-x2"
    assert "forward;dur=" in image["Server-Timing"]
    assert 'filename="image-lightweight-x2.png"' in image["Content-Disposition"]
    assert len(parts) == len(progress) + 1


@pytest.mark.parametrize("accept", ["*/*", "image/png", "multipart/form-data", ""])
def test_who_does_not_ask_by_name_gets_the_image_alone(app, accept):
    """Browsers and curl accept anything, and mean an image."""
    response = ask(app, headers={**ASKING, "accept": accept})
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "accept", ["multipart/mixed", "image/png;q=0.5, Multipart/Mixed;q=0.9", "multipart/mixed, */*"]
)
def test_who_asks_by_name_gets_progress(app, accept):
    """Whatever else is accepted too."""
    assert ask(app, headers={**ASKING, "accept": accept}).headers["content-type"].startswith("multipart/mixed; bound")


@pytest.mark.parametrize(("body", "query", "status"), [(b"no image", {}, 415), (None, {"quality": 0}, 422)])
def test_what_is_refused_before_it_waits_has_its_status(app, body, query, status):
    """A bad file and a bad option are refused as in plain responses, without a multipart body."""
    response = ask(app, body, params=query)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_what_fails_later_ends_with_a_problem_document(app, upscaler):
    """With the status that a plain answer would have had; the log and the metrics say the same."""

    def fail(_tile):
        if upscaler.calls:  # the warm-up is over
            raise ArithmeticError("secret")

    upscaler.fault = fail
    response = ask(app)
    last = parts_of(response)[-1]
    assert last.get_content_type() == "application/problem+json"
    problem = json.loads(last.get_payload())
    assert (problem["status"], problem["code"]) == (500, "internal_error")
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    counted = app.state.service.metrics.exposition().decode()
    assert 'outcome="internal_error"' in counted


def test_a_bug_after_the_beginning_ends_with_a_problem_document_too(app, monkeypatch):
    """The response has begun, and still ends with a complete part."""
    monkeypatch.setattr("app.imaging.encoding.encode", lambda *_args: (_ for _ in ()).throw(KeyError("secret")))
    response = ask(app)
    assert response.content.endswith(b"--\r\n")
    problem = json.loads(parts_of(response)[-1].get_payload())
    assert problem["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_deadline_ends_the_stream(app, upscaler):
    """While the network still computes."""

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            upscaler.gate.close()
            request = client.post("/v1/upscale", content=png(PIXELS), headers=ASKING, params={"timeout_ms": 300})
            response = await request
            upscaler.gate.open()
            return response

    problem = json.loads(parts_of(asyncio.run(scenario()))[-1].get_payload())
    assert problem["code"] == "deadline_exceeded"


def test_the_parts_arrive_as_things_happen(app, upscaler):
    """The place in the queue is sent while another image is computed, and each part is sent as a whole."""

    async def scenario():
        async with running(app):
            await app.state.service.boot(lambda: None)
            upscaler.gate.close()
            first, second = Connection(png(PIXELS), ASKING), Connection(png(PIXELS), ASKING)
            one = asyncio.create_task(app(first.scope, first.receive, first.send))
            await asyncio.to_thread(upscaler.gate.wait_until_reached)
            other = asyncio.create_task(app(second.scope, second.receive, second.send))
            await second.wait_for(b'"state":"queued"')
            early = bytes(second.body)
            upscaler.gate.open()
            await asyncio.wait_for(asyncio.gather(one, other), PATIENCE)
            return early, second

    early, second = asyncio.run(scenario())
    boundary = dict(second.headers)[b"content-type"].partition(b"boundary=")[2]
    assert early.endswith(b"--" + boundary)
    assert b'"position":2' in early  # behind the other image's tiles
    assert b"image/png" not in early
    assert second.body.endswith(b"--" + boundary + b"--\r\n")


def test_leaving_a_stream_stops_its_work(app, upscaler):
    """Though the answer has begun: what waits is dropped, and the outcome is counted."""

    async def scenario():
        async with running(app):
            service = app.state.service
            await service.boot(lambda: None)
            upscaler.gate.close()
            connection = Connection(png(PIXELS), ASKING)
            request = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
            await connection.wait_for(b'"state":"running"')
            connection.leave()
            await asyncio.wait_for(request, PATIENCE)
            waiting = service.batcher.status().waiting_cost
            upscaler.gate.open()
            return waiting

    assert asyncio.run(scenario()) == 0
    assert len(upscaler.calls) == 1
    counted = app.state.service.metrics.exposition().decode()
    assert 'swin2sr_requests_total{key="",outcome="cancelled",variant="lightweight-x2"} 1.0' in counted
    assert "swin2sr_inflight_requests 0.0" in counted


def test_a_full_queue_is_429_as_ever(app, upscaler):
    """Before anything is streamed, with Retry-After."""

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            upscaler.gate.close()
            connections = [Connection(png(PIXELS), ASKING) for _ in range(3)]
            tasks = []
            for connection in connections[:2]:
                tasks.append(asyncio.create_task(app(connection.scope, connection.receive, connection.send)))
                await connection.wait_for(b'"state":"queued"')
            refused = await client.post("/v1/upscale", content=png(PIXELS), headers=ASKING)
            upscaler.gate.open()
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
            return refused

    refused = asyncio.run(scenario())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1


def test_the_last_part_is_repeated_in_silence():
    """A stream is never silent for long: the latest progress is repeated, and the result is sent once."""
    connection = Connection(b"", ASKING)

    async def exchange():
        over = asyncio.Event()

        async def work(on_progress):
            on_progress(JobProgress("running", position=0, done=1, total=3))
            await over.wait()
            return Response(b"the image", media_type="image/png")

        connection.scope["headers"] = []
        task = asyncio.create_task(
            ProgressResponse(work, repeat_after=0.01)(connection.scope, connection.receive, connection.send)
        )
        for _ in range(4):
            await connection.wait_for(b'{"state":"running","tile":1,"tiles":3}')
            connection.body.clear()
        over.set()
        await task

    asyncio.run(exchange())
    assert connection.body.count(b"the image") == 1
    assert connection.body.endswith(b"--\r\n")
    assert REPEAT_SECONDS < 10

"""The application as a whole: complete, independent, and the same to every stranger."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading

import pytest

from app.logs import JsonFormatter, TextFormatter
from app.main import create_app
from app.settings import Settings
from tests.scripted import PATIENCE, ScriptedUpscaler, loading, model_dir
from tests.service import noise, png, running, scripted_app


@pytest.fixture
def ask(tmp_path):
    """Sends one request to a scripted service."""

    def send(method, path, **request):
        app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

        async def exchange():
            async with running(app) as client:
                return await client.request(method, path, **request)

        return asyncio.run(exchange())

    return send


def test_two_applications_are_independent(tmp_path):
    """Each has its own queue, variants and metrics, so a process can hold several."""
    first = scripted_app(tmp_path / "a", lightweight_x2=ScriptedUpscaler())
    second = scripted_app(tmp_path / "b", small_x4=ScriptedUpscaler(scale=4))

    async def scenario():
        async with running(first) as one, running(second) as other:
            answers = [await client.post("/v1/upscale", files={"file": png(noise(8, 8))}) for client in (one, other)]
            return answers, (await other.get("/metrics")).text

    answers, metrics = asyncio.run(scenario())
    assert [answer.headers["x-swin2sr-variant"] for answer in answers] == ["lightweight-x2", "small-x4"]
    assert 'swin2sr_requests_total{key="",outcome="ok",variant="small-x4"} 1.0' in metrics
    assert 'variant="lightweight-x2"} 1.0' not in metrics


def test_the_end_of_the_lifespan_ends_every_thread(tmp_path):
    """What was started is stopped. Threads of other tests of the process do not count."""
    before = set(threading.enumerate())
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

    async def scenario():
        async with running(app) as client:
            await client.post("/v1/upscale", files={"file": png(noise(8, 8))})

    asyncio.run(scenario())
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("swin2sr")]
    for thread in left:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in left)
    assert not app.state.service.batcher.alive


def test_images_and_probes_need_no_further_thread(tmp_path, monkeypatch):
    """At a container's limit of processes: what was started at the beginning is enough."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            with monkeypatch.context() as limited:
                limited.setattr(threading.Thread, "start", refuse)
                image = await client.post("/v1/upscale", files={"file": png(noise(8, 8))})
                probes = [await client.get(f"/health/{name}") for name in ("live", "ready")]
            return [image, *probes]

    assert [answer.status_code for answer in asyncio.run(scenario())] == [200, 200, 200]


@pytest.mark.parametrize("early", [False, True])
def test_a_start_that_fails_is_logged_and_fatal(tmp_path, caplog, early):
    """Unless it was the end of the application that cut it short."""
    told = threading.Event()

    def fail():
        raise ArithmeticError("the last step")

    upscaler = ScriptedUpscaler(skip=0)
    upscaler.gate.close()
    chosen = {"variants": "small-x4", "model_dir": model_dir(tmp_path, "small-x4"), "device": "cpu"}
    app = create_app(Settings(**chosen), load=loading(small_x4=upscaler), on_ready=fail, on_fatal=told.set)

    async def scenario():
        async with running(app):
            await asyncio.to_thread(upscaler.gate.wait_until_reached)
            if not early:
                upscaler.gate.open()
                assert await asyncio.to_thread(told.wait, PATIENCE)
        upscaler.gate.open()

    asyncio.run(scenario())
    assert told.is_set() is not early
    assert ("the last step" in caplog.text) is not early


def test_a_variant_that_is_not_there_stops_the_boot():
    """The sentence names it."""
    with pytest.raises(ValueError, match="no-such-thing"):
        create_app(Settings(variants="no-such-thing", device="cpu"))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/upscale", 405, "method_not_allowed"),
        ("POST", "/v1/variants", 405, "method_not_allowed"),
    ],
)
def test_the_frameworks_own_refusals_are_problem_documents(ask, method, path, status, code):
    """A client needs one way to read an error."""
    response = ask(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert response.json()["request_id"] == response.headers["x-request-id"]
    if status == 405:
        assert response.headers["allow"]


def test_a_request_id_is_taken_over_or_made(ask):
    """The caller's id is returned, so that logs on both sides can be joined."""
    assert ask("GET", "/health/live", headers={"x-request-id": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = ask("GET", "/health/live").headers["x-request-id"]
    assert len(made) == 32


@pytest.mark.parametrize("sent", ["x" * 129, "two words", "a\tb", "ü", "<script>", ""])
def test_a_request_id_that_could_hurt_is_replaced(ask, sent):
    """Length and letters are limited."""
    answer = ask("GET", "/health/live", headers={"x-request-id": sent.encode()}).headers["x-request-id"]
    assert answer != sent
    assert answer.isalnum()


def test_the_page_and_the_documents_are_there(ask):
    """For people, and for machines that generate clients."""
    assert "<title>Swin2SR</title>" in ask("GET", "/").text
    assert ask("GET", "/docs").status_code == 200
    document = ask("GET", "/openapi.json").json()
    operation = document["paths"]["/v1/upscale"]["post"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "variant",
        "width",
        "height",
        "factor",
        "ensemble",
        "format",
        "quality",
        "metadata",
        "tile",
        "timeout_ms",
        *{"enlarge", "fit", "max_bytes", "megapixels", "restore", "strength"},
    }
    assert set(operation["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
    }
    assert {"200", "400", "404", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])


def test_each_request_is_one_line_in_the_log(ask, caplog):
    """With its id, and what was done; nothing of the image."""
    caplog.set_level(logging.INFO, "app.access")
    ask("POST", "/v1/upscale", files={"file": ("secret-name.png", png(noise(8, 8)))}, headers={"x-request-id": "id-7"})
    (record,) = [record for record in caplog.records if record.name == "app.access"]
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["status"], line["request_id"]) == ("POST /v1/upscale", 200, "id-7")
    assert (line["variant"], line["pixels"], line["tiles"], line["outcome"]) == ("lightweight-x2", 64, 1, "ok")
    assert {"queue_ms", "forward_ms", "decode_ms", "encode_ms", "seconds"} <= set(line)
    assert "secret-name" not in json.dumps(line)
    text = TextFormatter().format(record)
    assert "POST /v1/upscale status=200 request_id=id-7" in text


def test_probes_are_logged_only_if_they_fail(ask, caplog):
    """What is asked every few seconds and answered well is not in the log; a wrong path is."""
    caplog.set_level(logging.INFO, "app.access")
    for path in ("/health/live", "/v2/health/live", "/metrics", "/health/nonsense"):
        ask("GET", path)
    assert [record.getMessage() for record in caplog.records if record.name == "app.access"] == ["GET /health/nonsense"]


def test_a_path_cannot_forge_a_log_line(ask, caplog):
    """Line breaks in an address stay encoded."""
    caplog.set_level(logging.INFO, "app.access")
    ask("GET", "/a%0aERROR%20forged")
    (record,) = [record for record in caplog.records if record.name == "app.access"]
    assert "\n" not in TextFormatter().format(record)


def test_a_long_path_or_method_is_shortened(ask, caplog):
    """In the log and in the response, because a request may have 64 KiB of it."""
    caplog.set_level(logging.INFO, "app.access")
    answers = [ask("GET", "/" + "x" * 60_000), ask("M" * 60_000, "/health/live")]
    assert [answer.status_code for answer in answers] == [404, 405]
    assert all(len(answer.content) < 1000 for answer in answers)
    assert all(len(record.getMessage()) < 2000 for record in caplog.records if record.name == "app.access")


def test_a_log_line_with_an_exception_has_its_traceback():
    """In text below the line, in JSON within it."""
    try:
        {}["lost"]
    except KeyError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "went wrong", (), sys.exc_info())
    assert "KeyError: 'lost'" in TextFormatter().format(record)
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["message"]) == ("error", "went wrong")
    assert "KeyError: 'lost'" in line["exception"]

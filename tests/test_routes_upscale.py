"""``POST /v1/upscale``: what it takes, what it gives, and the documented answer to everything else."""

from __future__ import annotations

import asyncio
import io
import re
import zipfile

import numpy as np
import pytest

from tests.connections import Connection
from tests.scripted import PATIENCE, ScriptedUpscaler
from tests.service import enlarged, noise, pixels_of, png, png_header, running, scripted_app

PIXELS = noise(20, 30)
PHOTO = png(PIXELS)
BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture
def ask(tmp_path):
    """Sends one request to a service with the variants ``lightweight-x2`` and ``small-x4``, both scripted."""

    def send(method="POST", path="/v1/upscale", *, settings=None, **request):
        app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler(), small_x4=ScriptedUpscaler(scale=4))

        async def exchange():
            async with running(app) as client:
                return await client.request(method, path, **request)

        return asyncio.run(exchange())

    return send


def problem(response, status, code):
    """The problem document of a response, after checking what all of them share."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["title"]
    assert document["detail"]
    assert document["type"].endswith(code)
    assert document["request_id"] == response.headers["x-request-id"]
    return document


def test_a_form_gives_the_upscaled_image(ask):
    """With a name made from the upload's and the variant, and what was done in headers."""
    response = ask(files={"file": ("holiday.jpg", PHOTO)})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels_of(response.content), enlarged(PIXELS))
    assert 'filename="holiday-lightweight-x2.png"' in response.headers["content-disposition"]
    assert response.headers["x-swin2sr-variant"] == "lightweight-x2"
    assert response.headers["x-swin2sr-scale"] == "2"
    assert response.headers["x-swin2sr-tiles"] == "1"
    assert re.fullmatch(
        r"decode;dur=[\d.]+, queue;dur=[\d.]+, forward;dur=[\d.]+, encode;dur=[\d.]+",
        response.headers["server-timing"],
    )


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/octet-stream", "application/octet-stream"),
        ("Application/Octet-Stream;q=0.9", "application/octet-stream"),
        ("application/octet-stream, image/*", "image/png"),
        ("*/*", "image/png"),
    ],
)
def test_who_accepts_bytes_only_gets_them_under_that_name(ask, accept, media_type):
    """The image is the same; its format is in the file name."""
    response = ask(files={"file": PHOTO}, headers={"accept": accept})
    assert response.headers["content-type"] == media_type
    np.testing.assert_array_equal(pixels_of(response.content), enlarged(PIXELS))
    assert 'filename="upload-lightweight-x2.png"' in response.headers["content-disposition"]


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/octet-stream"])
def test_the_image_itself_may_be_the_body(ask, content_type):
    """What it is, its bytes say; the type is not asked."""
    response = ask(content=PHOTO, headers={"content-type": content_type})
    assert response.status_code == 200
    np.testing.assert_array_equal(pixels_of(response.content), enlarged(PIXELS))
    assert 'filename="image-lightweight-x2.png"' in response.headers["content-disposition"]


def test_a_variant_is_chosen_by_name_or_alias(ask):
    """In any case of letters; the answer says which one it was."""
    for variant, name in (("x2", "lightweight-x2"), ("small-x4", "small-x4"), ("X4", "small-x4")):
        response = ask(content=PHOTO, headers={"content-type": "image/png"}, params={"variant": variant})
        assert response.headers["x-swin2sr-variant"] == name


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd-lightweight-x2.png"),
        ("c:\\photos\\cat.png", "cat-lightweight-x2.png"),
        ('a"b;c.png', "a_b_c-lightweight-x2.png"),
        ("Füße.png", "F__e-lightweight-x2.png"),
        ("", "image-lightweight-x2.png"),
    ],
)
def test_a_name_of_any_kind_makes_a_harmless_header(ask, sent, shown):
    """No folders, no quotes, no letters that a header cannot hold; the true name in the encoded form."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n--x--\r\n' % (
        sent.replace('"', "%22").encode(),
        PHOTO,
    )
    header = ask(content=body, headers=BOUNDARY).headers["content-disposition"]
    expected = shown.replace("a_b_c", "a_22b_c")
    assert f'filename="{expected}"' in header
    assert header.isascii()


def test_options_are_used(ask):
    """Format, quality and size of the answer."""
    response = ask(files={"file": PHOTO}, params={"format": "jpeg", "quality": 50, "width": 45, "ensemble": "true"})
    assert response.headers["content-type"] == "image/jpeg"
    assert pixels_of(response.content).shape == (30, 45, 3)


def test_losses_of_the_output_format_are_reported(ask):
    """Transparency on white, for a JPEG."""
    pixels = np.concatenate([PIXELS, noise(20, 30, 1)], axis=2)
    response = ask(files={"file": png(pixels)}, params={"format": "jpeg"})
    assert response.status_code == 200
    assert response.headers["x-swin2sr-notice"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"hello, this is no image", 415, "unsupported_format"),
        (b"%PDF-1.7 neither is this", 415, "unsupported_format"),
        (PHOTO[:200], 400, "invalid_image"),
        (PHOTO[:30], 400, "invalid_image"),
        (b"\x89PNG\r\n\x1a\n", 400, "invalid_image"),
        (png_header(20, 30), 400, "invalid_image"),
        (b"", 400, "invalid_upload"),
        (png_header(40_000, 25_000), 413, "image_too_large"),
    ],
)
def test_a_bad_file_gets_its_documented_answer(ask, body, status, code):
    """As a form and as a body; the header alone decides where it can."""
    problem(ask(files={"file": ("a.png", body)}), status, code)
    problem(ask(content=body, headers={"content-type": "image/png"}), status, code)


def test_a_billion_pixels_are_refused_with_the_limit(ask):
    """From the header of a file of a few bytes."""
    document = problem(ask(files={"file": png_header(40_000, 25_000)}), 413, "image_too_large")
    assert (document["limit"], document["actual"]) == (1_000_000, 1_000_000_000)


PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%s\r\n' % PHOTO


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"--x--\r\n", BOUNDARY),
        (PART.replace(b'"file"', b'"image"') + b"--x--\r\n", BOUNDARY),
        (PART + PART + b"--x--\r\n", BOUNDARY),
        (PART, BOUNDARY),
        (PART[:100], BOUNDARY),
        (b"not multipart at all", BOUNDARY),
        (b"", BOUNDARY),
        (PART.replace(b"Content-Disposition", b"Content Disposition") + b"--x--\r\n", BOUNDARY),
        (PART + b"--x--\r\n", {"content-type": "multipart/form-data"}),
        (PART + b"--x--\r\n", {"content-type": "multipart/form-data; boundary=" + "y" * 300}),
    ],
)
def test_a_form_without_exactly_one_file_is_refused(ask, body, headers):
    """No part, another part, two parts, an option as a part, cut off, malformed, without a boundary."""
    problem(ask(content=body, headers=headers), 400, "invalid_upload")


@pytest.mark.parametrize("content_type", ["text/plain", "application/json"])
def test_a_body_of_another_type_is_refused(ask, content_type):
    """With what to send instead."""
    document = problem(ask(content=PHOTO, headers={"content-type": content_type}), 415, "unsupported_format")
    assert "multipart/form-data" in document["detail"]


def test_an_unknown_variant_is_refused_with_those_there_are(ask):
    """404, and a name that was never shown before is shown in a bounded length."""
    document = problem(ask(files={"file": PHOTO}, params={"variant": "x3"}), 404, "unknown_variant")
    assert {"x2", "lightweight-x2"} <= set(document["available"])


def test_a_variant_that_is_not_present_names_the_command(ask):
    """503, when trying again makes sense, and how to get it."""
    response = ask(files={"file": PHOTO}, params={"variant": "compressed-x4"})
    assert "swin2sr fetch compressed-x4" in problem(response, 503, "not_ready")["detail"]
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "params",
    [
        {"quality": "0"},
        {"quality": "101"},
        {"quality": "best"},
        {"format": "gif"},
        {"width": "0"},
        {"height": "-3"},
        {"factor": "0"},
        {"factor": "nan"},
        {"factor": "inf"},
        {"factor": "9"},
        {"width": "100000"},
        {"factor": "1", "width": "10"},
        {"ensemble": "perhaps"},
        {"metadata": "drop"},
        {"tile": "63"},
        {"tile": "100000"},
        {"tile": "big"},
        {"timeout_ms": "0"},
        {"variant": "x" * 101},
        {"varient": "x2"},
    ],
)
def test_an_impossible_option_is_refused_by_name(ask, params):
    """Nothing is ignored or corrected in silence, a misspelt name neither."""
    document = problem(ask(files={"file": PHOTO}, params=params), 422, "invalid_option")
    assert any(name in " ".join(document["errors"]) for name in params)


def test_an_unknown_option_is_refused_with_the_valid_ones(ask):
    """So that a slip of the pen is seen."""
    document = problem(ask(files={"file": PHOTO}, params={"varient": "x2"}), 422, "invalid_option")
    assert document["errors"][0].startswith("varient: unknown option; valid options: variant, ")


def test_too_large_a_body_is_refused_before_it_is_read(ask):
    """By its Content-Length."""
    settings = {"max_body_bytes": 1000}
    document = problem(
        ask(settings=settings, content=PHOTO, headers={"content-type": "image/png"}), 413, "body_too_large"
    )
    assert (document["limit"], document["actual"]) == (1000, len(PHOTO))


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x"])
def test_too_large_a_body_without_a_length_is_refused_while_it_is_read(ask, content_type):
    """At the first chunk over the limit; the rest is not asked for."""
    sent = []

    async def stream():
        for chunk in (PART[:900], bytes(100), bytes(100), bytes(100)):
            sent.append(chunk)
            yield chunk

    response = ask(settings={"max_body_bytes": 1000}, content=stream(), headers={"content-type": content_type})
    assert problem(response, 413, "body_too_large")["limit"] == 1000
    assert len(sent) == 3


def test_a_body_that_does_not_arrive_ends_the_request(ask):
    """408 after the time that it may take."""

    async def stream():
        yield PHOTO[:100]
        await asyncio.Event().wait()

    response = ask(settings={"upload_timeout_ms": 50}, content=stream(), headers={"content-type": "image/png"})
    problem(response, 408, "upload_too_slow")


def test_a_deadline_that_passes_while_the_body_comes_is_answered_then(ask):
    """504, and not when the body is complete or the time for it is over."""

    async def stream():
        yield PHOTO[:100]
        await asyncio.Event().wait()

    options = {"headers": {"content-type": "image/png"}, "params": {"timeout_ms": 50}}
    patient = {"upload_timeout_ms": 600_000}
    problem(ask(settings=patient, content=stream(), **options), 504, "deadline_exceeded")


def test_a_deadline_is_answered(tmp_path):
    """504 when the caller's own time is up."""
    upscaler = ScriptedUpscaler()

    async def run(app):
        upscaler.gate.close()
        async with running(app) as client:
            response = await client.post("/v1/upscale", params={"timeout_ms": 300}, files={"file": PHOTO})
            upscaler.gate.open()
            return response

    problem(asyncio.run(run(scripted_app(tmp_path, lightweight_x2=upscaler))), 504, "deadline_exceeded")


def test_an_upload_that_is_an_archive_is_no_image(ask):
    """Only the listed formats are opened."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", PHOTO)
    problem(ask(files={"file": file.getvalue()}), 415, "unsupported_format")


def test_a_bug_gives_nothing_away(ask, monkeypatch):
    """500 with a sentence, the request id, and none of the exception's text."""
    monkeypatch.setattr("app.pipeline.plan_work", lambda *_args: (_ for _ in ()).throw(KeyError("secret")))
    response = ask(files={"file": PHOTO}, headers={"x-request-id": "mine"})
    assert problem(response, 500, "internal_error")["request_id"] == "mine"
    assert "secret" not in response.text


def test_a_client_that_leaves_stops_its_work(tmp_path):
    """With the whole stack of middleware: what waits is dropped, and the outcome is counted."""
    upscaler = ScriptedUpscaler()
    app = scripted_app(tmp_path, lightweight_x2=upscaler)
    service = app.state.service
    connection = Connection(png(noise(200, 300)), {"content-type": "image/png"})

    async def scenario():
        async with running(app):
            await service.registry.obtain(service.registry.resolve(None))
            upscaler.gate.close()
            request = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
            await asyncio.to_thread(upscaler.gate.wait_until_reached)
            connection.leave()
            await asyncio.wait_for(request, PATIENCE)
            waiting = service.batcher.status().waiting_cost
            upscaler.gate.open()
            return waiting

    assert asyncio.run(scenario()) == 0
    assert len(upscaler.calls) == 1
    counted = service.metrics.exposition().decode()
    assert 'swin2sr_requests_total{key="",outcome="cancelled",variant="lightweight-x2"} 1.0' in counted
    assert "swin2sr_inflight_requests 0.0" in counted

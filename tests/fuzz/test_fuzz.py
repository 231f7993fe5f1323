"""Promise 17: mutated uploads and everything that the OpenAPI document allows: no 5xx, and no hang."""

from __future__ import annotations

import functools
import io
import os
import random
import warnings

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.scripted_server import ScriptedServer
from tests.service import noise

LONG = os.environ.get("PROVE") == "1"
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
DOCUMENTED = {"deadline_exceeded", "not_ready"}
"""A timeout of a millisecond, and a variant whose weights are not here."""
INTERESTING = (b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"IDAT", b"\r\n--x")


@pytest.fixture(scope="module")
def server():
    """A server that takes no time over its work, and refuses what would take its tester's."""
    limits = {"max_input_pixels": 250_000, "upload_timeout_ms": 2000, "admin_token": "wizard-wizard"}
    with ScriptedServer(**limits) as process:
        yield process


@functools.cache
def seeds():
    """Small valid files of every format."""
    found = []
    for form in FORMATS:
        for channels in (3, 4) if form in ("PNG", "WEBP", "TIFF") else (3,):
            file = io.BytesIO()
            Image.fromarray(noise(13, 17, channels)).save(file, form, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
            found.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20)).save(file, "PNG")
    return [*found, file.getvalue()]


def mutate(body, dice):
    """A file with a few bytes changed, taken out, put in, doubled, or cut off."""
    body = bytearray(body)
    for _ in range(dice.randint(1, 6)):
        at, length = dice.randrange(len(body) or 1), dice.randint(1, 16)
        match dice.randrange(6):
            case 0:
                body[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del body[at : at + length]
            case 2:
                body[at:at] = dice.randbytes(length)
            case 3:
                body[at : at + 4] = dice.choice(INTERESTING)
            case 4:
                body[at:at] = body[at : at + length * 8]
            case 5:
                del body[max(at, 1) + dice.randrange(len(body) + 1) :]
    return bytes(body)


def form(image):
    """A multipart body around an image."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + image + b"\r\n--x--\r\n"


def test_promise_17_mutated_uploads_get_a_documented_answer(server):
    """Files and forms of every format, broken in every way; 5,000 in the long form."""
    dice, files, seen = random.Random(17), seeds(), set()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for number in range(5000 if LONG else 500):
            image = dice.choice(files)
            if number % 3:
                body, kind = mutate(image, dice), "image/png"
            else:
                body, kind = mutate(form(image), dice), "multipart/form-data; boundary=x"
            response = client.post("/v1/upscale", content=body, headers={"content-type": kind})
            seen.add(response.status_code)
            assert response.status_code < 500, (number, response.text)
    assert {200, 400} <= seen <= {200, 400, 413, 415}


def test_promise_17_no_parameter_hurts(server):
    """Values of every kind under every name, alone and together."""
    dice = random.Random(17)
    names = ["variant", "width", "height", "factor", "ensemble", "format", "quality", "metadata", "tile", "timeout_ms"]
    values = [
        "",
        "0",
        "1",
        "-1",
        "1e309",
        "nan",
        "99999999999999999999",
        "é\u0000",
        "true",
        "png",
        "same",
        "x2",
        "auto",
    ]
    values += ["7", "64", "0.001", "1e-300", "jpeg", "avif", "[]", "' OR 1", "../../etc/passwd"]
    values += ["\ud7ff", "a" * 5000]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for _ in range(2000 if LONG else 200):
            chosen = dice.sample(names, dice.randint(1, 4))
            params = {name: dice.choice(values) for name in chosen}
            headers = {"content-type": "image/png", "x-request-id": "".join(dice.choices("a1-é<", k=9)).encode()}
            response = client.post("/v1/upscale", content=seeds()[0], params=params, headers=headers)
            assert response.status_code < 500 or response.json()["code"] in DOCUMENTED, (params, response.text)


def test_promise_17_schemathesis_finds_nothing(server):
    """What the OpenAPI document allows, and what it forbids, at every address: no 5xx but 503 and 504."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings

        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:

        @settings(
            max_examples=200 if LONG else 15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(operation.as_strategy())
        def probe(case):
            response = case.call(timeout=30)
            assert response.status_code < 500 or response.status_code in (503, 504), response.text
            if response.status_code >= 400:
                assert response.headers["content-type"] == ["application/problem+json"]

        probe()

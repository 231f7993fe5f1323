"""The Open Inference Protocol: its addresses, its two forms of data, its errors, and the same limits as elsewhere."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidOption, InvalidUpload
from app.http.open_inference import Answer, encode_answer, parse_call
from app.version import service_version
from tests.connections import Connection
from tests.scripted import PATIENCE, ScriptedUpscaler
from tests.server import ROOT, ServerProcess
from tests.service import enlarged, noise, pixels_of, png, running, scripted_app

PIXELS = noise(20, 30)
PHOTO = png(PIXELS)
LENGTH = "Inference-Header-Content-Length"
MODEL = "/v2/models/lightweight-x2"


def json_request(image=PHOTO, **more):
    """A request with the image in base64."""
    data = {"data": [base64.b64encode(image).decode()], "parameters": {"content_type": "base64"}}
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", **data}], **more}


def binary_request(image=PHOTO, **more):
    """The body of a request with the image as binary data, and its headers."""
    element = struct.pack("<I", len(image)) + image
    size = {"parameters": {"binary_data_size": len(element)}}
    text = json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", **size}], **more}).encode()
    return text + element, {LENGTH: str(len(text))}


@pytest.fixture
def ask(tmp_path):
    """Sends one request to a service with a scripted ``lightweight-x2``; returns the response."""

    def send(method, path, *, settings=None, **request):
        app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler())

        async def exchange():
            async with running(app) as client:
                await app.state.service.boot(lambda: None)
                response = await client.request(method, path, **request)
                response.extensions["metrics"] = app.state.service.metrics.exposition().decode()
                return response

        return asyncio.run(exchange())

    return send


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2", {"name": "swin2sr-serve", "version": service_version(), "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        (f"{MODEL}/ready", {"name": "lightweight-x2", "ready": True}),
        (f"{MODEL}/versions/1/ready", {"name": "lightweight-x2", "ready": True}),
        ("/v2/models/x2/ready", {"name": "lightweight-x2", "ready": True}),
    ],
)
def test_what_clients_ask_first(ask, path, answer):
    """The server's name and health, and a model's, also by its version and by an alias."""
    response = ask("GET", path)
    assert (response.status_code, response.json()) == (200, answer)


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_a_model_has_one_image_in_and_one_out(ask, path):
    """Both are encoded images, which the protocol calls BYTES."""
    described = ask("GET", path).json()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    assert (described["name"], described["versions"]) == ("lightweight-x2", ["1"])
    assert described["inputs"] == described["outputs"] == [tensor]


@pytest.mark.parametrize("path", [f"{MODEL}/infer", f"{MODEL}/versions/1/infer", "/v2/models/x2/infer"])
def test_json_gives_the_image_in_base64(ask, path):
    """With the id that was sent; and the request is counted."""
    response = ask("POST", path, json=json_request(id="mine"))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("lightweight-x2", "1", "mine")
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("image", "BYTES", [1])
    assert output["parameters"]["content_type"] == "base64"
    np.testing.assert_array_equal(pixels_of(base64.b64decode(output["data"][0])), enlarged(PIXELS))
    counted = [line for line in response.extensions["metrics"].splitlines() if "swin2sr_requests_total{" in line]
    assert [('variant="lightweight-x2"' in line, line.split()[-1]) for line in counted] == [(True, "1.0")]


@pytest.mark.parametrize(
    "choices",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "image", "parameters": {"binary_data": True}}]},
    ],
)
def test_binary_data_in_and_out(ask, choices):
    """The JSON's length is in a header, in both directions."""
    body, headers = binary_request(**choices)
    response = ask("POST", f"{MODEL}/infer", content=body, headers=headers)
    assert response.status_code == 200, response.text
    length = int(response.headers[LENGTH])
    [output] = json.loads(response.content[:length])["outputs"]
    element = response.content[length:]
    assert output["parameters"]["binary_data_size"] == len(element)
    assert struct.unpack_from("<I", element)[0] == len(element) - 4
    np.testing.assert_array_equal(pixels_of(element[4:]), enlarged(PIXELS))


def test_binary_data_in_and_json_out(ask):
    """Binary data is sent back only to those who ask for it."""
    body, headers = binary_request()
    response = ask("POST", f"{MODEL}/infer", content=body, headers=headers)
    assert LENGTH not in response.headers
    assert response.json()["outputs"][0]["data"]


@pytest.mark.slow
def test_options_are_parameters(ask):
    """With the names, defaults and limits of ``POST /v1/upscale``."""
    response = ask(
        "POST", f"{MODEL}/infer", json=json_request(parameters={"format": "jpeg", "quality": 50, "width": 30})
    )
    [output] = response.json()["outputs"]
    image = base64.b64decode(output["data"][0])
    assert output["parameters"]["media_type"] == "image/jpeg"
    assert image.startswith(b"\xff\xd8")
    assert pixels_of(image).shape[1] == 30


FAULTS = {
    "not JSON": b"{",
    "nothing": b"",
    "no input": b'{"inputs": []}',
    "an array": b"[]",
    "deep": b'{"inputs":' + b"[" * 100_000,
    "another name": json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES"}]}).encode(),
    "another type": json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "FP32"}]}).encode(),
    "two elements": json.dumps({"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES"}]}).encode(),
    "no data": json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}).encode(),
    "no base64": json.dumps(json_request()).replace(base64.b64encode(PHOTO).decode(), "?!").encode(),
    "not said": json.dumps(json_request()).replace("content_type", "type").encode(),
    "empty": json.dumps(json_request(b"")).encode(),
    "bytes behind": json.dumps(json_request()).encode() + b"x",
    "another output": json.dumps(json_request(outputs=[{"name": "y"}])).encode(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_body_that_is_no_request_is_400(ask, fault):
    """As ``{"error": ...}``, which says what is wrong."""
    response = ask("POST", f"{MODEL}/infer", content=FAULTS[fault])
    assert response.status_code == 400
    assert response.json().keys() == {"error"}
    assert len(response.content) < 3000


@pytest.mark.parametrize("length", ["-1", "abc", "1.5"])
def test_a_length_of_the_json_that_is_no_length_is_named(ask, length):
    """With the header and the value."""
    response = ask("POST", f"{MODEL}/infer", content=b"{}", headers={LENGTH: length})
    assert response.status_code == 422
    assert response.json()["error"].startswith(f"{LENGTH}: Input should be")
    assert f"not {length!r}" in response.json()["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"header": 10**6}, "Inference-Header-Content-Length is 1000000"),
        ({"size": 7}, "binary_data_size is 7"),
        ({"size": "many"}, "binary_data_size is many"),
        ({"length": 5}, "not one element"),
        ({"cut": 3}, "must be equal"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(change, words):
    """Lengths are compared with what arrived."""
    body, headers = binary_request()
    length = int(headers[LENGTH])
    document, element = json.loads(body[:length]), body[length:]
    if "size" in change:
        document["inputs"][0]["parameters"]["binary_data_size"] = change["size"]
    if "length" in change:
        element = struct.pack("<I", change["length"]) + element[4:]
    text = json.dumps(document).encode()
    with pytest.raises(InvalidUpload, match=words):
        parse_call(text + element[: len(element) - change.get("cut", 0)], change.get("header", len(text)), "x2")


@pytest.mark.parametrize(
    ("parameters", "word"),
    [({"qualty": 5}, "qualty"), ({"quality": 500}, "quality"), ({"variant": "x4"}, "the URL names the model")],
)
def test_a_wrong_parameter_is_422(ask, parameters, word):
    """Named, as elsewhere."""
    response = ask("POST", f"{MODEL}/infer", json=json_request(parameters=parameters))
    assert response.status_code == 422
    assert word in response.json()["error"]


def test_a_timeout_in_microseconds_is_a_deadline():
    """What Triton's clients send."""
    call = parse_call(json.dumps(json_request(parameters={"timeout": 1_500_001})).encode(), None, "x2")
    assert (call.options.timeout_ms, call.options.variant) == (1501, "x2")
    with pytest.raises(InvalidOption, match="timeout"):
        parse_call(json.dumps(json_request(parameters={"timeout": "soon"})).encode(), None, "x2")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody/ready", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", f"{MODEL}/versions/2/ready", 404),
        ("POST", f"{MODEL}/versions/2/infer", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", f"{MODEL}/infer", 405),
    ],
)
def test_errors_have_the_protocols_form(ask, method, path, status):
    """Also of the framework's own refusals."""
    response = ask(method, path, **({"json": json_request()} if method == "POST" else {}))
    assert response.status_code == status
    assert response.json().keys() == {"error"}


def test_what_is_not_ready_says_so(tmp_path):
    """503, ``ready`` is false, and the reason; a client that ignores the status reads it too."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            absent = await client.get("/v2/models/classical-x4/ready")
            app.state.service.begin_shutdown()
            return absent, await client.get("/v2/health/ready")

    for response in asyncio.run(scenario()):
        assert response.status_code == 503
        assert response.json()["ready"] is False
        assert response.json()["error"]
        assert "retry-after" in response.headers


def test_models_need_a_key_and_health_does_not(ask):
    """The same keys as everything under /v1."""
    settings = {"api_keys": "correct-horse"}
    for method, path in (("GET", MODEL), ("GET", f"{MODEL}/ready"), ("POST", f"{MODEL}/infer")):
        response = ask(method, path, settings=settings, **({"json": json_request()} if method == "POST" else {}))
        assert (response.status_code, response.json().keys()) == (401, {"error"})
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        assert ask("GET", path, settings=settings).status_code == 200
    key = {"authorization": "Bearer correct-horse"}
    assert ask("POST", f"{MODEL}/infer", settings=settings, json=json_request(), headers=key).status_code == 200


def test_bodies_are_bounded(ask):
    """By MAX_BODY_BYTES, base64 and JSON included."""
    response = ask("POST", f"{MODEL}/infer", settings={"max_body_bytes": 200}, json=json_request())
    assert response.status_code == 413
    assert "200" in response.json()["error"]


def test_a_caller_that_leaves_stops_its_work(tmp_path):
    """What waits is dropped, and the outcome is counted."""
    upscaler = ScriptedUpscaler()
    app = scripted_app(tmp_path, lightweight_x2=upscaler)
    service = app.state.service
    body = json.dumps(json_request(png(noise(200, 300)))).encode()
    connection = Connection(body, {"content-type": "application/json"})
    connection.scope.update(path=f"{MODEL}/infer", raw_path=f"{MODEL}/infer".encode())

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
    assert 'outcome="cancelled"' in counted
    assert "swin2sr_inflight_requests 0.0" in counted


@given(st.binary(min_size=1, max_size=300), st.booleans(), st.none() | st.text(max_size=20))
def test_what_is_sent_is_what_is_read(image, binary, name):
    """Any bytes and any id, in both forms, in both directions."""
    more = {} if name is None else {"id": name}
    if binary:
        body, headers = binary_request(image, parameters={"binary_data_output": True}, **more)
        call = parse_call(body, int(headers[LENGTH]), "x2")
    else:
        call = parse_call(json.dumps(json_request(image, **more)).encode(), None, "x2")
    assert (call.image, call.id, call.binary) == (image, name, binary)
    content, length = encode_answer(call, Answer("x2", "1", image, "image/png"))
    document = json.loads(content[:length])
    assert document.get("id") == name
    [output] = document["outputs"]
    sent = content[length + 4 :] if binary else base64.b64decode(output["data"][0])
    assert sent == image


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_no_body_is_more_than_refused(body, header_length):
    """Any body is parsed or refused with one of the service's errors."""
    with contextlib.suppress(InvalidUpload, InvalidOption):
        parse_call(body, header_length, "x2")


CLIENTS = ROOT / "tests" / "open_inference_clients.py"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_real_clients_find_what_they_ask_for(tmp_path):
    """Triton's and KServe's clients, in an environment of their own, ask everything and upscale an image."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    packages = ["kserve==0.21.0", "tritonclient[http]==2.73.0"]
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", *packages], check=True)
    with ServerProcess() as server:
        command = [environment / "bin" / "python", CLIENTS, server.url]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "tritonclient and kserve: all right"

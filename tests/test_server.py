"""The real server as a process of its own, with the real network."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from model.variants import embedded_path
from tests.server import ROOT, ServerProcess
from tests.service import noise, pixels_of, png

pytestmark = pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here")


@pytest.fixture(scope="module")
def server():
    """A server with the embedded x2 network."""
    with ServerProcess(variants="x2", device="cpu") as process:
        yield process


@pytest.mark.slow
def test_it_says_where_it_listens_and_what_to_try(server):
    """An address, and a command that works when it is copied."""
    assert server.url.startswith("http://127.0.0.1:")
    line = next(line for line in server.output if line.startswith("Ready."))
    assert f"curl --fail-with-body -F file=@photo.jpg '{server.url}/v1/upscale' -o upscaled.png" in line


def test_a_real_photo_is_upscaled(server, shared):
    """By the real network: reduced again, it is the photo."""
    path = shared / "testsets" / "Set5" / "LR_bicubic" / "X2" / "birdx2.png"
    with Image.open(path) as image:
        photo = image.crop((0, 0, 64, 48))
    response = httpx.post(f"{server.url}/v1/upscale", files={"file": png(np.asarray(photo))}, timeout=120)
    assert response.status_code == 200
    answer = Image.fromarray(pixels_of(response.content))
    assert answer.size == (128, 96)
    reduced = np.asarray(answer.resize(photo.size, Image.Resampling.BOX), float)
    error = np.mean((reduced - np.asarray(photo, float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 30


def test_a_bad_file_leaves_the_server_as_it_was(server):
    """A 4xx, and the next request is served."""
    assert httpx.post(f"{server.url}/v1/upscale", files={"file": b"nonsense"}).status_code == 415
    assert httpx.post(f"{server.url}/v1/upscale", files={"file": png(noise(8, 8))}, timeout=60).status_code == 200
    assert httpx.get(f"{server.url}/health/ready").status_code == 200


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted():
    """The request that runs gets its image, and the exit status is 0."""
    server = ServerProcess(variants="x2", device="cpu", threads=1)
    with server:
        host, port = server.url.removeprefix("http://").split(":")
        body = png(noise(96, 96))
        with socket.create_connection((host, int(port)), 60) as connection:
            head = (
                "POST /v1/upscale HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 100")  # the handler reads: it was accepted
            server.signal(signal.SIGTERM)
            connection.sendall(body)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert server.wait() == 0


@pytest.mark.slow
def test_an_invalid_setting_is_one_sentence():
    """On standard error, with the variable's name, and no traceback."""
    answer = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--tile-size", "70", "--max-input-pixels", "100"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode != 0
    assert "TILE_OVERLAP (64)" in answer.stderr
    assert "--tile-size (70)" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_an_address_in_use_is_one_sentence(server):
    """Not a traceback."""
    port = server.url.rsplit(":", 1)[1]
    answer = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", port, "--variants", "x2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert (
        f"swin2sr: Cannot listen on 127.0.0.1:{port}: Address already in use. Use --port to choose another"
        in answer.stderr
    )
    assert "Traceback" not in answer.stderr

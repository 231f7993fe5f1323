"""Programs that are not ours upload as their own manuals say, and get the same image."""

from __future__ import annotations

import shutil
import subprocess

import httpx
import numpy as np
import pytest

from tests.listening import listening
from tests.scripted import ScriptedUpscaler
from tests.service import enlarged, noise, pixels_of, png, scripted_app

PICTURE = noise(20, 30)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of ``POST /v1/upscale``."""
    app = scripted_app(tmp_path_factory.mktemp("service"), lightweight_x2=ScriptedUpscaler())
    with listening(app) as address:
        yield f"{address}/v1/upscale"


@pytest.fixture
def file(tmp_path):
    """An image on disk."""
    path = tmp_path / "photo.png"
    path.write_bytes(png(PICTURE))
    return path


def check(body):
    """It is the image, enlarged."""
    np.testing.assert_array_equal(pixels_of(body), enlarged(PICTURE))


@pytest.mark.parametrize(
    "how",
    [
        ["-F", "file=@{}"],
        ["-F", "file=@{};type=image/png"],
        ["-F", "file=<{}"],
        ["--data-binary", "@{}", "-H", "Content-Type: image/png"],
        ["-T", "{}", "-X", "POST", "-H", "Content-Type: image/png"],
        ["-T", "{}", "-X", "POST", "-H", "Content-Type: image/png", "-H", "Transfer-Encoding: chunked"],
        ["-F", "file=@{}", "-H", "Expect: 100-continue"],
    ],
    ids=lambda how: " ".join(how)[:40],
)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url, file, how):
    """Form, typed form, form field, body, streamed file, chunks, and a question beforehand."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *(part.format(file) for part in how), url]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout[:500] + result.stderr
    check(result.stdout)


def test_httpx(url, file):
    """A file, a tuple with name and type, bytes as content, and a stream of pieces."""
    with file.open("rb") as body:
        check(httpx.post(url, files={"file": body}).content)
    check(httpx.post(url, files={"file": ("photo.png", file.read_bytes(), "image/png")}).content)
    check(httpx.post(url, content=file.read_bytes(), headers={"Content-Type": "image/png"}).content)
    pieces = (file.read_bytes()[start : start + 100] for start in range(0, 10**4, 100))
    check(httpx.post(url, content=pieces, headers={"Content-Type": "image/png"}).content)


def test_requests(url, file):
    """A file, a tuple with name and type, and an open file as the body."""
    requests = pytest.importorskip("requests", reason="requests is not installed")
    with file.open("rb") as body:
        check(requests.post(url, files={"file": body}, timeout=60).content)
    with file.open("rb") as body:
        check(
            requests.post(url, files={"file": ("photo.png", body, "image/png", {"Expires": "0"})}, timeout=60).content
        )
    with file.open("rb") as body:
        check(requests.post(url, data=body, headers={"Content-Type": "image/png"}, timeout=60).content)

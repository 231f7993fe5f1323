"""Client and command line against a real server that is restarted under them: nothing is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading

import pytest

from app import errors
from app.client import AsyncClient
from model.variants import embedded_path
from tests.server import ROOT, SERVE, ServerProcess
from tests.service import noise, pixels_of, png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here"),
]

COUNT, AT_ONCE, HALF = 200, 8, 80
BROKEN = {
    "image-030.png": (b"nonsense", errors.UnsupportedFormat),
    "image-099.png": (png(noise(16, 16))[:-30], errors.InvalidImage),
    "image-170.png": (b"", errors.InvalidUpload),
}


@pytest.fixture(scope="module")
def images():
    """Two hundred small images by name, three of them broken."""
    good = {f"image-{index:03}.png": png(noise(8 + index % 9, 8 + index % 7, seed=index)) for index in range(COUNT)}
    return good | {name: body for name, (body, _) in BROKEN.items()}


@pytest.fixture
def restartable():
    """Starts servers at one address, one after the other; the last one ends with the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    servers = []

    def start():
        server = ServerProcess(fork=SERVE, variants="x2", device="cpu", port=port, threads=1)
        servers.append(server)
        return server.__enter__()

    yield start
    for server in servers:
        server.__exit__()


def check_results(results, images):
    """Every good image is there, twice as large, under its own name."""
    assert set(results) == set(images) - set(BROKEN)
    for name, content in results.items():
        assert pixels_of(content).shape[0] == 2 * pixels_of(images[name]).shape[0], name


@pytest.mark.slow
def test_the_client_survives_a_crash_of_the_server(restartable, images):
    """Killed with requests in it, and started again: 197 results, 3 errors of their own classes."""
    server = restartable()
    results, failures = {}, {}
    half = threading.Event()

    async def go():
        queue = iter(images.items())

        async def work(client):
            for name, body in queue:
                try:
                    results[name] = (await client.upscale(body, "small-x2")).content
                except errors.ServiceError as error:
                    failures[name] = type(error)
                if len(results) >= HALF:
                    half.set()

        async with AsyncClient(server.url, timeout=120) as client, asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work(client))
            group.create_task(asyncio.to_thread(crash))

    def crash():
        assert half.wait(60)
        server.signal(signal.SIGKILL)
        server.wait()
        assert len(results) < COUNT - len(BROKEN)
        restartable()

    asyncio.run(go())
    assert failures == {name: error for name, (_, error) in BROKEN.items()}
    check_results(results, images)


@pytest.mark.slow
def test_the_command_line_survives_a_restart_of_the_server(restartable, images, tmp_path):
    """Stopped as an orchestrator stops it, and started again: 197 files, 3 named errors, exit status 1."""
    server = restartable()
    (tmp_path / "in").mkdir()
    for name, body in images.items():
        (tmp_path / "in" / name).write_bytes(body)
    command = [sys.executable, "-m", "app", "upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    options = ["--url", server.url, "--variant", "small-x2", "--jobs", str(AT_ONCE), "--json"]
    with (
        (tmp_path / "errors.txt").open("w") as report,
        subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=report, text=True) as process,
    ):
        lines = []
        for line in process.stdout:
            lines.append(json.loads(line))
            if len(lines) == HALF:
                assert server.stop() == 0
                restartable()
    assert process.returncode == 1
    assert len(lines) == COUNT
    failed = {line["source"].rpartition("/")[2]: line["error"]["code"] for line in lines if "error" in line}
    assert failed == {name: error.code for name, (_, error) in BROKEN.items()}
    text = (tmp_path / "errors.txt").read_text()
    assert "197 images upscaled, 3 failed:" in text
    assert all(name in text for name in BROKEN)
    outputs = (tmp_path / "out").iterdir()
    check_results({file.name.replace("-small-x2", ""): file.read_bytes() for file in outputs}, images)

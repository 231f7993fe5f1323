"""The container: what its Dockerfile promises, and the health check that runs inside."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from app import __version__
from app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
FINAL = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
HEALTHCHECK = ROOT / "docker" / "healthcheck.py"


def instruction(name):
    """What follows the only such instruction of the final stage."""
    [found] = re.findall(rf"^{name} (.*)$", FINAL.replace("\\\n", " "), re.M)
    return found


def test_the_base_can_be_replaced():
    """The first line is the argument that names the base image, and every stage begins with it."""
    assert DOCKERFILE.startswith("ARG BASE_IMAGE=python:3.12-slim-bookworm\n")
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE_IMAGE}"}


def test_it_listens_for_other_machines_on_the_exposed_port():
    """Inside, the service listens everywhere, on the default port, which is exposed."""
    environment = dict(pair.split("=", 1) for pair in instruction("ENV").split())
    assert environment["SWIN2SR_HOST"] == "0.0.0.0"
    assert "SWIN2SR_PORT" not in environment
    assert instruction("EXPOSE") == str(Settings.model_fields["port"].default)
    settings = {name.removeprefix("SWIN2SR_").lower() for name in environment if name.startswith("SWIN2SR_")}
    assert settings <= Settings.model_fields.keys()


def test_it_is_process_one_as_a_nobody():
    """The service is started without a shell, so that SIGTERM reaches it, by a user with a fixed number."""
    assert json.loads(instruction("CMD")) == ["swin2sr", "serve"]
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", instruction("USER"))
    assert json.loads(instruction("HEALTHCHECK").partition(" CMD ")[2])[0] == "python3"


def test_its_label_has_the_version():
    """The image's version is the package's."""
    assert f"ARG VERSION={__version__}\n" in FINAL


def test_only_what_is_needed_is_sent_to_the_builder():
    """The context is a list of what is copied: nothing else, however large, gets in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        name.replace("setup.p[y]", "setup.py")
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
        for name in line.split()
    }
    assert sent == copied


@pytest.fixture
def answering():
    """Starts a server that answers every question with a status, and returns its port."""
    servers = []

    def start(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/health/ready" else 404)
                self.end_headers()
                self.wfile.write(b"loading small-x2")

            def log_message(self, *_arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check(port, host="0.0.0.0"):
    """Run the health check as the container does."""
    environment = {**os.environ, "SWIN2SR_HOST": host, "SWIN2SR_PORT": str(port)}
    return subprocess.run([sys.executable, HEALTHCHECK], env=environment, capture_output=True, text=True, check=False)


def test_the_health_check_passes_when_ready(answering):
    """A ready service is healthy."""
    assert check(answering(200)).returncode == 0


def test_the_health_check_fails_with_the_reason_when_not_ready(answering):
    """A service that is not ready is unhealthy, and ``docker inspect`` shows what it said."""
    result = check(answering(503))
    assert result.returncode == 1
    assert "503: loading small-x2" in result.stderr


def test_the_health_check_fails_where_nothing_listens():
    """No service, no health; and no traceback."""
    result = check(1)
    assert result.returncode == 1
    assert "refused" in result.stderr
    assert "Traceback" not in result.stderr

"""The container: what its Dockerfile promises, and the health check that runs inside."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import requires
from pathlib import Path

import pytest
from image_requirements import image_requirements, name_of

from app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
STAGES = {text.split("\n")[0].rpartition(" AS ")[2]: text for text in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]}
HEALTHCHECK = ROOT / "docker" / "healthcheck.py"
KINDS = ("cpu", "cuda")


def instructions(stage, name):
    """The arguments of each such instruction of a stage."""
    return re.findall(rf"^{name} +(.*)$", re.sub(r" *\\\n *", " ", STAGES[stage]), re.M)


def instruction(name):
    """The arguments of the only such instruction in the stages that both kinds share."""
    [found] = instructions("service", name)
    return found


def test_the_base_can_be_replaced():
    """The first line is the argument that names the base image, and every stage goes back to it."""
    assert DOCKERFILE.startswith("ARG BASE_IMAGE=python:3.12-slim-bookworm\n")
    froms = dict(reversed(line.split(" AS ")) for line in re.findall(r"^FROM (.*)$", DOCKERFILE, re.M))
    assert set(froms) >= {"build", *KINDS}
    for base in froms.values():
        assert base == "${BASE_IMAGE}" or froms[base] == "${BASE_IMAGE}"


def test_the_cpu_is_the_default():
    """``docker build`` makes the last stage if none is named."""
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("kind", KINDS)
def test_dependencies_are_a_layer_of_their_own(kind):
    """They are copied before the project itself, and only the image for GPUs has a compiler."""
    assert instructions(kind, "COPY") == [
        f"--from={kind}-dependencies /opt/swin2sr /opt/swin2sr",
        "--from=package /srv/swin2sr /srv/swin2sr",
    ]
    assert instructions("build", "COPY") == ["constraints.txt docker/requirements.txt ./"]
    assert instructions(f"{kind}-dependencies", "COPY") == []
    assert [stage for stage, text in STAGES.items() if "gcc" in text] == ["build", "cuda"]  # Triton needs one
    assert instructions(kind, "USER")[-1:] in ([], instructions("service", "USER"))
    assert STAGES[kind].startswith("service AS ")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_checked_against_its_hash_but_torchs(kind):
    """The hashed list is installed unchanged, then torch in its pinned version, and the environment is checked."""
    commands = " && ".join(instructions("build", "RUN") + instructions(f"{kind}-dependencies", "RUN")).split(" && ")
    hashed, torch = [command for command in commands if command.startswith("pip install")]
    assert {"--require-hashes", "--no-deps"} <= set(hashed.split())
    assert "--constraint constraints.txt" in torch
    assert torch.endswith(" torch")
    assert commands.index("pip check") > commands.index(torch)


def test_the_hashed_list_is_the_locks():
    """``docker/requirements.txt`` has the versions of ``constraints.txt``, each with hashes, and every dependency."""
    logical = (ROOT / "docker" / "requirements.txt").read_text("utf-8").replace("\\\n", " ").splitlines()
    hashed = {line.split()[0].lower(): line for line in logical if line and not line.startswith("#")}
    assert all("--hash=sha256:" in line for line in hashed.values())
    lock = {normal(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    ours = {normal(pin) for pin, line in hashed.items() if "sys_platform == 'emscripten'" not in line}
    assert ours <= lock
    wanted = image_requirements((ROOT / "pyproject.toml").read_text("utf-8"), requires("torch"))
    assert {normal(name_of(each)) for each in wanted} <= {pin.partition("==")[0] for pin in ours}
    assert "torch" not in {pin.partition("==")[0] for pin in ours}


def normal(pin):
    """A distribution's name, or pin, in the spelling of PEP 503."""
    name, equals, version = pin.lower().partition("==")
    return re.sub(r"[-_.]+", "-", name) + equals + version


@pytest.mark.parametrize("kind", KINDS)
def test_official_weights_can_be_baked_in(kind):
    """Where they are named at the build, the image fetches them, before its cache is declared a volume."""
    fetch = instructions(kind, "RUN")[-1]
    assert fetch == '[ -z "$WEIGHTS" ] || swin2sr fetch $WEIGHTS'
    assert STAGES[kind].index("ARG WEIGHTS") < STAGES[kind].index(fetch) < STAGES[kind].index("VOLUME /cache")
    assert dict(pair.split("=", 1) for pair in instruction("ENV").split())["SWIN2SR_CACHE_DIR"] == "/cache"


def test_it_listens_for_other_machines_on_the_exposed_port():
    """Inside, the service listens everywhere, on the default port, which is exposed."""
    environment = dict(pair.split("=", 1) for pair in instruction("ENV").split())
    assert environment["SWIN2SR_HOST"] == "0.0.0.0"
    assert "SWIN2SR_PORT" not in environment
    assert instruction("EXPOSE") == str(Settings.model_fields["port"].default)
    settings = {name.removeprefix("SWIN2SR_").lower() for name in environment if name.startswith("SWIN2SR_")}
    assert settings <= Settings.model_fields.keys()


def test_it_runs_as_process_one_and_as_an_unprivileged_user():
    """The service is started without a shell, so that SIGTERM reaches it, by a user with a fixed number."""
    assert json.loads(instruction("CMD")) == ["swin2sr", "serve"]
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", instruction("USER"))
    assert json.loads(instruction("HEALTHCHECK").partition(" CMD ")[2]) == ["python3", "/opt/healthcheck.py"]
    assert instruction("COPY") == "docker/healthcheck.py /opt/healthcheck.py"


def test_its_labels_have_the_version():
    """The builder passes the version; the Open Container Initiative's names say what the image is."""
    assert "ARG VERSION=local\n" in STAGES["service"]
    labels = instruction("LABEL")
    for name in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert 'org.opencontainers.image.version="${VERSION}"' in labels


def test_only_what_is_needed_is_sent_to_the_builder():
    """The context is a list of what is copied: nothing else, however large, gets in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M) for name in line.split()}
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

"""nginx, as docker/nginx.conf has it, before two real processes: nothing fails while one of them is restarted."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from model.variants import embedded_path
from tests.chaos.metrics import MetricsSnapshot
from tests.scripted import PATIENCE
from tests.scripted_server import ScriptedServer
from tests.server import ROOT, SERVE, ServerProcess, free_ports
from tests.service import noise, pixels_of, png

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PNG = {"content-type": "image/png"}
SMALL = png(noise(8, 8))

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture
def balance(tmp_path):
    """Starts nginx before the processes at two ports, as the project configures it, and returns its address."""
    masters = []

    def start(*ports):
        [front] = free_ports(1)
        text = (ROOT / "docker" / "nginx.conf").read_text("utf-8")
        for old, new in (("8001", ports[0]), ("8002", ports[1])):
            text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        text = text.replace("listen 8000;", f"listen 127.0.0.1:{front};").replace("/tmp/", f"{tmp_path}/")
        (tmp_path / "nginx.conf").write_text(text)
        command = [NGINX, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", "daemon off;"]
        with (tmp_path / "nginx.log").open("w") as log:
            masters.append(subprocess.Popen(command, stderr=log))
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:  # until it listens
            client.get(f"http://127.0.0.1:{front}/health/live", timeout=PATIENCE)
        return f"http://127.0.0.1:{front}"

    yield start
    for master in masters:
        master.terminate()
        master.wait(PATIENCE)


def post(url, body=SMALL, headers=PNG):
    return httpx.post(f"{url}/v1/upscale", content=body, headers=headers, timeout=60)


def until(condition):
    """Ask again and again, until it is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not come to that"


class Load:
    """Requests without a pause from several clients, until the end of a ``with`` block.

    Args:
        url: where to.
        clients: how many send at once.

    Attributes:
        answers: statuses, or the errors that came in their place.
    """

    def __init__(self, url, clients=8):
        self._url, self._clients = url, clients
        self._over = threading.Event()
        self._news = threading.Condition()
        self.answers = []

    def __enter__(self):
        self._pool = ThreadPoolExecutor(self._clients)
        self._work = [self._pool.submit(self._send, seed) for seed in range(self._clients)]
        return self

    def __exit__(self, *_error):
        self._over.set()
        self._pool.shutdown()
        for each in self._work:
            each.result()

    def wait_for(self, more):
        """Wait until so many more answers are there."""
        with self._news:
            wanted = len(self.answers) + more
            assert self._news.wait_for(lambda: len(self.answers) >= wanted, PATIENCE)

    def _send(self, seed):
        body = png(noise(16, 12, seed=seed))
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                try:
                    answer = client.post(f"{self._url}/v1/upscale", content=body, headers=PNG)
                    outcome = answer.status_code
                    if outcome == 200:
                        assert pixels_of(answer.content).shape == (32, 24, 3)
                except httpx.TransportError as error:
                    outcome = error
                with self._news:
                    self.answers.append(outcome)
                    self._news.notify_all()


@pytest.mark.slow
@pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here")
def test_a_restart_behind_nginx_fails_no_request(balance):
    """Under load, one of two processes is drained, ends with 0, starts and loads anew: every answer is an image."""
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:

        def start(port):
            server = ServerProcess(
                fork=SERVE, variants="small-x2", device="cpu", port=port, threads=1, drain_delay_ms=500
            )
            server.start()
            stack.push(server)
            return server

        one, other = map(start, ports)
        for server in (one, other):
            server.wait_until_ready()
        with Load(balance(*ports)) as load:
            load.wait_for(50)
            for server in (one, other):
                assert MetricsSnapshot(server.url)["swin2sr_requests_total"] > 0  # both served some
            assert one.stop() == 0
            load.wait_for(20)  # the other one continues alone
            one = start(ports[0])
            one.wait_until_ready()
            until(lambda: MetricsSnapshot(one.url)["swin2sr_requests_total"])  # it serves again
    assert [answer for answer in load.answers if answer != 200] == []
    print(f"\n{len(load.answers)} requests, none failed")


@pytest.mark.slow
def test_it_moves_on_when_a_connection_is_refused(balance):
    """One process is killed: what comes afterwards is all served by the other."""
    with ScriptedServer() as one, ScriptedServer() as other:
        url = balance(port_of(one), port_of(other))
        assert {post(url).status_code for _ in range(4)} == {200}
        one.signal(signal.SIGKILL)
        one.wait()
        assert [post(url).status_code for _ in range(20)] == [200] * 20


@pytest.fixture(scope="module")
def pair():
    """Two processes that take 5 s for a megapixel, and uploads of half a megabyte."""
    limits = {"seconds": 5, "max_body_bytes": 500_000}
    with ScriptedServer(**limits) as one, ScriptedServer(**limits) as other:
        yield one, other


@pytest.mark.slow
def test_uploads_and_answers_stream(balance, pair):
    """A half-sent upload is at the service already; progress arrives while the image is computed."""
    host, port = balance(*map(port_of, pair)).removeprefix("http://").split(":")
    body = png(noise(300, 300))
    head = f"Content-Length: {len(body)}\r\nAccept: multipart/mixed\r\nContent-Type: image/png\r\nConnection: close"
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(f"POST /v1/upscale HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode() + body[:1000])
        until(lambda: any(MetricsSnapshot(server.url)["swin2sr_inflight_requests"] for server in pair))
        connection.sendall(body[1000:])
        received = b""
        while b'"state":"running"' not in received:
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
        assert b"image/png" not in received
        while chunk := connection.recv(65536):
            received += chunk
    assert b"content-type: image/png" in received


def test_the_services_own_words_come_through(balance, pair):
    """Refusals, before the whole body was sent too, keep their status, body and headers; the page is there."""
    url = balance(*map(port_of, pair))
    answer = post(url, bytes(3_000_000))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert post(url, b"nonsense").json()["code"] == "unsupported_format"
    assert "<html" in httpx.get(url).text
    named = httpx.get(f"{url}/nowhere", headers={"x-request-id": "mine"})
    assert (named.status_code, named.json()["request_id"]) == (404, "mine")


@pytest.mark.slow
def test_a_public_name_reaches_the_processes(balance):
    """The name that clients use is passed on: it works where ALLOWED_HOSTS has it, and the client is in the log."""
    settings = {"allowed_hosts": "images.example", "trusted_proxies": "127.0.0.1"}
    with ScriptedServer(**settings) as one, ScriptedServer(**settings) as other:
        url = balance(port_of(one), port_of(other))
        named = {**PNG, "host": "images.example"}
        assert [post(url, headers=named).status_code for _ in range(4)] == [200] * 4
        refused = post(url, headers={**PNG, "host": "rebound.example"})
        assert (refused.status_code, refused.json()["code"]) == (421, "misdirected_request")
        spoofed = {"host": "images.example", "x-forwarded-prefix": "/not/ours"}
        document = httpx.get(f"{url}/openapi.json", headers=spoofed, timeout=PATIENCE).json()
        assert "servers" not in document, "a client sets no prefix"
        forwarded = {**named, "x-forwarded-for": "203.0.113.9"}
        assert post(url, headers=forwarded).status_code == 200
        for server in (one, other):
            server.stop()
        lines = [line for line in one.output + other.output if "POST /v1/upscale" in line]
    assert lines
    assert all("client=127.0.0.1" in line or "client=203.0.113.9" in line for line in lines)


SUB_PATH = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{front};
        location /tools/upscaler/ {{
            proxy_set_header Host $http_host;
            {how}
        }}
    }}
}}
"""
STRIPPED = "proxy_set_header X-Forwarded-Prefix /tools/upscaler; proxy_pass http://127.0.0.1:{port}/;"
WHOLE = "proxy_pass http://127.0.0.1:{port};"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "settings"),
    [(STRIPPED, {"trusted_proxies": "127.0.0.1"}), (STRIPPED, {"root_path": "/tools/upscaler"}),
     (WHOLE, {"root_path": "/tools/upscaler"})],
    ids=["X-Forwarded-Prefix", "ROOT_PATH, stripped", "ROOT_PATH, not stripped"],
)  # fmt: skip
def test_it_lives_under_a_sub_path(tmp_path, how, settings):
    """Page, its files, documents, openapi.json and the API, through a proxy; probes come without the prefix."""
    with ScriptedServer(**settings) as server:
        [front] = free_ports(1)
        text = SUB_PATH.format(folder=tmp_path, front=front, how=how.format(port=port_of(server)))
        (tmp_path / "nginx.conf").write_text(text)
        command = [NGINX, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", "daemon off;"]
        master = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            base = f"http://127.0.0.1:{front}/tools/upscaler"
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
                page = client.get(f"{base}/", timeout=PATIENCE)
            assert "<html" in page.text
            linked = re.findall(r'(?:src|href)="([^"#:]+)"', page.text)
            assert linked
            for path in (*linked, "docs", "openapi.json", "v1/variants", "health/ready"):
                assert not path.startswith("/"), "the page's links are relative"
                assert httpx.get(f"{base}/{path}").status_code == 200, path
            document = httpx.get(f"{base}/openapi.json").json()
            assert document["servers"] == [{"url": "/tools/upscaler"}]
            assert post(base).status_code == 200
            assert httpx.get(f"{server.url}/health/ready").status_code == 200
        finally:
            master.terminate()
            master.wait(PATIENCE)


def test_without_a_ready_process_the_client_gets_retry_after(balance, pair):
    """503 with ``Retry-After`` and the problem document of ``not_ready``, with the service's own fields."""
    answer = post(balance(*free_ports(2)))
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    theirs = httpx.post(f"{pair[0].url}/v1/upscale?variant=jpeg", content=SMALL, headers=PNG)
    assert theirs.status_code == 503
    assert answer.json().keys() == theirs.json().keys() - {"variant"}
    for name in ("type", "status", "code", "title"):
        assert answer.json()[name] == theirs.json()[name]
    assert re.fullmatch(r"[0-9a-f]{32}", answer.json()["request_id"])


def port_of(server):
    return int(server.url.rpartition(":")[2])

"""The service on real Ray, started as a user starts it: replicas that are killed, die, are drained."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from app import errors, logs
from app.client import AsyncClient, Client
from app.http.handlers import PROBLEM
from app.ray import deployment
from app.ray.deployment import Replica
from app.ray.settings import RaySettings, ReplicaResources, plan_replicas
from app.sockets import listen
from model.checkpoints import CheckpointError
from model.variants import embedded_path
from tests.objects import s3_server
from tests.scripted import ScriptedUpscaler, model_dir
from tests.scripted_server import Failure, ScriptedServer
from tests.server import PATIENCE, ROOT, ServerProcess, children
from tests.service import SMALL, enlarged, noise, pixels_of, png
from tests.test_readme import MAKE, make_arguments

COUNT, AT_ONCE, KILLED_AFTER = 100, 8, 40
BODY_LIMIT = 10_000_000
PNG = {"Content-Type": "image/png"}

needs_weights = pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A home folder in which Ray finds no token of a cluster, and may leave its own.

    Ray's processes are not measured by ``make coverage``: the cluster would start too slowly.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def server():
    """Two replicas of the real service, one processor each, as ``make ray`` starts them."""
    program = ("-c", MAKE, *make_arguments("ray"))
    with ServerProcess(program=program, variants="small-x2", device="cpu", threads=1, ray_min_replicas=2) as process:
        yield process


@pytest.fixture(scope="module")
def scripted():
    """Two replicas with scripted upscalers that take a second for a tile of 128x128."""
    settings = {"ray_min_replicas": 2, "threads": 1, "max_body_bytes": BODY_LIMIT}
    with ScriptedServer(ray=True, seconds=60, **settings) as process:
        yield process


def until(condition):
    """Wait for something that happens in other processes."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.05)
    return value


def replicas(server):
    """The processes of the replicas that became ready and still live."""
    found = re.findall(r"ServeReplica:swin2sr:Replica pid=(\d+)\).* ready after", "".join(server.output))
    return [int(pid) for pid in found if is_alive(int(pid))]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def hundred(server, send):
    """A hundred small images, eight at once; when forty are through, a replica is killed.

    Args:
        server: that has two replicas.
        send: sends one image and returns what came of it.
    """
    victim, other = until(lambda: len(replicas(server)) == 2 and replicas(server))
    queue = iter([png(noise(8 + index % 9, 8 + index % 7, seed=index)) for index in range(COUNT)])
    results = []

    async def work():
        for body in queue:
            results.append((pixels_of(body), await send(body)))
            if len(results) == KILLED_AFTER:
                os.kill(victim, signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    assert not is_alive(victim)
    assert is_alive(other)
    return results


@pytest.mark.slow
@needs_weights
def test_every_request_is_answered_though_a_replica_is_killed(server):
    """Every request gets an image, or a problem document with Retry-After."""

    async def go():
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            async def send(body):
                return await client.post("/v1/upscale", content=body, headers=PNG)

            return await hundred(server, send)

    results = asyncio.run(go())
    assert len(results) == COUNT
    lost = [answer for _, answer in results if answer.status_code != 200]
    assert len(lost) <= 2 * AT_ONCE  # what was in it, if anything, and what the proxy sent there before it knew
    for answer in lost:
        assert answer.headers["content-type"] == PROBLEM
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    for image, answer in results:
        if answer.status_code == 200:
            assert pixels_of(answer.content).shape[0] == 2 * image.shape[0]


@pytest.mark.slow
@needs_weights
def test_the_client_gets_every_image_though_a_replica_is_killed(server):
    """The killed replica of the test before was replaced; the client sends again what was lost with another one."""

    async def go():
        async with AsyncClient(server.url, timeout=120) as client:

            async def send(body):
                return (await client.upscale(body)).content

            return await hundred(server, send)

    results = asyncio.run(go())
    assert len(results) == COUNT
    for image, content in results:
        assert pixels_of(content).shape == (2 * image.shape[0], 2 * image.shape[1], 3)


@needs_weights
@pytest.mark.long
def test_a_bucket_is_upscaled_though_a_replica_is_killed(server):
    """Every object is there once and whole, by one command that keeps both replicas busy."""
    victim, other = until(lambda: len(replicas(server)) == 2 and replicas(server))
    with s3_server() as (bucket, environment):
        images = {f"{index:03}": noise(8 + index % 9, 8 + index % 7, seed=index) for index in range(COUNT)}
        for name, image in images.items():
            bucket.put_object(Key=f"in/{name}.png", Body=png(image))
        command = [sys.executable, "-m", "app", "upscale", "s3://photos/in/*.png", "-o", "s3://photos/out", "--json"]
        command += ["--url", server.url, "--jobs", str(AT_ONCE), "--variant", "small-x2"]
        env = {**os.environ, **environment}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            lines = [json.loads(next(process.stdout)) for _ in range(KILLED_AFTER)]
            os.kill(victim, signal.SIGKILL)
            lines += map(json.loads, process.stdout)
            assert process.wait() == 0, process.stderr.read()
        assert not is_alive(victim)
        assert is_alive(other)
        written = {each.key: each.get()["Body"].read() for each in bucket.objects.filter(Prefix="out/")}
    assert Counter(line["target"] for line in lines) == Counter(f"s3://photos/{key}" for key in written)
    assert written.keys() == {f"out/{name}-small-x2.png" for name in images}
    for name, image in images.items():
        assert pixels_of(written[f"out/{name}-small-x2.png"]).shape == (2 * image.shape[0], 2 * image.shape[1], 3)


@pytest.mark.slow
def test_answers_are_the_services_own(scripted):
    """An image bit by bit, sent as a form or as the body; its headers, and the request's id once."""
    image = noise(40, 56)
    for request in ({"files": {"file": png(image)}}, {"content": png(image), "headers": PNG}):
        response = httpx.post(f"{scripted.url}/v1/upscale", timeout=60, **request)
        assert response.status_code == 200
        assert (pixels_of(response.content) == enlarged(image)).all()
        assert response.headers["x-swin2sr-variant"] == "classical-x2"
        assert len(response.headers.get_list("x-request-id")) == 1
    assert httpx.get(f"{scripted.url}/health/ready", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/upscale", b"nonsense", errors.UnsupportedFormat),
        ("/v1/upscale?quality=0", b"nonsense", errors.InvalidOption),
        ("/v1/upscale?variant=none", png(noise(8, 8)), errors.UnknownVariant),
        ("/nowhere", b"", errors.NotFound),
        ("/v1/upscale", bytes(BODY_LIMIT + 1), errors.BodyTooLarge),
        ("/v1/upscale", (bytes(1_000_000) for _ in range(11)), errors.BodyTooLarge),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_refusals_are_the_services_own(scripted, path, body, error):
    """The same problem documents as without Ray; a body that is too large, with its length and without."""
    response = httpx.post(f"{scripted.url}{path}", content=body, headers=PNG, timeout=60)
    assert (response.status_code, response.json()["code"]) == (error.status, error.code)
    assert response.headers["content-type"] == PROBLEM


def test_large_bodies_are_answered(scripted):
    """Nine megabytes in, most of it a chunk that no decoder wants, and a megabyte out."""
    image = noise(128, 128)
    body = png(image)
    chunk = b"raYt" + os.urandom(8_900_000)
    filler = (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    response = httpx.post(
        f"{scripted.url}/v1/upscale", params={"format": "tiff"}, content=body[:33] + filler + body[33:], timeout=60
    )
    assert response.status_code == 200
    assert (pixels_of(response.content) == enlarged(image)).all()


def running(server, client):
    """A streaming answer of which the first tile of several is done."""
    return client.stream(
        "POST",
        f"{server.url}/v1/upscale",
        content=png(noise(128, 320)),
        headers={**PNG, "Accept": "multipart/mixed"},
    )


def read_until(chunks, text):
    received = b""
    while text not in received:
        received += next(chunks)
    return received


@pytest.mark.slow
def test_progress_streams_and_leaving_cancels(scripted):
    """The first tile is reported before the others are computed, and a disconnect cancels the rest."""
    with httpx.Client(timeout=60) as client, running(scripted, client) as response:
        assert response.headers["x-request-id"]
        read_until(response.iter_raw(), b'"state":"running","tile":1,')
        identity = response.headers["x-request-id"]
    [line] = until(lambda: [line for line in scripted.output if f"request_id={identity}" in line])
    assert "variant=classical-x2" in line
    assert "outcome=ok" not in line
    assert httpx.post(f"{scripted.url}/v1/upscale", content=png(noise(8, 8)), headers=PNG, timeout=60).is_success


def served(server):
    """How many images each replica has served, by its name, as ``/metrics`` tells it."""
    response = httpx.get(f"{server.url}/metrics", timeout=60)
    assert response.status_code == 200
    totals = Counter()
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name == "swin2sr_inflight_requests":
                totals[sample.labels["replica"]] += 0
            if sample.name == "swin2sr_requests_total" and sample.labels["outcome"] == "ok":
                totals[sample.labels["replica"]] += sample.value
    return totals


@pytest.mark.slow
def test_the_metrics_are_of_all_replicas(scripted):
    """Every replica returns the metrics of all, each with its name, and the sum is the number of requests."""
    until(lambda: len(replicas(scripted)) == 2)
    before = served(scripted)
    assert len(before) == 2
    with ThreadPoolExecutor(8) as pool, Client(scripted.url) as client:
        list(pool.map(lambda _: client.upscale(png(noise(32, 32))), range(24)))
    growth = served(scripted) - before
    assert growth.total() == 24
    assert len(growth) == 2


@pytest.mark.slow
def test_a_replica_whose_worker_has_died_for_good_is_replaced(scripted):
    """Its health check fails, Ray starts another, and requests are answered all along."""
    body = png(Failure.CRASH.mark(noise(16, 16)))
    before = until(lambda: len(replicas(scripted)) == 2 and replicas(scripted))
    answers = Counter()
    while set(replicas(scripted)) >= set(before):
        answer = httpx.post(f"{scripted.url}/v1/upscale", content=body, headers=PNG, timeout=60)
        answers[answer.status_code, answer.json()["code"]] += 1
        assert answers.total() < 1000
    assert answers.keys() <= {(503, "not_ready")}
    until(lambda: len(replicas(scripted)) == 2)
    with Client(scripted.url) as client:
        assert (pixels_of(client.upscale(png(noise(8, 8))).content) == enlarged(noise(8, 8))).all()


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted(scripted):
    """Nothing new is taken, the image that is being computed arrives, and the exit status is 0. Ends the server."""
    with httpx.Client(timeout=60) as client, running(scripted, client) as response:
        chunks = response.iter_raw()
        read_until(chunks, b'"state":"running","tile":1,')
        scripted.signal(signal.SIGTERM)
        refusal = until(lambda: refused(scripted))
        assert refusal.json()["code"] == "draining"
        answer = b"".join(chunks)
    assert b"content-type: image/png" in answer
    assert answer.endswith(b"--\r\n")
    assert scripted.wait() == 0


def refused(server):
    """The answer to a request, if it was not an image."""
    response = httpx.post(f"{server.url}/v1/upscale", content=png(noise(8, 8)), headers=PNG, timeout=60)
    return None if response.is_success else response


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"ray_min_replicas": 3, "ray_max_replicas": 2}, ("RAY_MIN_REPLICAS (3)", "RAY_MAX_REPLICAS (2)")),
        ({"ray_min_replicas": 0}, ("ray_min_replicas",)),
        ({"ray_target_requests": 0}, ("ray_target_requests",)),
        ({"device": "cuda:1"}, ("DEVICE (cuda:1)",)),
        ({"admin_token": "secret-token"}, ("ADMIN_TOKEN",)),
    ],
)
def test_what_ray_cannot_do_is_refused(settings, names):
    """A setting that would mean something else with replicas is an error that names it."""
    with pytest.raises(ValidationError) as caught:
        RaySettings(**settings)
    assert all(name in str(caught.value) for name in names)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "resources", "share"),
    [
        ({"threads": 2, "device": "cpu"}, {"CPU": 9}, ReplicaResources(2, 0, 4)),
        ({"threads": 2, "device": "cpu", "ray_max_replicas": 3}, {"CPU": 9, "GPU": 2}, ReplicaResources(2, 0, 3)),
        ({}, {"CPU": 9, "GPU": 2}, ReplicaResources(1, 1, 2)),
        ({"device": "cuda", "threads": 4}, {"CPU": 9, "GPU": 8}, ReplicaResources(4, 1, 2)),
    ],
)
def test_a_cluster_is_shared_out(settings, resources, share):
    """A replica for each GPU with its processors, or for so many processors; never more than fit, or are allowed."""
    assert plan_replicas(RaySettings(**settings), resources) == share


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda"}, "no GPU"),
        (
            {"threads": 4, "device": "cpu"},
            r"1 replicas with THREADS \(4\) each .* is room for 0",
        ),
        ({"threads": 1, "device": "cpu", "ray_min_replicas": 3}, "is room for 2"),
        ({"threads": 1, "device": "cpu", "ray_max_replicas": 3}, "is room for 2"),
    ],
)
def test_replicas_that_do_not_fit_are_refused(settings, words):
    """In place of waiting for ever; a cluster that may grow is given the time."""
    with pytest.raises(ValueError, match=words):
        plan_replicas(RaySettings(**settings), {"CPU": 2})
    assert plan_replicas(RaySettings(**settings), {"CPU": 2}, can_grow=True).replicas >= 1


@pytest.fixture
def replica(tmp_path, monkeypatch):
    """Makes a replica without Ray, and its application's lifespan; this process's log stays unchanged."""
    monkeypatch.setattr(logs, "configure", lambda _format: None)

    def make(load):
        place = {"variants": "lightweight-x2", "model_dir": model_dir(tmp_path, "lightweight-x2"), "device": "cpu"}
        made = Replica(RaySettings(**SMALL, **place), load)
        return made, made.__serve_build_asgi_app__().router.lifespan_context(None)

    return make


def test_a_replica_is_healthy_once_it_is_ready(replica):
    """Loading and warm-up end before the lifespan startup completes; Ray gets no healthy answer earlier."""

    async def go():
        made, lifespan = replica(lambda _name, _path: ScriptedUpscaler())
        with pytest.raises(errors.NotReady, match="lightweight-x2"):
            await made.check_health()
        async with lifespan:
            await made.check_health()

    asyncio.run(go())


def test_a_replica_that_cannot_load_says_why(replica):
    """So Ray sends it nothing, and its log has the reason."""

    def load(_name, _path):
        raise CheckpointError("the weights are no weights")

    async def go():
        made, lifespan = replica(load)
        async with lifespan:
            with pytest.raises(errors.NotReady, match="the weights are no weights"):
                await made.check_health()

    asyncio.run(go())


def test_a_replica_that_is_leaving_is_not_replaced(replica):
    """It is not ready, tells so, and is as healthy as before: it has work to finish."""

    async def go():
        made, lifespan = replica(lambda _name, _path: ScriptedUpscaler())
        async with lifespan:
            await made.check_health()
            await made.begin_shutdown()
            transport = httpx.ASGITransport(made.__serve_build_asgi_app__())
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                assert (await client.get("/health/ready")).status_code == 503
            await made.check_health()

    asyncio.run(go())


def fail(*arguments, program="from app.__main__ import main; main()", **settings):
    """What ``swin2sr ray`` says on standard error when it cannot start."""
    environment = {**os.environ, **{f"SWIN2SR_{name.upper()}": value for name, value in settings.items()}}
    result = subprocess.run(
        [sys.executable, "-c", program, "ray", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.slow
def test_a_signal_while_ray_starts_ends_all_of_it():
    """Ray's own processes end too, nothing is reported as an error, and an empty ``RAY_ADDRESS`` is ignored."""
    command = [sys.executable, "-m", "app", "ray", "--port", "0", "--variants", "small-x2", "--device", "cpu"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": ""}, cwd=ROOT, **output) as process:
        started = until(lambda: children(process.pid))
        process.terminate()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    until(lambda: not any(map(is_alive, started)))


def test_a_signal_whose_exception_was_lost_ends_the_service():
    """The signal counts although its handler raised nothing; other signals are no reason to end."""
    ours = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with deployment._recorded_signals() as raise_if_signalled:
            signal.raise_signal(signal.SIGUSR1)
            raise_if_signalled()
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(SystemExit) as end:
                raise_if_signalled()
            assert end.value.args == (signal.SIGTERM,)
            raise_if_signalled()  # it was reported
            signal.raise_signal(signal.SIGTERM)
            assert deployment._wait_for_signal(raise_if_signalled) == signal.SIGTERM
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_without_ray_there_is_a_sentence():
    """How to install it."""
    program = "import sys; sys.modules['ray'] = None; from app.__main__ import main; main()"
    assert fail("--port", "0", program=program) == (
        "swin2sr: Ray is not installed. Install it with: pip install 'swin2sr-serve[ray]'\n"
    )


@pytest.mark.slow
def test_an_unknown_variant_is_refused_before_ray_starts():
    """In one sentence, as the plain service does."""
    message = fail("--port", "0", variants="nonsense")
    assert "VARIANTS names 'nonsense'" in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_an_address_in_use_is_refused_before_ray_starts():
    """In one sentence, as the plain service does."""
    with listen("127.0.0.1", 0) as listener:
        listener.listen()
        assert "in use" in fail("--port", str(listener.getsockname()[1]), variants="small-x2")


@pytest.mark.slow
def test_the_command_line_has_rays_settings():
    """``swin2sr ray`` takes the options of ``serve`` and its own; an impossible one is a sentence."""
    assert fail("--ray-min-replicas", "3", "--ray-max-replicas", "2").startswith("swin2sr: --ray-min-replicas (3)")


def test_make_ray_hands_options_on():
    """``make ray`` starts the program with the sample, and ``SERVE``."""
    command = ["make", "-n", *make_arguments("ray"), "SERVE=--ray-min-replicas 2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{sys.prefix}/bin/swin2sr ray --sample build/sample.png --ray-min-replicas 2\n" in result.stdout

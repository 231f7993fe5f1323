"""The client: what it sends, what it makes of the answers, and when it tries again."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.client import AsyncClient, Client, Options, Progress, ServerUnreachable
from app.client.multipart import MultipartSplitter
from app.schemas import UpscaleOptions
from tests.scripted import ScriptedUpscaler
from tests.service import enlarged, noise, pixels_of, png, running, scripted_app

ROOT = Path(__file__).parents[1]
PICTURE = noise(150, 20)
IMAGE = {"Content-Type": "image/png", "X-Swin2SR-Variant": "small-x2", "X-Swin2SR-Scale": "2"}


@pytest.fixture
def served(tmp_path):
    """Calls a function with a client of a scripted service."""

    def call(work, **settings):
        async def go():
            app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler())
            async with running(app), AsyncClient("http://localhost", transport=httpx.ASGITransport(app)) as client:
                return await work(client)

        return asyncio.run(go())

    return call


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when the client sleeps; it remembers for how long."""

    class Clock:
        now, pauses = 1000.0, []

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.pauses.append(seconds)
            self.now += seconds

    clock = Clock()
    clock.pauses = []
    monkeypatch.setattr("app.client.call.time", clock)
    monkeypatch.setattr("app.client.clients.time", clock)
    monkeypatch.setattr("app.client.call.random.uniform", lambda low, _high: low)
    return clock


def scripted(*answers):
    """A client whose server gives these answers in turn, the last one for ever, and the requests that it got."""
    requests = []

    def answer(request):
        requests.append((request, request.read()))
        reply = answers[min(len(requests), len(answers)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply() if callable(reply) else reply

    return Client("http://test", transport=httpx.MockTransport(answer)), requests


def problem(error, **headers):
    """An error as the server sends it."""
    after = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    content = json.dumps(error.problem("id")).encode()
    return httpx.Response(
        error.status, headers={"Content-Type": "application/problem+json", **after, **headers}, content=content
    )


def test_importing_it_loads_neither_torch_nor_fastapi():
    """Nor NumPy, Pillow or anything else of the server's."""
    heavy = ("torch", "fastapi", "starlette", "uvicorn", "numpy", "PIL", "app.settings", "model")
    program = f"import sys, app.client; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The client's own distribution, as pip builds it from app/thin."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT / "app" / "thin")], check=True, cwd=folder)
    [file] = folder.glob("*.whl")
    return file


def test_it_installs_alone_beside_an_app_of_ones_own(wheel, tmp_path):
    """The distribution asks for httpx and pydantic only, brings no package ``app``, and works where torch cannot."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    needs = [line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [need.split(">")[0] for need in needs] == ["httpx", "pydantic"]
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"swin2sr_client"}
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("mine = True\n")
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'fastapi', 'starlette', 'numpy', 'PIL', 'model']))\n"
        "import app; assert app.mine\n"
        "from swin2sr_client.client import AsyncClient, Client\n"
        "from swin2sr_client.errors import QueueFull\n"
        "assert not hasattr(app, 'client')\n"
        "print(Client.__module__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == ("swin2sr_client.client.clients", "")


def test_its_options_are_the_services():
    """Each one that a person chooses, with the same type."""
    chosen = {name: field.annotation for name, field in UpscaleOptions.model_fields.items()}
    assert set(Options.__annotations__) == set(chosen) - {"variant", "timeout_ms"}


def test_an_image_comes_back_with_what_the_server_says_about_it(served, tmp_path):
    """From a path, bytes and an open file alike."""
    body = png(PICTURE)
    (tmp_path / "ünder.png").write_bytes(body)

    async def work(client):
        with (tmp_path / "ünder.png").open("rb") as file:
            return [await client.upscale(image, "x2") for image in (tmp_path / "ünder.png", body, file)]

    named, nameless, opened = served(work)
    for answer in (named, nameless, opened):
        np.testing.assert_array_equal(pixels_of(answer.content), enlarged(PICTURE))
        assert (answer.variant, answer.scale, answer.tiles) == ("lightweight-x2", 2, 2)
        assert answer.media_type == "image/png"
        assert answer.request_id
        assert set(answer.timing) == {"decode", "queue", "forward", "encode"}
    assert named.filename == opened.filename == "ünder-lightweight-x2.png"
    named.save(tmp_path / "saved.png")
    assert (tmp_path / "saved.png").read_bytes() == named.content


def test_options_reach_the_server(served):
    """As what they mean: sizes, formats, and what the format gives up."""

    async def work(client):
        return await client.upscale(
            png(noise(8, 8)), variant="x2", width=10, format="jpeg", quality=80, ensemble=True, tile="auto"
        )

    answer = served(work)
    assert pixels_of(answer.content).shape == (10, 10, 3)
    assert answer.media_type == "image/jpeg"


def test_progress_is_told(served):
    """First a place in the queue, then one tile after the other; the image is the same."""
    steps = []

    async def work(client):
        return await client.upscale(png(PICTURE), on_progress=steps.append)

    answer = served(work)
    np.testing.assert_array_equal(pixels_of(answer.content), enlarged(PICTURE))
    assert answer.filename.endswith("lightweight-x2.png")
    assert [step.state for step in steps] == sorted(step.state for step in steps)
    assert steps[0].state == "queued"
    assert steps[-1] == Progress("running", tile=2, tiles=2)


@pytest.mark.parametrize("on_progress", [None, lambda _step: None], ids=["plain", "progress"])
def test_errors_are_those_of_the_server(served, on_progress):
    """The class, its facts, and its sentence, whether progress was asked for or not."""

    async def work(client):
        with pytest.raises(errors.UnknownVariant) as unknown:
            await client.upscale(png(noise(8, 8)), "x3", on_progress=on_progress)
        with pytest.raises(errors.UnsupportedFormat):
            await client.upscale(b"nonsense", on_progress=on_progress)
        with pytest.raises(errors.ImageTooLarge) as large:
            await client.upscale(png(noise(1001, 1000)), on_progress=on_progress)
        return unknown.value, large.value

    unknown, large = served(work)
    assert "lightweight-x2" in unknown.facts["available"]
    assert large.facts["limit"] == 1_000_000
    assert large.facts["actual"] == 1_001_000


def test_variants_are_listed(served):
    """All of them, or one by an alias."""

    async def work(client):
        return await client.variants(), await client.variant("x2")

    listed, one = served(work)
    assert one in listed.variants
    assert one.name == "lightweight-x2"


def test_an_impossible_option_is_refused_before_anything_is_sent():
    """With the sentence that the server would have sent."""
    client, requests = scripted(httpx.Response(200, headers=IMAGE))
    with client, pytest.raises(errors.InvalidOption, match="quality") as refusal:
        client.upscale(b"x", quality=0)
    with pytest.raises(errors.InvalidOption, match="nonsense"):
        client.upscale(b"x", nonsense=1)
    assert refusal.value.facts["errors"]
    assert requests == []


def test_it_waits_as_the_server_says(clock):
    """429 and 503 are tried again after ``Retry-After``, the whole image each time, with the time that is left."""
    client, requests = scripted(
        problem(errors.QueueFull("", retry_after=7)),
        problem(errors.Draining("", retry_after=2)),
        httpx.Response(200, headers=IMAGE, content=b"pixels"),
    )
    with client:
        assert client.upscale(b"original", timeout=100).content == b"pixels"
    assert clock.pauses == [7, 2]
    assert [body for _, body in requests] == [b"original"] * 3
    assert [request.url.params["timeout_ms"] for request, _ in requests] == ["100000", "93000", "91000"]


def test_what_will_not_change_is_not_tried_again(clock):
    """A refusal of the request, and a bug of the server's."""
    for error in (errors.InvalidImage(""), errors.InternalError(""), errors.DeadlineExceeded("")):
        client, requests = scripted(problem(error))
        with client, pytest.raises(type(error)):
            client.upscale(b"x")
        assert len(requests) == 1
    assert clock.pauses == []


def test_a_full_queue_is_waited_for_until_the_deadline(clock):
    """Then its own error is raised, without waiting in vain."""
    client, requests = scripted(problem(errors.QueueFull("", retry_after=40)))
    with client, pytest.raises(errors.QueueFull):
        client.upscale(b"x", timeout=100)
    assert clock.pauses == [40, 40]
    assert len(requests) == 3


def test_a_lost_connection_is_tried_again(clock):
    """At once, then less and less often, as long as patience lasts; then the error says what happened."""
    client, _ = scripted(
        httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.Response(200, headers=IMAGE, content=b"pixels")
    )
    with client:
        assert client.upscale(b"x").content == b"pixels"
    assert clock.pauses == [0.25, 0.5]
    client, _ = scripted(httpx.ConnectError("refused"))
    clock.pauses.clear()
    with client, pytest.raises(ServerUnreachable, match="refused"):
        client.upscale(b"x")
    assert 50 < sum(clock.pauses) <= 60
    assert max(clock.pauses) == 4


def test_a_proxy_without_a_server_is_a_server_that_is_away(clock):
    """A page in the place of a problem document is not mistaken for an answer."""
    html = {"Content-Type": "text/html"}
    client, _ = scripted(
        httpx.Response(502, headers=html, content=b"<html>"),
        httpx.Response(200, headers=IMAGE, content=b"pixels"),
    )
    with client:
        assert client.upscale(b"x").content == b"pixels"
    assert clock.pauses == [5]
    client, _ = scripted(httpx.Response(404, headers=html, content=b"<html>"))
    with client, pytest.raises(errors.RequestError, match="404"):
        client.upscale(b"x")
    client, _ = scripted(httpx.Response(200, headers=html, content=b"<html>"))
    with client, pytest.raises(errors.ServiceError, match="200"):
        client.upscale(b"x")


def test_an_answer_goes_into_a_file_and_starts_over_after_a_break(clock):
    """Nothing of the broken answer is left, and what stood before it in the file stays."""

    def breaks():
        def stream():
            yield b"broken answer, longer than the good one"
            raise httpx.ReadError("reset")

        return httpx.Response(200, headers=IMAGE, content=stream())

    client, _ = scripted(breaks, httpx.Response(200, headers=IMAGE, content=b"pixels"))
    file = io.BytesIO()
    file.write(b"mine:")
    with client:
        answer = client.upscale(b"x", into=file)
    assert file.getvalue() == b"mine:pixels"
    assert (answer.content, answer.variant) == (b"", "small-x2")
    assert clock.pauses == [0.25]


def mixed(*parts, end=b"--"):
    """A ``multipart/mixed`` answer of (headers, content) pairs."""
    body = b"--B"
    for headers, content in parts:
        body += b"\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        body += b"\r\n" + content + b"\r\n--B"
    headers = {"Content-Type": "multipart/mixed; boundary=B", "X-Request-Id": "one"}
    return httpx.Response(200, headers=headers, content=body + end)


JSON = ({"Content-Type": "application/json"}, b'{"state":"running","tile":1,"tiles":2,"more":1}')


def test_a_streamed_answer_that_ends_early_is_tried_again(clock):
    """The progress of both attempts is told."""
    steps = []
    client, _ = scripted(mixed(JSON, end=b""), mixed(JSON, (IMAGE, b"pixels")))
    with client:
        answer = client.upscale(b"x", on_progress=steps.append)
    assert (answer.content, answer.request_id, answer.variant) == (b"pixels", "one", "small-x2")
    assert steps == [Progress("running", tile=1, tiles=2)] * 2
    assert clock.pauses == [0.25]


def test_a_streamed_problem_is_raised_and_heeded(clock):
    """Also with its ``Retry-After``, which stands in its part."""
    full = errors.OutOfMemory("", retry_after=3)
    document = {"Content-Type": "application/problem+json", "Retry-After": "3"}
    client, _ = scripted(
        mixed(JSON, (document, json.dumps(full.problem()).encode())),
        mixed(JSON, (document, json.dumps(errors.InvalidImage("broken").problem()).encode())),
    )
    with client, pytest.raises(errors.InvalidImage, match="broken"):
        client.upscale(b"x", on_progress=lambda _step: None)
    assert clock.pauses == [3]


def test_a_key_is_sent():
    """As bearer token, with every request."""
    seen = []

    def answer(request):
        seen.append(request.headers["authorization"])
        return problem(errors.Unauthorized(""))

    with (
        Client("http://test/", api_key="secret", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(errors.Unauthorized),
    ):
        client.variants()
    assert seen == ["Bearer secret"]


def test_an_address_that_is_none_is_one_sentence():
    """The same class as for a server that is not there."""
    with Client("nonsense") as client, pytest.raises(ServerUnreachable):
        client.upscale(b"x")
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
        client.variants()


def test_leaving_stops_the_work_on_the_server(tmp_path):
    """Cancelling the task is enough."""
    upscaler = ScriptedUpscaler()

    async def go():
        app = scripted_app(tmp_path, lightweight_x2=upscaler)
        async with running(app), AsyncClient("http://localhost", transport=httpx.ASGITransport(app)) as client:
            upscaler.gate.close()
            task = asyncio.create_task(client.upscale(png(noise(300, 300))))
            await asyncio.to_thread(upscaler.gate.wait_until_reached)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            upscaler.gate.open()

    asyncio.run(go())
    assert sum(map(len, upscaler.calls)) < 9


CONTENT = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"--B", b"\r\n--A", b"\r\n\r\n", b"\r\n--", b"-"])


@given(parts=st.lists(CONTENT, min_size=1, max_size=4), size=st.integers(1, 50), preamble=st.booleans())
def test_parts_do_not_depend_on_how_they_come(parts, size, preamble):
    """Any cut of the body into chunks gives the same parts, byte by byte."""
    body = (b"ignored\r\n" if preamble else b"") + b"--B"
    for content in parts:
        body += b"\r\nContent-Type: image/png\r\n\r\n" + content.replace(b"\r\n--B", b"") + b"\r\n--B"
    body += b"--\r\n"
    splitter, found = MultipartSplitter("B"), []
    for start in range(0, len(body), size):
        for event in splitter.feed(body[start : start + size]):
            if isinstance(event, httpx.Headers):
                assert event["content-type"] == "image/png"
                found.append(b"")
            elif event is not None:
                found[-1] += event
    assert found == [content.replace(b"\r\n--B", b"") for content in parts]

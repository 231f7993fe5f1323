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
import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from app import errors
from app.client import AsyncClient, Client, Options, Progress, ServerUnreachable
from app.client.images import encode_array, open_image
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
    monkeypatch.setattr("app.client.retries.time", clock)
    monkeypatch.setattr("app.client.clients.time", clock)
    monkeypatch.setattr("app.client.retries.random.uniform", lambda low, _high: low)
    return clock


def scripted(*answers, **options):
    """A client whose server gives these answers in turn, the last one for ever, and the requests that it got."""
    requests = []

    def answer(request):
        requests.append((request, request.read()))
        reply = answers[min(len(requests), len(answers)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply() if callable(reply) else reply

    return Client("http://test", transport=httpx.MockTransport(answer), **options), requests


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


@pytest.mark.slow
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
    assert set(chosen) - {"variant"} <= set(Options.__annotations__)


def test_an_image_is_returned_with_the_servers_facts(served, tmp_path):
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


def test_pil_images_and_arrays_are_sent_without_loss(served, tmp_path):
    """As the same pixels in a file, 16 bits and alpha included; the result is a PIL image again."""
    body = png(PICTURE)
    (tmp_path / "photo.png").write_bytes(body)
    deep = PICTURE.astype(np.uint16) * 257
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 128, np.uint8)])

    async def work(client):
        with Image.open(tmp_path / "photo.png") as image:
            images = [image.copy(), PICTURE, PICTURE[::-1][::-1], deep, rgba, PICTURE[:, :, 0], memoryview(body)]
            return [await client.upscale(each) for each in images]

    pillow, array, view, deep_result, rgba_result, gray, raw = served(work)
    for answer in (pillow, array, view, raw):
        np.testing.assert_array_equal(np.asarray(answer.image()), enlarged(PICTURE))
    assert deep_result.content[24] == 16  # bits of a PNG's samples
    assert rgba_result.image().mode == "RGBA"
    assert gray.image().mode == "L"
    assert gray.image().size == (40, 300)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_a_pil_image_of_every_mode_is_sent_unchanged(mode):
    """With its pixels, profile, EXIF and resolution."""
    image = Image.new("I;16", (4, 3), 40_000) if mode == "I;16" else Image.fromarray(PICTURE[:3, :4]).convert(mode)
    image.info |= {"icc_profile": b"profile", "dpi": (300, 300)}
    image.getexif()[0x010E] = "about"
    with open_image(image) as file, Image.open(file) as sent:
        assert (sent.mode, sent.size) == (mode, (4, 3))
        np.testing.assert_array_equal(np.asarray(sent.convert("RGB" if mode == "P" else mode)),
                                      np.asarray(image.convert("RGB" if mode == "P" else mode)))  # fmt: skip
        assert sent.info["icc_profile"] == b"profile"
        assert sent.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert sent.getexif()[0x010E] == "about"


SIDE = st.integers(1, 6)


@given(
    pixels=npst.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 6), st.integers(1, 6))
        | st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    )
)
def test_an_array_is_sent_as_the_same_pixels(pixels):
    """For every size, number of channels and depth; another decoder reads the same values."""
    decoded = imagecodecs.png_decode(encode_array(pixels))
    np.testing.assert_array_equal(decoded.reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((8, 8, 3)), ValueError, r"array of float64 with the shape \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"shape \(3, 8, 8\)"),
        (np.zeros((0, 8), np.uint8), ValueError, "no pixels"),
        (Image.new("I", (2, 2), 70_000), ValueError, "mode I"),
        (io.StringIO("text"), TypeError, "mode 'rb'"),
        (None, TypeError, "NoneType"),
        ("gone.png", FileNotFoundError, "gone.png"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_sent(image, error, words):
    """With what it is, and what to give."""
    client, requests = scripted(httpx.Response(200, headers=IMAGE))
    with client, pytest.raises(error, match=words):
        client.upscale(image)
    assert requests == []


def test_an_image_that_went_into_a_file_is_not_decoded(monkeypatch):
    """The message names its place; without Pillow it says what to install."""
    client, _ = scripted(httpx.Response(200, headers=IMAGE, content=b"pixels"))
    with client:
        answer = client.upscale(b"x", into=io.BytesIO())
        kept = client.upscale(b"x")
    with pytest.raises(ValueError, match="written into a file"):
        answer.image()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        kept.image()


def test_new_headers_are_read():
    """Steps, restoration, precision and quality, if the server reports them."""
    more = {"Steps": "small-jpeg; small-x2", "Restored": "small-jpeg; quality=42", "Precision": "high", "Quality": "81"}
    headers = {**IMAGE, **{f"X-Swin2SR-{name}": value for name, value in more.items()}}
    client, _ = scripted(
        httpx.Response(200, headers=headers, content=b"x"), httpx.Response(200, headers=IMAGE, content=b"x")
    )
    with client:
        told, silent = client.upscale(b"x"), client.upscale(b"x")
    assert (told.steps, told.restored, told.precision, told.quality) == (*list(more.values())[:3], 81)
    assert (silent.steps, silent.restored, silent.precision, silent.quality) == ("", "", "", None)


def test_options_reach_the_server(served):
    """Sizes, formats, and the notices of the output format."""

    async def work(client):
        return await client.upscale(
            png(noise(8, 8)), variant="x2", width=10, format="jpeg", quality=80, ensemble=True, tile="auto"
        )

    answer = served(work)
    assert pixels_of(answer.content).shape == (10, 10, 3)
    assert answer.media_type == "image/jpeg"


def test_progress_is_reported(served):
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
    """The class, its fields and its message, with and without progress."""

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
    with pytest.raises(errors.InvalidOption, match=r"^nonsense: unknown option; valid options: variant, width"):
        client.upscale(b"x", nonsense=1)
    with pytest.raises(errors.InvalidOption, match=r"^options: max_bytes needs a lossy format"):
        client.upscale(b"x", max_bytes=1000)
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
    """The pauses become longer, up to 4 s; a server that has answered before is waited for during ``retry_window``."""
    client, requests = scripted(
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.Response(200, headers=IMAGE, content=b"pixels"),
        httpx.ConnectError("refused"),
    )
    with client:
        assert client.upscale(b"x").content == b"pixels"
        assert clock.pauses == [0.25, 0.5]
        clock.pauses.clear()
        with pytest.raises(
            ServerUnreachable, match=r"Lost the connection to http://test.*retry_window\): refused"
        ) as lost:
            client.upscale(b"x")
    assert 50 < sum(clock.pauses) <= 60
    assert max(clock.pauses) == 4
    assert lost.value.request_id == requests[-1][0].headers["x-request-id"]


@pytest.mark.parametrize("call", [lambda client: client.upscale(b"x"), lambda client: client.variants()])
def test_a_server_that_never_answered_is_not_waited_for_long(clock, call):
    """Within ``connect_timeout``, with the URL and what to check, as an error of the tree and a ConnectionError."""
    client, _ = scripted(httpx.ConnectError("refused"))
    with client, pytest.raises(errors.ServerUnreachable, match=r"http://test within 5 s \(connect_timeout\): refused"):
        call(client)
    assert 2 < sum(clock.pauses) <= 5
    assert issubclass(errors.ServerUnreachable, ConnectionError)
    assert issubclass(errors.ServerUnreachable, errors.ServiceError)
    assert errors.ServerUnreachable is ServerUnreachable
    client, _ = scripted(httpx.ConnectError("refused"), connect_timeout=100)
    clock.pauses.clear()
    with client, pytest.raises(errors.ServerUnreachable, match="within 100 s"):
        call(client)
    assert 90 < sum(clock.pauses) <= 100


def test_a_connection_that_hangs_counts_from_its_start(clock):
    """A first attempt that takes the whole ``connect_timeout`` is the last one."""

    def hang(_request):
        clock.now += 5
        raise httpx.ConnectTimeout("timed out")

    with (
        Client("http://test", transport=httpx.MockTransport(hang)) as client,
        pytest.raises(ServerUnreachable, match="timed out"),
    ):
        client.upscale(b"x")
    assert clock.pauses == []


def test_the_list_of_variants_is_waited_for_like_an_image(clock):
    """Also through a restart of a server that has answered before."""
    listed = httpx.Response(200, json={"default": "x2", "variants": []})
    client, _ = scripted(listed, httpx.ConnectError("refused"), problem(errors.Draining("", retry_after=3)), listed)
    with client:
        assert client.variants().default == client.variants().default == "x2"
    assert clock.pauses == [0.25, 3]
    client, _ = scripted(httpx.ReadTimeout("silent"))
    with client, pytest.raises(ServerUnreachable, match="silent"):
        client.variants()


def test_timeout_ms_shortens_the_timeout(clock):
    """The smaller of the two is the deadline, which the server gets and which ends the waiting."""
    client, requests = scripted(problem(errors.QueueFull("", retry_after=2)))
    with client:
        with pytest.raises(errors.QueueFull):
            client.upscale(b"x", timeout_ms=5000)
        assert clock.pauses == [2, 2]
        with pytest.raises(errors.QueueFull):
            client.upscale(b"x", timeout=3, timeout_ms=5000)
        client, late = scripted(httpx.ReadTimeout("late"))
        with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.5 s.*timeout_ms") as exceeded:
            client.upscale(b"x", timeout_ms=500)
    assert [request.url.params["timeout_ms"] for request, _ in requests] == ["5000", "3000", "1000", "3000", "1000"]
    assert exceeded.value.request_id == late[0][0].headers["x-request-id"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("-inf")])
def test_a_timeout_that_is_none_is_refused(seconds):
    """Of the client and of one image; an infinite one is as long as sockets allow."""
    with pytest.raises(ValueError, match=r"timeout=.* must be above 0 seconds"):
        Client(timeout=seconds)
    client, requests = scripted(httpx.Response(404))
    with client:
        with pytest.raises(ValueError, match=r"timeout=.* must be above 0 seconds"):
            client.upscale(b"x", timeout=seconds)
        with pytest.raises(errors.ServiceError):
            client.upscale(b"x", timeout=float("inf"))
    assert 9e8 < int(requests[0][0].url.params["timeout_ms"]) <= 1e9


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(errors.UnknownVariant("")), errors.UnknownVariant),
        (httpx.Response(404, content=b"<html>"), errors.RequestError),
        (httpx.Response(200, headers={"Content-Type": "text/html"}, content=b"<html>"), errors.ServiceError),
    ],
)
def test_every_error_has_a_request_id(reply, kind):
    """That of the problem document; else the one that the client sent. Options that are wrong get one too."""
    client, requests = scripted(reply)
    with client:
        with pytest.raises(kind) as refused:
            client.upscale(b"x")
        with pytest.raises(errors.InvalidOption) as invalid:
            client.upscale(b"x", quality=0)
        with pytest.raises(kind) as listed:
            client.variant("x3")
    sent = [request.headers["x-request-id"] for request, _ in requests]
    named = reply.headers.get("content-type") == "application/problem+json"
    assert [refused.value.request_id, listed.value.request_id] == (["id", "id"] if named else sent)
    assert invalid.value.request_id


def test_the_request_id_is_in_the_servers_log(served, caplog):
    """The id of an error finds the line of the request."""

    async def work(client):
        with caplog.at_level("INFO", "app.access"), pytest.raises(errors.UnknownVariant) as unknown:
            await client.upscale(png(noise(8, 8)), "x3")
        return unknown.value

    identity = served(work).request_id
    assert any(identity in str(record.__dict__) for record in caplog.records)


def test_a_proxy_without_a_server_is_a_server_that_is_away(clock):
    """An HTML page instead of a problem document is not taken as an answer."""
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
    """The progress of both attempts is reported."""
    steps = []
    client, _ = scripted(mixed(JSON, end=b""), mixed(JSON, (IMAGE, b"pixels")))
    with client:
        answer = client.upscale(b"x", on_progress=steps.append)
    assert (answer.content, answer.request_id, answer.variant) == (b"pixels", "one", "small-x2")
    assert steps == [Progress("running", tile=1, tiles=2)] * 2
    assert clock.pauses == [0.25]


def test_a_streamed_problem_is_raised_and_heeded(clock):
    """Also with its ``Retry-After``, which is a header of its part."""
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
    with Client("nonsense") as client, pytest.raises(ServerUnreachable, match="'nonsense' is not the URL of a server"):
        client.upscale(b"x")
    with pytest.raises(ValueError, match="is not a URL"):
        Client("http://127.0.0.1:many")
    with (
        Client("http://127.0.0.1:1", connect_timeout=0.5) as client,
        pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"),
    ):
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

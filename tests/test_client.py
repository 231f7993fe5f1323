"""The client with a whole service: images, options, progress and errors; and the distribution of the client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app import errors
from app.client import AsyncClient, Options, Progress
from app.schemas import UpscaleOptions
from tests.scripted import ScriptedUpscaler
from tests.service import enlarged, noise, pixels_of, png, running, scripted_app

ROOT = Path(__file__).parents[1]
PICTURE = noise(150, 20)


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


def test_the_request_id_is_in_the_servers_log(served, caplog):
    """The id of an error finds the line of the request."""

    async def work(client):
        with caplog.at_level("INFO", "app.access"), pytest.raises(errors.UnknownVariant) as unknown:
            await client.upscale(png(noise(8, 8)), "x3")
        return unknown.value

    identity = served(work).request_id
    assert any(identity in str(record.__dict__) for record in caplog.records)


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

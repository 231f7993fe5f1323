"""From bytes to bytes: every kind of image through networks of one and three channels, tiled and whole."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from app.codec import DecodeLimits, EncodeOptions, Image, decode, encode
from app.errors import DeadlineExceeded, ImageTooLarge, InvalidImage, InvalidOption, OutputTooLarge, QueueFull
from app.http.uploads import Upload
from app.pipeline import Caller
from app.schemas import UpscaleOptions
from app.service import build_service
from app.settings import Settings
from tests.scripted import PATIENCE, ScriptedUpscaler, loading, model_dir
from tests.service import SMALL, enlarged, noise, pixels_of, png, png_header


@pytest.fixture
def build(tmp_path):
    """Makes services around one scripted upscaler, called ``classical-x2``."""
    made = []

    def make(upscaler, **settings):
        folder = model_dir(tmp_path / f"models{len(made)}", "classical-x2")
        chosen = {**SMALL, "variants": "classical-x2", "model_dir": folder, "device": "cpu", **settings}
        service = build_service(Settings(**chosen), loading(classical_x2=upscaler))
        service.batcher.start()
        made.append(service)
        return service

    yield make
    for service in made:
        asyncio.run(service.close())


def upscale(service, body, *, timeout=PATIENCE, on_progress=None, **options):
    caller = Caller(time.monotonic() + timeout, on_progress=on_progress)
    return asyncio.run(service.pipeline.upscale(Upload(body, "a.png"), UpscaleOptions(**options), caller))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (60, 131), (200, 300)])
@pytest.mark.parametrize(("have", "channels"), [(3, 3), (1, 3), (1, 1), (3, 1)])
def test_any_size_and_color_is_enlarged(build, size, have, channels):
    """Padding is cropped, tiles are joined, gray stays gray and colour keeps its chroma."""
    pixels = noise(*size, have)
    if (have, channels) == (3, 1):  # chroma is enlarged smoothly, so only flat colours are exact
        pixels = np.broadcast_to(pixels[:1, :1], pixels.shape)
    upscaled = upscale(build(ScriptedUpscaler(channels=channels)), png(pixels))
    np.testing.assert_array_equal(pixels_of(upscaled.encoded.body), enlarged(pixels).squeeze(2 if have == 1 else ()))
    assert (upscaled.variant, upscaled.scale, upscaled.pixels) == ("classical-x2", 2, size[0] * size[1])


class RoundingDevice(ScriptedUpscaler):
    """Computes by itself, and rounds what it is told to.

    Attributes:
        dtypes: of every launch after the warm-up.
    """

    runs_ahead = rounds = True

    def __init__(self, **options):
        super().__init__(**options)
        self.dtypes = []

    def launch(self, tiles, dtypes=None):
        self.dtypes.append(dtypes)
        values = self.forward(tiles)
        rounded = [
            each if dtype is None else np.rint(each * np.iinfo(dtype).max).astype(dtype)
            for each, dtype in zip(values, dtypes or [None] * len(tiles), strict=True)
        ]
        return Done(rounded)


class Done:
    """A batch that is computed."""

    def __init__(self, values):
        self._values = values

    def fraction_done(self):
        return 1.0

    def results(self):
        return self._values


@pytest.mark.parametrize(
    ("pixels", "channels", "options", "rounded"),
    [
        (noise(20, 30), 3, {}, "uint8"),
        (noise(20, 30, 1), 1, {}, "uint8"),
        (noise(20, 30, 1), 3, {}, None),
        (noise(20, 30), 3, {"ensemble": True}, None),
        (noise(200, 300), 3, {}, None),
    ],
    ids=["one tile", "gray", "gray by a color network", "ensemble", "tiles"],
)
def test_a_device_rounds_what_nobody_blends(build, pixels, channels, options, rounded):
    """One tile whose channels stay; what is averaged, converted or joined comes as float32. The image is the same."""
    device = RoundingDevice(channels=channels)
    body = upscale(build(device), png(pixels), **options).encoded.body
    np.testing.assert_array_equal(pixels_of(body), enlarged(pixels).squeeze(2 if pixels.shape[2] == 1 else ()))
    assert {dtype and str(dtype) for dtypes in device.dtypes for dtype in dtypes or [None]} == {rounded}


def test_a_single_result_does_not_wait_behind_the_tiles_of_a_large_image(build):
    """While the thread that stitches is held, an image of one tile is finished."""
    service, gate = build(ScriptedUpscaler()), threading.Event()
    held = service.pipeline._stitching.submit(gate.wait, PATIENCE)
    pixels = noise(20, 30)
    np.testing.assert_array_equal(pixels_of(upscale(service, png(pixels)).encoded.body), enlarged(pixels))
    assert not held.done()
    gate.set()
    assert held.result(PATIENCE)


def test_a_large_image_is_computed_in_tiles(build):
    """No call is over the budget, and the answer says how many tiles there were."""
    upscaler = ScriptedUpscaler()
    upscaled = upscale(build(upscaler), png(noise(200, 300)))
    assert upscaled.tiles == sum(len(call) for call in upscaler.calls) == 6
    assert all(height <= 128 and width <= 128 for call in upscaler.calls for height, width in call)


def test_smaller_tiles_can_be_asked_for(build):
    """The same image, more tiles."""
    upscaler = ScriptedUpscaler()
    service = build(upscaler)
    pixels = noise(100, 120)
    assert upscale(service, png(pixels)).tiles == 1
    upscaled = upscale(service, png(pixels), tile=64)
    assert upscaled.tiles == 9
    np.testing.assert_array_equal(pixels_of(upscaled.encoded.body), enlarged(pixels))


def test_sixteen_bits_stay_sixteen_bits(build):
    """No step reduces the values to 8 bits."""
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    body = encode(Image(pixels), EncodeOptions()).body
    upscaled = upscale(build(ScriptedUpscaler()), body)
    seen = decode(upscaled.encoded.body, DecodeLimits()).pixels
    assert seen.dtype == np.uint16
    np.testing.assert_array_equal(seen, enlarged(pixels))


def test_transparency_goes_through_the_network(build):
    """As gray of its own, tile by tile beside the colours."""
    pixels = np.concatenate([noise(150, 40), np.maximum(noise(150, 40, 1, seed=1), 1)], axis=2)
    upscaler = ScriptedUpscaler()
    upscaled = upscale(build(upscaler), png(pixels))
    np.testing.assert_array_equal(pixels_of(upscaled.encoded.body), enlarged(pixels))
    assert sum(len(call) for call in upscaler.calls) == 2 * upscaled.tiles


def test_a_constant_transparency_is_not_computed(build):
    """It is the same everywhere in the answer too."""
    pixels = np.concatenate([noise(20, 20), np.full((20, 20, 1), 77, np.uint8)], axis=2)
    upscaler = ScriptedUpscaler()
    upscaled = upscale(build(upscaler), png(pixels))
    np.testing.assert_array_equal(pixels_of(upscaled.encoded.body), enlarged(pixels))
    assert sum(len(call) for call in upscaler.calls) == 1


def test_at_scale_one_transparency_is_kept_bit_by_bit(build):
    """Restoration is about colours; nothing is computed for it."""
    pixels = np.concatenate([noise(20, 20), noise(20, 20, 1)], axis=2)
    upscaler = ScriptedUpscaler(scale=1)
    upscaled = upscale(build(upscaler), png(pixels))
    np.testing.assert_array_equal(pixels_of(upscaled.encoded.body)[:, :, 3], pixels[:, :, 3])
    assert sum(len(call) for call in upscaler.calls) == 1


def test_the_ensemble_averages_eight_turns(build):
    """A network that favours a direction is averaged out; each tile is computed eight times."""

    class Slanted(ScriptedUpscaler):
        def forward(self, tiles):
            outputs = super().forward(tiles)
            for output in outputs:
                output[:, 0] += np.float32(0.4)  # the first column only
            return outputs

    upscaler = Slanted()
    upscaled = upscale(build(upscaler), png(np.full((16, 24, 3), 50, np.uint8)), ensemble=True)
    answer = pixels_of(upscaled.encoded.body).astype(int)
    assert sum(len(call) for call in upscaler.calls) == 8
    brighter = round(50 + 0.4 * 255 / 4)
    np.testing.assert_array_equal(answer[1:-1, 1:-1], 50)
    for edge in (answer[0, 1:-1], answer[-1, 1:-1], answer[1:-1, 0], answer[1:-1, -1]):
        np.testing.assert_allclose(edge, brighter, atol=1)


def test_the_answer_is_reduced_to_the_requested_size(build):
    """With its transparency."""
    pixels = np.concatenate([noise(40, 60), noise(40, 60, 1)], axis=2)
    upscaled = upscale(build(ScriptedUpscaler()), png(pixels), width=90)
    assert pixels_of(upscaled.encoded.body).shape == (60, 90, 4)


@pytest.mark.parametrize(("format", "media_type"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_the_answer_has_the_requested_format(build, format, media_type):  # noqa: A002
    """And says so."""
    upscaled = upscale(build(ScriptedUpscaler()), png(noise(8, 8)), format=format)
    assert upscaled.encoded.media_type == media_type
    assert pixels_of(upscaled.encoded.body).shape == (16, 16, 3)


def test_what_the_format_cannot_hold_is_refused_before_computing(build):
    """A WebP has 16383 pixels a side."""
    upscaler = ScriptedUpscaler()
    with pytest.raises(OutputTooLarge) as error:
        upscale(build(upscaler), png(noise(1, 9000)), format="webp")
    assert error.value.facts == {"limit": 16383, "actual": 18000}
    assert upscaler.calls == []


@pytest.mark.parametrize("size", [(1, 9000), (9000, 1)])
def test_what_the_format_cannot_hold_is_refused_from_the_header(build, size):
    """Without decoding a pixel, and whichever way the image stands."""
    with pytest.raises(OutputTooLarge) as error:
        upscale(build(ScriptedUpscaler()), png_header(*size), format="webp")
    assert error.value.facts == {"limit": 16383, "actual": 18000}


def test_a_size_that_cannot_be_reached_is_refused_from_the_header(build):
    """An own checkpoint of scale 2 runs at most three times; what it reaches is decoded."""
    service = build(ScriptedUpscaler())
    with pytest.raises(InvalidOption):
        upscale(service, png_header(40, 60), width=481)
    with pytest.raises(InvalidImage):
        upscale(service, png_header(40, 60), width=480)


def test_more_work_than_the_queue_holds_is_refused_from_the_header(build):
    """Without decoding a pixel: the broken rest of the file is never looked at."""
    service = build(ScriptedUpscaler(), max_queue_pixels=1_800_000)
    body = png_header(900, 900)
    with pytest.raises(ImageTooLarge) as error:
        upscale(service, body, tile=64)
    assert error.value.facts["limit"] == 1_800_000
    assert service.batcher.status().waiting_cost == 0


def test_a_full_queue_refuses_before_decoding(build):
    """While one image waits, a second one is refused."""
    upscaler = ScriptedUpscaler()
    service = build(upscaler, max_queue_requests=1)
    upscaler.gate.close()

    async def crowd():
        def start(body):
            caller = Caller(time.monotonic() + PATIENCE)
            return asyncio.create_task(service.pipeline.upscale(Upload(body, ""), UpscaleOptions(), caller))

        running = start(png(noise(8, 8)))
        await asyncio.to_thread(upscaler.gate.wait_until_reached)
        queued = threading.Event()
        caller = Caller(time.monotonic() + PATIENCE, on_progress=lambda _progress: queued.set())
        waiting = asyncio.create_task(service.pipeline.upscale(Upload(png(noise(8, 8)), ""), UpscaleOptions(), caller))
        assert await asyncio.to_thread(queued.wait, PATIENCE)
        hollow = png_header(64, 64)
        with pytest.raises(QueueFull):
            await start(hollow)
        upscaler.gate.open()
        await asyncio.gather(running, waiting)
        with pytest.raises(InvalidImage):
            await start(hollow)

    asyncio.run(crowd())


def test_the_deadline_is_answered_while_the_network_still_computes(build):
    """And what waits of the request never runs."""
    upscaler = ScriptedUpscaler()
    service = build(upscaler)
    upscaler.gate.close()

    async def exchange():
        loop = asyncio.get_running_loop()
        caller = Caller(time.monotonic() + PATIENCE)
        upload = Upload(png(noise(200, 300)), "")
        task = asyncio.create_task(service.pipeline.upscale(upload, UpscaleOptions(), caller))
        await asyncio.to_thread(upscaler.gate.wait_until_reached)
        loop.time = lambda now=loop.time: now() + PATIENCE
        await task

    with pytest.raises(DeadlineExceeded):
        asyncio.run(exchange())
    upscaler.gate.open()
    assert upscale(service, png(noise(8, 8))).tiles == 1
    assert len(upscaler.calls) == 2


def test_a_network_that_computes_nonsense_is_an_error_and_no_image(build):
    """Not a number is never rounded to a pixel."""

    class Broken(ScriptedUpscaler):
        def forward(self, tiles):
            return [output * np.float32(np.nan if self.calls else 1) for output in super().forward(tiles)]

    with pytest.raises(ValueError, match="finite"):
        upscale(build(Broken()), png(noise(8, 8)))


def test_progress_counts_tiles(build):
    """From queued to all done, never backwards."""
    seen = []
    upscale(build(ScriptedUpscaler()), png(noise(200, 300)), on_progress=seen.append)
    assert seen[0].state == "queued"
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert {each.total for each in seen} == {6}


def test_times_are_measured_by_stage(build):
    """Four stages, none negative."""
    seconds = upscale(build(ScriptedUpscaler()), png(noise(8, 8))).seconds
    assert set(seconds) == {"decode", "queue", "forward", "encode"}
    assert min(seconds.values()) >= 0


def test_the_upload_is_free_once_it_is_decoded(build):
    """Before the network has computed anything; its bytes are gone."""
    upscaler, decoded = ScriptedUpscaler(), threading.Event()
    service = build(upscaler)
    upload = Upload(png(noise(8, 8)), "")

    async def exchange():
        await service.registry.obtain(service.registry.resolve(None))
        upscaler.gate.close()
        caller = Caller(time.monotonic() + PATIENCE, on_decoded=decoded.set)
        task = asyncio.create_task(service.pipeline.upscale(upload, UpscaleOptions(), caller))
        await asyncio.to_thread(upscaler.gate.wait_until_reached)
        held = decoded.is_set(), upload.body
        upscaler.gate.open()
        await task
        return held

    assert asyncio.run(exchange()) == (True, b"")


def test_a_request_waits_before_encoding_until_its_response_fits(build):
    """Its deadline applies; then it holds exactly the bytes of its response, and of nothing else."""
    service = build(ScriptedUpscaler())
    body = png(noise(8, 8))

    async def exchange():
        with service.responses.open() as other, service.responses.open() as own, service.memory.open() as memory:
            await other.reserve(service.responses.limit)
            caller = Caller(time.monotonic() + 0.5, response=own)
            with pytest.raises(DeadlineExceeded):
                await service.pipeline.upscale(Upload(body, ""), UpscaleOptions(), caller)
            assert (own.held, service.memory.held) == (0, 0)
            caller = Caller(time.monotonic() + PATIENCE, response=own, memory=memory)
            task = asyncio.create_task(service.pipeline.upscale(Upload(body, ""), UpscaleOptions(), caller))
            await asyncio.wait([task], timeout=0.2)
            assert not task.done()
            other.set(0)
            upscaled = await task
            assert own.held == memory.held == len(upscaled.encoded.body)
        assert service.responses.held == service.memory.held == 0

    asyncio.run(exchange())


def test_requests_share_the_memory_and_wait_for_it(build):
    """What does not fit beside another request is decoded when that has ended."""
    upscaler, decoded = ScriptedUpscaler(), []
    service = build(upscaler)

    async def exchange():
        await service.registry.obtain(service.registry.resolve(None))
        service.memory.limit = 400_000  # more than one of them, less than two
        upscaler.gate.close()
        tasks = []
        for _ in range(2):
            upload = Upload(png(noise(60, 60)), "")
            caller = Caller(time.monotonic() + PATIENCE, on_decoded=lambda: decoded.append("an image"))
            tasks.append(asyncio.create_task(service.pipeline.upscale(upload, UpscaleOptions(), caller)))
        await asyncio.to_thread(upscaler.gate.wait_until_reached)
        while not service.batcher.status().waiting_requests:  # noqa: ASYNC110 - a queue has no event for it
            await asyncio.sleep(0.01)
        await asyncio.wait(tasks, timeout=0.2)
        held = service.batcher.status().waiting_requests, len(decoded)
        upscaler.gate.open()
        await asyncio.gather(*tasks)
        return held

    assert asyncio.run(exchange()) == (1, 1), "it holds its place in the queue, and is not decoded"
    assert [len(call) for call in upscaler.calls] == [1, 1]
    assert service.memory.held == 0

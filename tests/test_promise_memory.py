"""Promises 6 and 8: the service continues after the network, a device or the codec runs out of memory."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from app.batching.batch_budget import SUCCESSES_BEFORE_GROWTH, BatchBudget
from app.main import create_app
from app.settings import Settings
from model.gpu.pending import PendingBatch
from model.gpu.runner import GpuRunner
from model.upscaler import Upscaler
from tests.crowd import crowd, image_of
from tests.networks import tiny_network
from tests.scripted import Gate, ScriptedUpscaler, model_dir
from tests.service import SMALL, enlarged, noise, png, running, scripted_app


@pytest.fixture
def upscaler():
    return ScriptedUpscaler()


@pytest.fixture
def app(tmp_path, upscaler):
    return scripted_app(tmp_path, lightweight_x2=upscaler)


class SlowBatch(PendingBatch):
    """Has not arrived before another has left, or nobody asked for a while."""

    def __init__(self, batch, device):
        super().__init__(batch._packs)
        self._device, self._left, self._patience = device, len(device.calls), 20

    def fraction_done(self):
        self._patience -= 1
        return super().fraction_done() if self._patience < 0 or len(self._device.calls) > self._left else 0.0

    def results(self):
        self._device.under_way -= 1
        return super().results()


class Device(GpuRunner):
    """A GPU's forward pass on a CPU, behind a gate, with memory for so many pixels."""

    memory = 6400  # of the warm-up
    under_way = most_under_way = 0

    def launch(self, tiles, dtypes=None):
        batch = super().launch(tiles, dtypes)
        self.calls.append(len(tiles))
        self.gate.pass_through()
        if sum(tile.shape[0] * tile.shape[1] for tile in tiles) > self.memory:
            raise torch.OutOfMemoryError("planned failure")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return SlowBatch(batch, self)


@pytest.mark.slow
def test_promises_6_and_8_hold_where_a_device_computes_by_itself(tmp_path):
    """Images that wait together, more than there is memory for, with two batches under way, are what each is alone."""
    upscaler = Upscaler(tiny_network("lightweight_x4"), device="cpu")
    images = [noise(*size, seed=index) for index, size in enumerate([(8, 8), (31, 17), (40, 40), (1, 1), (64, 64)])]
    expected = [upscaler([image])[0] for image in images]
    device = Device(upscaler.network, torch.float32, capture_sizes=(4, 16))
    device.gate, device.calls, upscaler._on_gpu = Gate(), [], device
    folder = model_dir(tmp_path, "lightweight-x2")
    chosen = Settings(**SMALL, variants="lightweight-x2", model_dir=folder, device="cpu")
    app = create_app(chosen, load=lambda _name, _path: upscaler)

    async def scenario():
        async with crowd(app, device.gate) as visitors:
            await visitors.hold()
            waiting = await visitors.queue(*(images * 8))
            await visitors.release()
            return waiting, app.state.service.batcher.status()

    waiting, status = asyncio.run(scenario())
    for connection, right in zip(waiting, expected * 8, strict=True):
        assert np.abs(image_of(connection).astype(int) - right).max() <= 1
    assert status.out_of_memory > 0
    assert device.most_under_way == 2


@pytest.mark.slow
def test_promise_8_out_of_memory_is_survived(app, upscaler):
    """What does not fit together is computed apart, pixel by pixel right; the budget learns, and all stays ready."""
    upscaler.memory = 3000
    images = [noise(40, 40, seed=seed) for seed in range(6)]  # 1600 pixels each: one fits, two do not

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            await visitors.hold()
            waiting = await visitors.queue(*images)
            await visitors.release()
            return waiting, app.state.service.batcher.status(), app.state.service.reasons_not_ready()

    waiting, status, reasons = asyncio.run(scenario())
    for pixels, connection in zip(images, waiting, strict=True):
        np.testing.assert_array_equal(image_of(connection), enlarged(pixels))
    assert reasons == []
    assert status.batch_budget < 3000
    assert status.out_of_memory >= 2
    assert "swin2sr_out_of_memory_total" in app.state.service.metrics.exposition().decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_promise_8_a_tile_that_cannot_run_is_503_with_advice(app, upscaler, error):
    """After a second try; the other one gets its image, and the next request is served."""

    def fault(tile):
        if tile.shape[0] > 100:
            raise error

    upscaler.fault = fault

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            starved, fed = await asyncio.gather(
                client.post("/v1/upscale", files={"file": png(noise(120, 100))}),
                client.post("/v1/upscale", files={"file": png(noise(20, 20))}),
            )
            return starved, fed, await client.get("/health/ready")

    starved, fed, ready = asyncio.run(scenario())
    assert (starved.status_code, starved.json()["code"]) == (503, "out_of_memory")
    assert "tile" in starved.json()["detail"]
    assert int(starved.headers["retry-after"]) >= 1
    assert fed.status_code == ready.status_code == 200
    assert upscaler.calls.count([(120, 104)]) == 2


def test_promise_8_no_memory_to_decode_or_encode_is_503_too(app, monkeypatch):
    """Wherever it runs out."""

    def starve(*_args):
        raise MemoryError

    monkeypatch.setattr("app.imaging.encoding.encode", starve)

    async def scenario():
        async with running(app) as client:
            return await client.post("/v1/upscale", files={"file": png(noise(8, 8))})

    response = asyncio.run(scenario())
    assert (response.status_code, response.json()["code"]) == (503, "out_of_memory")


def test_promise_8_the_budget_grows_back():
    """After a run of successes, step by step, and never over what was configured."""
    budget = BatchBudget(1000)
    budget.shrink(900)
    budget.shrink(400)
    assert (budget.current, budget.failures) == (200, 2)
    for _ in range(SUCCESSES_BEFORE_GROWTH):
        budget.succeed()
    assert budget.current == 250
    for _ in range(20 * SUCCESSES_BEFORE_GROWTH):
        budget.succeed()
    assert budget.current == 1000


STARVED = """
import asyncio, resource, sys
import numpy as np
from app.main import create_app
from app.variants.registry import ModelRegistry
from app.service import RESTART_SECONDS, STALL_SECONDS
from app.settings import Settings
from app.variants.loaded_model import TileJob
from model.gpu.pending import PendingBatch
from model.gpu.runner import GpuRunner
from model.upscaler import Upscaler
from tests.networks import tiny_network
from tests.service import SMALL, noise, png, running
from tests.scripted import model_dir
chosen = {**SMALL, "tile_size": 1024, "max_input_pixels": 900_000, "variants": "lightweight-x2", "device": "cpu"}
settings = Settings(**chosen, model_dir=model_dir(__import__("pathlib").Path(sys.argv[1]), "lightweight-x2"), threads=1)
app = create_app(settings, load=lambda *_: Upscaler(tiny_network("lightweight_x4")))
async def main():
    async with running(app) as client:
        await app.state.service.boot(lambda: None)
        small = {"file": png(noise(40, 40))}
        before = await client.post("/v1/upscale", files=small)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
        large = await client.post("/v1/upscale", files={"file": png(noise(900, 900))})
        after = await client.post("/v1/upscale", files=small)
        ready = await client.get("/health/ready")
        print(large.status_code, large.json()["code"], after.content == before.content, ready.status_code)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_promise_8_a_real_allocator_that_refuses_is_survived(tmp_path):
    """With 150 MB of address space left a real network cannot hold a large image; the next one is as before."""
    assert resource.RLIMIT_AS
    command = [sys.executable, "-c", STARVED, str(tmp_path)]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.stdout.strip() == "503 out_of_memory True 200", result.stderr[-2000:]

"""Promises on a real network: what is served computes as what is measured, shows that it goes on, also on a device."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
import torch

from app.main import create_app
from app.registry import ModelRegistry
from app.settings import Settings
from app.weights import Piece
from model import fused
from model.gpu.forward import Forward
from model.scratch import Scratch
from model.upscaler import Upscaler
from tests.networks import needs_kernel, tiny_network
from tests.scripted import model_dir
from tests.service import SMALL, noise, pixels_of, png, running


@pytest.fixture
def computed(monkeypatch):
    """What a network does one after the other: "block" and "convolution" by the kernel, with how many threads."""
    done = []
    for name, function in (("block", "run"), ("convolution", "convolve")):
        whole = getattr(fused, function)

        def note(*args, name=name, whole=whole):
            done.append((name, torch.get_num_threads()))
            return whole(*args)

        monkeypatch.setattr(fused, function, note)
    return done


@needs_kernel
def test_promise_13_a_real_network_beats_before_every_block(computed):
    """So that a forward pass of minutes shows that it goes on."""
    registry = ModelRegistry(("small-x2",), device="cpu", beat=lambda: computed.append(("beat", 0)))
    upscaler = asyncio.run(registry.obtain(registry.resolve("small-x2"))).upscaler
    computed.clear()
    registry.forward("", [Piece(upscaler, noise(16, 16))])
    registry.close()
    order = [name for name, _ in computed]
    assert order.count("block") == sum(upscaler.config.depths)
    assert ("block", "block") not in itertools.pairwise(order)
    assert order[-1] == "beat", "the head's layers have their own"


@needs_kernel
def test_promise_20_the_service_computes_as_its_network_alone(tmp_path, computed):
    """By the kernel, in memory that is reused, with as many threads as it was told: no hook keeps that out."""
    app = create_app(Settings(variants="small-x2", device="cpu", threads=3, cache_dir=tmp_path))
    registry = app.state.service.registry

    async def scenario():
        async with running(app) as client:
            network = (await registry.obtain(registry.resolve("small-x2"))).upscaler.network
            network.scratch = Scratch()
            computed.clear()
            answer = await client.post("/v1/upscale", content=png(noise(16, 24)), headers={"Content-Type": "image/png"})
            return answer.status_code, list(computed), network

    status, served, network = asyncio.run(scenario())
    assert status == 200
    assert [name for name, _ in served] == (["block"] * 2 + ["convolution"]) * 3 + ["convolution"]
    assert {threads for _, threads in served} == {3}
    assert network.scratch.nbytes > 0


class StarvingForward(Forward):
    """As on a GPU, and with memory for so many pixels."""

    memory = 6400  # of the warm-up

    def launch(self, tiles):
        if sum(tile.shape[0] * tile.shape[1] for tile in tiles) > self.memory:
            raise torch.OutOfMemoryError("as it was told")
        return super().launch(tiles)


def test_promises_6_and_8_hold_where_a_device_computes_by_itself(tmp_path):
    """Images that wait together, more than there is memory for, are what each is alone, but for ties by one level."""
    upscaler = Upscaler(tiny_network("lightweight_x4"), device="cpu")
    images = [noise(*size, seed=index) for index, size in enumerate([(8, 8), (31, 17), (40, 40), (1, 1), (64, 64)])]
    expected = [upscaler([image])[0] for image in images]
    upscaler._on_gpu = StarvingForward(upscaler.network, torch.float32, counts=(4, 16))
    folder = model_dir(tmp_path, "lightweight-x2")
    settings = Settings(**SMALL, variants="lightweight-x2", model_dir=folder, device="cpu")
    app = create_app(settings, load=lambda _name, _path: upscaler)

    async def scenario():
        async with running(app) as client:
            headers = {"Content-Type": "image/png"}
            asked = [client.post("/v1/upscale", content=png(image), headers=headers) for image in images * 4]
            return await asyncio.gather(*asked), app.state.service.batcher.status()

    answers, status = asyncio.run(scenario())
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    for answer, right in zip(answers, expected * 4, strict=True):
        assert np.abs(pixels_of(answer.content).astype(int) - right).max() <= 1
    assert status.out_of_memory > 0

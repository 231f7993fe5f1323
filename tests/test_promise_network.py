"""Promises 13 and 20 on a real network: the service computes the same as the benchmark, and shows progress."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import torch

from app.batching.runner import BatchRunner
from app.main import create_app
from app.settings import Settings
from app.variants.loaded_model import TileJob
from app.variants.registry import ModelRegistry
from model import cpu_kernel
from tests.networks import needs_kernel
from tests.service import noise, png, running


@pytest.fixture
def computed(monkeypatch):
    """What a network does one after the other: "block" and "convolution" by the kernel, with how many threads."""
    done = []
    for name, function in (("block", "run"), ("convolution", "convolve")):
        whole = getattr(cpu_kernel, function)

        def note(*args, name=name, whole=whole):
            done.append((name, torch.get_num_threads()))
            return whole(*args)

        monkeypatch.setattr(cpu_kernel, function, note)
    return done


@needs_kernel
def test_promise_13_a_real_network_beats_before_every_block(computed):
    """So that a forward pass of minutes shows progress."""
    registry = ModelRegistry(("small-x2",), device="cpu", heartbeat=lambda: computed.append(("beat", 0)))
    upscaler = asyncio.run(registry.obtain(registry.resolve("small-x2"))).upscaler
    computed.clear()
    BatchRunner(registry.device, 1)("", [TileJob(upscaler, noise(16, 16))])
    registry.close()
    order = [name for name, _ in computed]
    assert order.count("block") == sum(upscaler.config.depths)
    assert ("block", "block") not in itertools.pairwise(order)
    assert order[-1] == "beat", "the head's layers have their own"


@needs_kernel
def test_promise_20_the_service_computes_as_its_network_alone(tmp_path, computed):
    """By the kernel, with the configured number of threads; no hook prevents that."""
    app = create_app(Settings(variants="small-x2", device="cpu", threads=3, cache_dir=tmp_path))
    registry = app.state.service.registry

    async def scenario():
        async with running(app) as client:
            await registry.obtain(registry.resolve("small-x2"))
            computed.clear()
            answer = await client.post("/v1/upscale", content=png(noise(16, 24)), headers={"Content-Type": "image/png"})
            return answer.status_code, list(computed)

    status, served = asyncio.run(scenario())
    assert status == 200
    assert [name for name, _ in served] == (["block"] * 2 + ["convolution"]) * 3 + ["convolution"]
    assert {threads for _, threads in served} == {3}

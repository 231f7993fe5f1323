"""Promises 2, 3, 6, 10, 11 and 18: which images share a batch, and what each request gets from it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching.batcher import Batcher
from app.main import create_app
from app.settings import Settings
from model.upscaler import Upscaler
from tests.connections import Connection
from tests.crowd import crowd, image_of
from tests.networks import tiny_network
from tests.scripted import PATIENCE, Gate, ScriptedUpscaler, model_dir
from tests.service import SMALL, enlarged, noise, png, scripted_app


@pytest.fixture
def upscaler():
    return ScriptedUpscaler()


@pytest.fixture
def app(tmp_path, upscaler):
    return scripted_app(tmp_path, lightweight_x2=upscaler)


def test_promise_2_what_waits_shares_the_next_batch(app, upscaler):
    """With the first call held and ten more queued, the log reads one, then the ten together."""

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            await visitors.hold()
            waiting = await visitors.queue(*(noise(16, 16, seed=seed) for seed in range(10)))
            await visitors.release()
            return waiting

    waiting = asyncio.run(scenario())
    assert [len(call) for call in upscaler.calls] == [1, 10]
    for seed, connection in enumerate(waiting):
        np.testing.assert_array_equal(image_of(connection), enlarged(noise(16, 16, seed=seed)))


def test_promise_3_a_large_image_shares_batches_with_small_ones(app, upscaler):
    """No call is over the budget, every tile runs once, and what a large image's tile leaves, small ones fill."""

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            await visitors.hold()
            await visitors.queue(noise(150, 110), *(noise(8, 8) for _ in range(6)))
            await visitors.release()

    asyncio.run(scenario())
    sizes = [[height * width for height, width in call] for call in upscaler.calls]
    assert all(sum(call) <= 128**2 for call in sizes)
    assert sorted(size for call in sizes for size in call)[:7] == [64] * 7
    assert any(64 in call and max(call) > 64 for call in sizes)
    assert sum(map(len, sizes)) == 7 + 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 10), min_size=1, max_size=6)), max_size=12),
    st.integers(10, 30),
)
def test_promise_3_cost_is_what_is_bounded(requests, budget):
    """Whatever is asked: no batch is over its budget or of two keys, every job runs once, and gets its own result."""
    calls, gate = [], Gate(is_open=False)

    def run(key, items):
        calls.append((key, items))
        gate.pass_through()
        return [(key, item) for item in items]

    batcher = Batcher(run, int, max_batch_cost=budget, max_queue_cost=10_000, max_queue_requests=100)
    batcher.start()
    submissions = [(key, items, batcher.admit(key, items)) for key, items in requests]
    gate.open()
    for key, items, submission in submissions:
        assert [future.result(PATIENCE) for future in submission.futures] == [(key, item) for item in items]
    assert batcher.close(PATIENCE)
    assert all(sum(items) <= budget for _, items in calls)
    ran = sorted((key, item) for key, items in calls for item in items)
    assert ran == sorted((key, item) for key, items in requests for item in items)


class Gated:
    """A real network behind a gate."""

    def __init__(self, network):
        self._upscaler = Upscaler(network)
        self.gate, self.calls = Gate(), []
        self.scale, self.window_size = self._upscaler.scale, self._upscaler.window_size
        self.channels, self.device, self.precision = 3, "cpu", "exact"
        self.bytes_per_pixel, self.runs_ahead = self._upscaler.bytes_per_pixel, False

    def forward(self, tiles):
        self.calls.append(len(tiles))
        self.gate.pass_through()
        return self._upscaler.forward(tiles)


def test_promise_6_neighbours_do_not_matter(tmp_path):
    """A real network's answers, alone and in one batch with others: equal but for rounding ties by one level."""
    network = Gated(tiny_network("lightweight_x4"))
    folder = model_dir(tmp_path, "lightweight-x2")
    chosen = Settings(**SMALL, variants="lightweight-x2", model_dir=folder, device="cpu")
    app = create_app(chosen, load=lambda _name, _path: network)
    images = [noise(*size, seed=index) for index, size in enumerate([(8, 8), (31, 17), (40, 40), (1, 1), (64, 24)])]

    async def scenario():
        async with crowd(app, network.gate) as visitors:
            alone = []
            for image in images:
                alone += await visitors.queue(image)
                await visitors.release()
            await visitors.hold()
            together = await visitors.queue(*images)
            await visitors.release()
            return alone, together

    alone, together = asyncio.run(scenario())
    assert network.calls[-1] == len(images)
    for one, other in zip(alone, together, strict=True):
        difference = np.abs(image_of(one).astype(int) - image_of(other))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.001


def test_promise_10_the_deadline_is_answered_on_time(app, upscaler):
    """504 while the network still computes another's image, and the late one never runs."""

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            await visitors.hold()
            (late,) = await visitors.queue(noise(24, 24), query="timeout_ms=200")
            await late.wait_for(b"deadline_exceeded")
            standing = upscaler.gate.is_open
            waiting = app.state.service.batcher.status().waiting_requests
            await visitors.release()
            return standing, waiting

    assert asyncio.run(scenario()) == (False, 0)
    assert upscaler.calls == [[(8, 8)]]


def test_promise_11_leaving_ends_a_running_tiled_job_at_the_next_batch(app, upscaler):
    """Of 6 tiles one runs; the others are dropped, and the neighbour in the queue notices nothing."""

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            upscaler.gate.close()
            leaver = visitors.send(Connection(png(noise(200, 300)), {"content-type": "image/png"}))
            await asyncio.to_thread(upscaler.gate.wait_until_reached)
            (neighbour,) = await visitors.queue(noise(24, 24))
            leaver.leave()
            async with asyncio.timeout(PATIENCE):
                await visitors.tasks[0]
            await visitors.release()
            return leaver, neighbour

    leaver, neighbour = asyncio.run(scenario())
    assert len(upscaler.calls) == 2
    assert upscaler.calls[1] == [(24, 24)]
    np.testing.assert_array_equal(image_of(neighbour), enlarged(noise(24, 24)))
    assert leaver.status in (0, 499)
    assert "swin2sr_inflight_requests 0.0" in app.state.service.metrics.exposition().decode()


def test_promise_18_batches_add_up(app, upscaler):
    """The sum of batch sizes is what the network computed successfully, faults and splits included."""
    done = []

    def fault(tile):
        if tile[0, 0, 0] == 13 and upscaler.calls:
            raise ArithmeticError

    forward = upscaler.forward
    upscaler.fault = fault
    upscaler.forward = lambda tiles: done.append(forward(tiles)) or done[-1]
    bad = np.full((16, 16, 3), 13, np.uint8)

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            await visitors.hold()
            await visitors.queue(noise(16, 16), bad, noise(200, 300), noise(24, 24), bad)
            await visitors.release()

    asyncio.run(scenario())
    executed = sum(len(outputs) for outputs in done[2:])  # after the warm-up
    counted = app.state.service.metrics.exposition().decode()
    assert f"swin2sr_batch_images_sum {float(executed)}" in counted
    assert executed == 1 + 1 + 6 + 1

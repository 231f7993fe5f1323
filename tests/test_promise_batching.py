"""Promises 2 to 8, 10, 11, 13, 14 and 18: what is batched, in which order, and what happens when something fails.

The whole application runs, with all of its middleware; a scripted upscaler replaces the network.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.batching.batch_budget import SUCCESSES_BEFORE_GROWTH, BatchBudget
from app.batching.batcher import Batcher
from app.errors import InternalError, NotReady, OutOfMemory, QueueFull
from app.imaging import encoding
from app.main import create_app
from app.service import RESTART_SECONDS, STALL_SECONDS
from app.settings import Settings
from model.gpu.pending import PendingBatch
from model.gpu.runner import GpuRunner
from model.upscaler import Upscaler
from tests.connections import Connection
from tests.networks import tiny_network
from tests.scripted import PATIENCE, Gate, ScriptedUpscaler, join_workers, model_dir
from tests.service import SMALL, enlarged, noise, pixels_of, png, running, scripted_app

ASKING = {"accept": "multipart/mixed", "content-type": "image/png"}


class Crowd:
    """Requests that wait in the queue while the network holds the first one.

    Args:
        app: with the variant ``lightweight-x2``.
        gate: what holds the network's calls.
    """

    def __init__(self, app, gate):
        self.app, self.gate = app, gate
        self.tasks = []

    def send(self, connection):
        self.tasks.append(asyncio.create_task(self.app(connection.scope, connection.receive, connection.send)))
        return connection

    async def hold(self):
        self.gate.close()
        held = self.send(Connection(png(noise(8, 8)), ASKING))
        await asyncio.to_thread(self.gate.wait_until_reached)
        return held

    async def queue(self, *images, headers=ASKING, query=""):
        connections = []
        for image in images:
            body = image if isinstance(image, bytes) else png(image)
            connections.append(self.send(Connection(body, headers, query)))
            await connections[-1].wait_for(b'"state":"queued"')
        return connections

    async def release(self):
        self.gate.open()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self.tasks)


@asynccontextmanager
async def crowd(app, gate):
    """A crowd before a booted application."""
    async with running(app):
        await app.state.service.boot(lambda: None)
        yield Crowd(app, gate)


def image_of(connection):
    """The image in a ``multipart/mixed`` answer, or None."""
    start = bytes(connection.body).find(b"\x89PNG")
    return None if start < 0 else pixels_of(bytes(connection.body)[start:])


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


class Stream:
    """Work that grows back: with each batch that runs, as much is asked for again.

    Args:
        renew: asks for more.
    """

    def __init__(self, renew):
        self.calls, self.renew, self.open = [], renew, True

    def __call__(self, key, items):
        self.calls.append((key, list(items)))
        if self.open:
            self.renew()
        return items


@pytest.mark.parametrize(
    ("stream", "victim", "bound"),
    [
        ({"key": "a", "items": [1]}, {"key": "a", "items": [10, 10, 10]}, 3),
        ({"key": "a", "items": [10] * 5}, {"key": "a", "items": [1]}, 20),
        ({"key": "a", "items": [10]}, {"key": "b", "items": [10, 10, 10]}, 2),
        ({"key": "a", "items": [3], "client": "busy"}, {"key": "a", "items": [10, 10, 10], "client": "other"}, 2),
    ],
    ids=["small before large", "large before small", "another variant", "another key"],
)
def test_promise_4_no_request_starves(stream, victim, bound):
    """Before a stream that never ends, a request waits for one piece of each that came before it, and no longer.

    Twenty came before; those of another variant or another key delay it by one batch, and so do small ones, ten of
    which go into one.
    """

    def renew():
        for _ in range(5):
            batcher.admit(**stream)

    run = Stream(renew)
    batcher = Batcher(run, int, max_batch_cost=10, max_queue_cost=100_000, max_queue_requests=10_000)
    batcher._worker.thread._started = True  # admitted before the thread runs, so that the order is exact
    for _ in range(20):
        batcher.admit(**stream)
    submission = batcher.admit(**victim)
    batcher._worker.thread._started = False
    batcher.start()
    submission.futures[0].result(PATIENCE)
    run.open = False
    assert batcher.close(PATIENCE)
    first = next(
        index for index, (key, items) in enumerate(run.calls) if key == victim["key"] and victim["items"][0] in items
    )
    assert first <= bound


def unstarted(**limits):
    """A batcher that admits requests and runs none, so that what waits is exact."""
    batcher = Batcher(lambda _key, items: items, int, **{"max_batch_cost": 100, **limits})
    batcher._worker.thread._started = True
    return batcher


def test_promise_4_a_single_key_may_use_the_whole_queue():
    """While no other key waits, one key is bounded by the queue alone."""
    batcher = unstarted(max_queue_cost=100, max_queue_requests=100)
    for _ in range(10):
        batcher.admit("a", [10], client="only")
    with pytest.raises(QueueFull) as refusal:
        batcher.admit("a", [10], client="only")
    assert refusal.value.facts == {"reason": "pixels", "limit": 100, "actual": 110}


def test_promise_4_a_key_that_filled_the_queue_locks_no_other_key_out():
    """What it holds beyond half does not count against a key that has nothing waiting; then it may add nothing."""
    batcher = unstarted(max_queue_cost=100, max_queue_requests=100)
    for _ in range(10):
        batcher.admit("a", [10], client="greedy")
    batcher.admit("a", [40], client="other")
    for client in ("greedy", "other"):
        with pytest.raises(QueueFull):
            batcher.reserve(1, client=client)
    with batcher.reserve(10, client="third"):
        assert batcher.status().waiting_cost == 150
    with pytest.raises(QueueFull):
        batcher.reserve(11, client="third")


def test_promise_4_keys_that_wait_together_share_the_queue():
    """A key with a waiting request may hold at most what the keys together leave free."""
    batcher = unstarted(max_queue_cost=100, max_queue_requests=100)
    batcher.admit("a", [10], client="other")
    for _ in range(4):
        batcher.admit("a", [10], client="greedy")
    with pytest.raises(QueueFull, match="Your share of the queue is full") as refusal:
        batcher.admit("a", [20], client="greedy")
    assert refusal.value.facts == {"reason": "share", "limit": 50, "actual": 60}


def test_promise_4_requests_are_shared_as_pixels_are():
    """The number of waiting requests has the same rules."""
    batcher = unstarted(max_queue_cost=10_000, max_queue_requests=10)
    for _ in range(10):
        batcher.admit("a", [1], client="greedy")
    with pytest.raises(QueueFull, match="10 requests"):
        batcher.admit("a", [1], client="greedy")
    batcher.admit("a", [1], client="other")
    with pytest.raises(QueueFull, match="10 requests"):
        batcher.admit("a", [1], client="greedy")


def test_promise_5_a_request_that_can_never_run_blocks_no_other(tmp_path, upscaler):
    """An image whose tiles the queue can never hold gets 413 with the limit, and who comes after it is served."""
    app = scripted_app(tmp_path, {"max_queue_pixels": 1_800_000}, lightweight_x2=upscaler)

    async def scenario():
        async with running(app) as client:
            impossible = await client.post("/v1/upscale?tile=64", files={"file": png(noise(900, 900))})
            return impossible, await client.post("/v1/upscale", files={"file": png(noise(8, 8))})

    impossible, behind = asyncio.run(scenario())
    assert (impossible.status_code, impossible.json()["code"]) == (413, "image_too_large")
    assert impossible.json()["limit"] == 1_800_000 < impossible.json()["actual"]
    assert behind.status_code == 200


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


def test_promise_7_one_bad_item_hurts_itself_alone(app, upscaler, monkeypatch):
    """Of five in a batch one fails in the network, one in encoding, one never decoded: the others get their images."""
    bad_forward, bad_encode = np.full((16, 16, 3), 13, np.uint8), noise(24, 24)

    def fault(tile):
        if (tile == 13).all():
            raise ArithmeticError("thirteen")

    def encode(image, options):
        if image.width == 48:
            raise ArithmeticError("forty-eight")
        return real(image, options)

    upscaler.fault = fault
    from app import codec

    real = codec.encode
    monkeypatch.setattr("app.pipeline.codec.encode", encode)
    good = [noise(16, 16, seed=seed) for seed in range(3)]

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            await visitors.hold()
            waiting = await visitors.queue(good[0], bad_forward, good[1], bad_encode, good[2])
            broken = visitors.send(Connection(png(noise(16, 16))[:200], ASKING))
            await broken.wait_for(b"invalid_image")
            await visitors.release()
            return waiting, broken

    waiting, broken = asyncio.run(scenario())
    assert broken.status == 400
    assert len(upscaler.calls[1]) == 5
    for connection in (waiting[1], waiting[3]):
        assert b'"code":"internal_error"' in connection.body
        assert b"thirteen" not in connection.body
        assert b"forty" not in connection.body
    for pixels, connection in zip(good, waiting[::2], strict=True):
        np.testing.assert_array_equal(image_of(connection), enlarged(pixels))


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


def test_promise_9_a_refusal_does_not_wait_for_the_codec(tmp_path, upscaler, monkeypatch):
    """While every thread that encodes is held and the queue is full, 429 comes at once; all others are served."""
    gate = Gate()
    encode = encoding.encode
    monkeypatch.setattr("app.imaging.encoding.encode", lambda *work: gate.pass_through() or encode(*work))
    app = scripted_app(tmp_path, {"max_queue_requests": 2}, lightweight_x2=upscaler)
    service = app.state.service

    async def scenario():
        async with running(app) as client:
            await service.boot(lambda: None)
            gate.close()

            def send():
                return asyncio.create_task(client.post("/v1/upscale", files={"file": png(noise(8, 8))}))

            taken = []
            for _ in range(service.pipeline._pool._max_workers):
                taken.append(send())
                await asyncio.to_thread(gate.wait_until_reached)
            taken += [send(), send()]
            async with asyncio.timeout(PATIENCE / 2):
                while service.batcher.status().waiting_requests < 2:  # noqa: ASYNC110 - nobody is told of a place
                    await asyncio.sleep(0)
                refused = await send()
            gate.open()
            return refused, await asyncio.gather(*taken)

    refused, served = asyncio.run(scenario())
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert [answer.status_code for answer in served] == [200] * len(served)


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


def test_promise_13_a_frozen_worker_makes_it_not_ready(tmp_path, upscaler):
    """Silence beyond the bound is a reason with its length; much more of it asks for a restart; then all is well."""
    ahead = [0.0]
    app = scripted_app(tmp_path, clock=lambda: time.monotonic() + ahead[0], lightweight_x2=upscaler)

    async def scenario():
        async with crowd(app, upscaler.gate) as visitors:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

                async def ask():
                    return [(await client.get(f"/health/{each}")).status_code for each in ("ready", "live")]

                seen = []
                await visitors.hold()
                for ahead[0] in (0.0, STALL_SECONDS + 1, RESTART_SECONDS + 1):
                    seen.append(await ask())
                reason = (await client.get("/health/ready")).json()["detail"]
                await visitors.release()
                return [*seen, await ask()], reason

    seen, reason = asyncio.run(scenario())
    assert seen == [[200, 200], [503, 200], [503, 503], [200, 200]]
    assert "sent no heartbeat" in reason


def test_promise_13_a_slow_worker_that_progresses_stays_ready(tmp_path):
    """A network that sends heartbeats is not frozen, however long a batch takes."""
    ahead, slow = [0.0], ScriptedUpscaler()
    app = scripted_app(tmp_path, clock=lambda: time.monotonic() + ahead[0], lightweight_x2=slow)
    service = app.state.service

    async def scenario():
        async with crowd(app, slow.gate) as visitors:
            await visitors.hold()
            reasons = []
            for _ in range(100):
                ahead[0] += STALL_SECONDS - 1
                reasons += service.reasons_not_ready()
                service.registry._heartbeat()
            running = service.batcher.status().running_seconds
            await visitors.release()
            return reasons, running

    reasons, running_seconds = asyncio.run(scenario())
    assert reasons == []
    assert running_seconds > 100 * (STALL_SECONDS - 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_promise_13_a_worker_that_stopped_is_reported(app, upscaler):
    """After five deaths in a row it is neither ready nor alive, each with the reason; requests are refused at once."""

    def die(_tile):
        if upscaler.calls:  # the warm-up is over
            raise SystemExit

    upscaler.fault = die

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            body = {"file": png(noise(8, 8))}
            dead = [await client.post("/v1/upscale", files=body) for _ in range(5)]
            refused = await client.post("/v1/upscale", files=body)
            return dead, refused, [await client.get(f"/health/{each}") for each in ("ready", "live")]

    dead, refused, (ready, live) = asyncio.run(scenario())
    join_workers()
    assert [answer.status_code for answer in (*dead, refused, ready, live)] == [503] * 8
    assert len(upscaler.calls) == 5
    assert "the worker is not running" in ready.json()["detail"]
    assert "has stopped and is not restarted" in live.json()["detail"]


@pytest.mark.parametrize("stage", ["cost", "count", "progress", "result"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_promise_14_a_fault_in_any_stage_ends_every_request(stage):
    """In the cost function, in counting, in telling progress, in who takes a result: every caller gets an answer."""
    broken, gate = [True], Gate(is_open=False)

    def fail(*_args):
        if broken[0]:
            raise ArithmeticError

    def cost(item):
        if stage == "cost":
            fail()
        return item

    batcher = Batcher(
        lambda _key, items: gate.pass_through() or items,
        cost,
        max_batch_cost=9,
        max_queue_cost=99,
        max_queue_requests=9,
        restart_delay=0.0,
        on_batch=fail if stage == "count" else lambda _report: None,
    )
    batcher.start()
    on_progress = (lambda each: each.state == "running" and fail()) if stage == "progress" else None
    if stage == "cost":
        with pytest.raises(ArithmeticError):
            batcher.admit("a", [1])
    else:
        (future,) = batcher.admit("a", [1], on_progress=on_progress).futures
        if stage == "result":
            future.add_done_callback(fail)
        gate.open()
        assert future.exception(PATIENCE) is None
    broken[0] = False
    gate.open()
    assert batcher.admit("a", [2]).futures[0].result(PATIENCE) == 2
    assert batcher.status().waiting_requests == 0
    assert batcher.close(PATIENCE)
    join_workers()


FATES = {
    "fine": (None, {type(None)}),
    "fault": (ArithmeticError, {InternalError}),
    "starved": (MemoryError, {OutOfMemory}),
    "deadly": (SystemExit, {NotReady}),
}
"""What happens to a batch with such an item, and which error its caller gets."""


def outcome(future):
    try:
        return type(future.exception(PATIENCE))
    except CancelledError:
        return CancelledError


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@example([("a", ["starved", "deadly", "fine", "fine"], False)])  # a death while halves of a failed batch wait
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.lists(st.sampled_from([*FATES, *["fine"] * 6]), min_size=1, max_size=5),
            st.booleans(),
        ),
        max_size=12,
    )
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_promise_14_every_future_is_resolved_exactly_once(requests):
    """Every caller gets its result, its own error, that of the dead worker, or its cancellation."""
    gate, resolved = Gate(is_open=False), []

    def run(_key, items):
        gate.pass_through()
        for fate in items:
            if FATES[fate][0]:
                raise FATES[fate][0]
        return items

    batcher = Batcher(
        run, lambda _fate: 1, max_batch_cost=4, max_queue_cost=100, max_queue_requests=100, restart_delay=0.0
    )
    batcher.start()
    submissions = [(batcher.admit(key, fates), fates, leaves) for key, fates, leaves in requests]
    futures = [future for submission, _, _ in submissions for future in submission.futures]
    for future in futures:
        future.add_done_callback(resolved.append)
    for submission, _, leaves in submissions[1:]:
        if leaves:
            submission.cancel()
    gate.open()
    deaths = {NotReady} if any("deadly" in fates for _, fates, _ in submissions) else set()
    for index, (submission, fates, leaves) in enumerate(submissions):
        if index == 0 and leaves:
            submission.cancel()  # while it runs
        for future, fate in zip(submission.futures, fates, strict=True):
            assert outcome(future) in FATES[fate][1] | deaths | ({CancelledError} if leaves else set())
    assert batcher.close(PATIENCE)
    join_workers()
    assert sorted(map(id, resolved)) == sorted(map(id, futures))

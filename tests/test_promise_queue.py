"""Promises 4, 5 and 9: how long a request waits in the queue, and which requests are refused."""

from __future__ import annotations

import asyncio

import pytest

from app.batching.batcher import Batcher
from app.errors import QueueFull
from app.imaging import encoding
from tests.scripted import PATIENCE, Gate, ScriptedUpscaler
from tests.service import noise, png, running, scripted_app


@pytest.fixture
def upscaler():
    return ScriptedUpscaler()


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

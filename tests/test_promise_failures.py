"""Promises 7, 13 and 14: an image that fails, a worker that freezes, and a worker that dies."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError

import httpx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.batching.batcher import Batcher
from app.errors import InternalError, NotReady, OutOfMemory
from app.service import RESTART_SECONDS, STALL_SECONDS
from tests.connections import Connection
from tests.crowd import ASKING, crowd, image_of
from tests.scripted import PATIENCE, Gate, ScriptedUpscaler, join_workers
from tests.service import enlarged, noise, png, running, scripted_app


@pytest.fixture
def upscaler():
    return ScriptedUpscaler()


@pytest.fixture
def app(tmp_path, upscaler):
    return scripted_app(tmp_path, lightweight_x2=upscaler)


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

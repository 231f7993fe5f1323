"""Requests in the queue: limits, reserved places, deadlines, cancellation, progress and unused results."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from app.batching.jobs import JobProgress
from app.errors import DeadlineExceeded, ImageTooLarge, QueueFull
from tests.scripted import PATIENCE, Clock, results


def test_a_full_queue_refuses_with_the_time_it_needs(make, script, hold):
    """All of a request is admitted or nothing; the limit is in the answer, and Retry-After is a whole number."""
    batcher = make(max_queue_cost=10)
    hold(batcher)
    batcher.admit("a", [4, 4])
    with pytest.raises(QueueFull) as refusal:
        batcher.admit("a", [1, 2])
    assert refusal.value.facts == {"reason": "pixels", "limit": 10, "actual": 11}
    assert isinstance(refusal.value.retry_after, int)
    assert 1 <= refusal.value.retry_after <= 60
    assert batcher.status().waiting_cost == 8
    assert results_after(script, batcher.admit("a", [2])) == [20]


def results_after(script, submission):
    script.gate.open()
    return results(submission)


def test_requests_are_bounded_as_pixels_are(make, hold):
    """The number of waiting requests has a limit of its own."""
    batcher = make(max_queue_requests=2)
    hold(batcher)
    for _ in range(2):
        batcher.admit("a", [1])
    with pytest.raises(QueueFull, match="2 requests"):
        batcher.admit("a", [1])


def test_retry_after_follows_the_measured_speed(make, script, hold):
    """Twenty waiting at two a second are ten seconds."""
    clock = Clock()
    batcher = make(max_queue_cost=20, clock=clock)

    def take_time(items):
        clock.now += sum(items) / 2

    script.fault = take_time
    results(batcher.admit("a", [10]))
    hold(batcher)
    batcher.admit("a", [10, 10])
    with pytest.raises(QueueFull) as refusal:
        batcher.admit("a", [1])
    assert refusal.value.retry_after == 10


def test_a_request_that_can_never_run_is_refused_at_once(make):
    """A job over a batch, or a request over the queue, is refused with the limit, even by an idle server."""
    batcher = make(max_queue_cost=25)
    with pytest.raises(ImageTooLarge) as refusal:
        batcher.admit("a", [11])
    assert refusal.value.facts == {"limit": 10, "actual": 11}
    with pytest.raises(ImageTooLarge) as refusal:
        batcher.admit("a", [9, 9, 9])
    assert refusal.value.facts == {"limit": 25, "actual": 27}
    assert results(batcher.admit("a", [1])) == [10]


def test_a_reserved_place_counts_until_it_is_used_or_given_back(make, hold):
    """A reservation is kept, and what is not used is released."""
    batcher = make(max_queue_cost=10)
    hold(batcher)
    with batcher.reserve(8) as reservation:
        with pytest.raises(QueueFull):
            batcher.admit("a", [3])
        batcher.admit("a", [8], reservation=reservation)
    assert batcher.status().waiting_cost == 8
    with pytest.raises(QueueFull):
        batcher.reserve(3)
    with batcher.reserve(2):
        assert batcher.status().waiting_cost == 10
    assert batcher.status().waiting_cost == 8


def test_more_than_was_reserved_is_admitted_like_anything_else(make, hold):
    """A place is a promise for its cost and no more."""
    batcher = make(max_queue_cost=10)
    hold(batcher)
    with batcher.reserve(4) as reservation:
        batcher.admit("a", [5], reservation=reservation)
    with batcher.reserve(5) as reservation, pytest.raises(QueueFull):
        batcher.admit("a", [6], reservation=reservation)
    assert batcher.status().waiting_cost == 5


def test_a_request_that_leaves_frees_its_place_and_never_runs(make, script, hold):
    """Cancelled jobs are dropped from the queue at once."""
    batcher = make(max_queue_cost=10)
    hold(batcher)
    leaving = batcher.admit("a", [5, 5])
    leaving.cancel()
    assert batcher.status().waiting_cost == 0
    staying = batcher.admit("a", [7])
    script.gate.open()
    assert results(staying) == [70]
    assert script.calls == [("a", [7])]
    for future in leaving.futures:
        with pytest.raises(CancelledError):
            future.result(0)


def test_a_running_request_that_leaves_stops_at_the_next_batch(make, script):
    """What runs is finished, what waits of the same request is not."""
    batcher = make(max_batch_cost=2)
    script.gate.close()
    submission = batcher.admit("a", [2, 2, 2])
    script.gate.wait_until_reached()
    submission.cancel()
    script.gate.open()
    assert submission.futures[0].result(PATIENCE) == 20
    assert results(batcher.admit("a", [1])) == [10]
    assert script.calls == [("a", [2]), ("a", [1])]


def test_a_job_whose_deadline_has_passed_is_not_run(make, script, hold):
    """It is answered with the deadline's error; the others run."""
    clock = Clock()
    batcher = make(clock=clock)
    hold(batcher)
    late = batcher.admit("a", [1], deadline=105.0)
    early = batcher.admit("a", [2], deadline=115.0)
    clock.now = 105.0
    script.gate.open()
    with pytest.raises(DeadlineExceeded):
        results(late)
    assert results(early) == [20]
    assert script.calls == [("a", [2])]


def test_progress_has_the_place_and_the_share_done(make, script, hold):
    """Queued with a position that only falls, then running with jobs done of all."""
    batcher = make(max_batch_cost=4)
    hold(batcher)
    seen = []
    done = threading.Event()

    def watch(progress):
        seen.append(progress)
        if progress.done == progress.total:
            done.set()

    before = [batcher.admit("a", [4]) for _ in range(2)]
    batcher.admit("a", [4, 4], on_progress=watch)
    script.gate.open()
    for submission in before:
        results(submission)
    assert done.wait(PATIENCE)
    assert seen == [
        JobProgress("queued", 3, 0, 2),
        JobProgress("queued", 2, 0, 2),
        JobProgress("queued", 1, 0, 2),
        JobProgress("running", 0, 0, 2),
        JobProgress("running", 0, 1, 2),
        JobProgress("running", 0, 2, 2),
    ]


def test_queue_time_and_forward_time_are_separate(make, script, hold):
    """Waiting is the time between admission and result that was not spent in a batch of one's own."""
    clock = Clock()
    batcher = make(clock=clock, max_batch_cost=4)

    def take_time(_items):
        clock.now += 3

    hold(batcher)
    script.fault = take_time
    other = batcher.admit("a", [4])
    submission = batcher.admit("a", [4])
    clock.now += 5
    script.gate.open()
    results(other)
    results(submission)
    assert (submission.queue_seconds, submission.forward_seconds) == (5 + 3 + 3, 3)


def test_a_request_whose_results_are_not_used_gets_no_turn(make, script):
    """Two results may be unused; the others wait until some are released, and the worker serves other requests."""
    batcher = make(max_batch_cost=1)
    slow = batcher.admit("a", [1] * 5, result_window=2)
    assert [slow.futures[index].result(PATIENCE) for index in (0, 1)] == [10, 10]
    assert results(batcher.admit("a", [1])) == [10]
    assert results(batcher.admit("b", [1])) == [10]
    assert not slow.futures[2].done()
    assert batcher.status().seconds_since_beat == 0, "nothing can be done, so silence is no fault"
    slow.release(1)
    assert slow.futures[2].result(PATIENCE) == 10
    slow.release(3)
    assert results(slow) == [10] * 5
    assert len(script.calls) == 7


def test_a_request_that_waits_for_its_consumer_can_be_cancelled(make):
    """Its jobs are dropped, and releasing afterwards changes nothing."""
    batcher = make(max_batch_cost=1)
    slow = batcher.admit("a", [1] * 3, result_window=1)
    slow.futures[0].result(PATIENCE)
    slow.cancel()
    slow.release(1)
    assert batcher.status().waiting_cost == 0
    assert slow.futures[1].cancelled()
    assert results(batcher.admit("a", [1])) == [10]

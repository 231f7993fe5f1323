"""A device that computes by itself is given the next batch while it has one; what it has is ended in order, once."""

from __future__ import annotations

import threading

import pytest

from app.batching.batch import Batch
from app.batching.jobs import Job, Submission
from app.batching.worker import PREFETCH_S
from app.errors import DeadlineExceeded, InternalError, NotReady, OutOfMemory
from tests.scripted import PATIENCE, Clock, batchers, results


class Launched:
    """A batch on the device: multiplied by ten when the test says so."""

    def __init__(self, items, others, fault):
        self.items, self.fault = items, fault
        self.behind = sum(not other.over.is_set() for other in others)
        self.before_ending = sum(not other.ended for other in others)
        self.over, self.ended, self.done = threading.Event(), False, 0.0
        self.polls = threading.Semaphore(0)

    def fraction_done(self):
        self.polls.release()
        return 1.0 if self.over.is_set() else self.done

    def results(self):
        assert self.over.wait(PATIENCE), "the test did not let the device finish"
        self.ended = True
        if self.fault is not None:
            raise self.fault
        return [item * 10 for item in self.items]


class Device:
    """Takes batches and computes them by itself.

    Attributes:
        launched: all batches, in order; each knows how many it came behind, and before how many were ended.
        faults: by the items of a batch, what its results will raise, once each.
        at_once: whether batches are over as soon as they come.
    """

    def __init__(self):
        self.launched, self.faults, self.at_once = [], {}, False
        self._came, self._seen = threading.Semaphore(0), 0

    def __call__(self, _key, items):
        batch = Launched(items, self.launched, self.faults.pop(tuple(items), None))
        if self.at_once:
            batch.over.set()
        self.launched.append(batch)
        self._came.release()
        return batch

    def wait_for_batch(self):
        """The next batch, when it has come."""
        assert self._came.acquire(timeout=PATIENCE), "no batch came"
        self._seen += 1
        return self.launched[self._seen - 1]

    def finish_all(self):
        """Let everything be over from now on."""
        self.at_once = True
        for batch in self.launched:
            batch.over.set()


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def make(device):
    """Makes started batchers, and ends them."""
    with batchers(device, device.finish_all) as build:
        yield build


def test_a_full_batch_goes_behind_the_one_that_runs(make, device):
    """The device has two at a time and no more, and each request gets its own result."""
    batcher = make()
    submissions = [batcher.admit("a", [9]) for _ in range(5)]
    device.wait_for_batch()
    second = device.wait_for_batch()
    assert second.behind == 1
    assert batcher.status().running_jobs == 2
    device.finish_all()
    assert [results(submission) for submission in submissions] == [[90]] * 5
    assert max(batch.behind for batch in device.launched) == 1


def test_a_batch_that_is_not_full_waits_for_more(make, device):
    """However often the worker looks; what came meanwhile goes with it, before anything else is done."""
    batcher = make()
    first = batcher.admit("a", [1])
    batch = device.wait_for_batch()
    waiting = batcher.admit("a", [3])
    for _ in range(5):
        assert batch.polls.acquire(timeout=PATIENCE)
    waiting_too = batcher.admit("a", [4])
    batch.over.set()
    following = device.wait_for_batch()
    device.finish_all()
    assert [results(submission) for submission in (first, waiting, waiting_too)] == [[10], [30], [40]]
    assert (following.items, following.behind, following.before_ending) == ([3, 4], 0, 1)


def test_the_prefetch_cost_is_configured(make, device):
    """A device that is busy with half a batch already need not wait for the other half."""
    batcher = make(prefetch_cost=3)
    batcher.admit("a", [1])
    batch = device.wait_for_batch()
    batcher.admit("a", [2])
    for _ in range(5):
        assert batch.polls.acquire(timeout=PATIENCE)
    batcher.admit("b", [2])
    batcher.admit("a", [1])
    following = device.wait_for_batch()
    assert (following.items, following.behind) == ([2, 1], 1)


def test_a_lone_request_is_ended_when_the_device_is_done(make, device):
    """Without a notification of the worker."""
    batcher = make()
    submission = batcher.admit("a", [1])
    device.wait_for_batch().over.set()
    assert results(submission) == [10]


def test_what_failed_is_split_and_runs_alone(make, device):
    """The batch behind it is ended first; then the halves run alone on the device, and only the failing image fails."""
    batcher = make()
    fault = ArithmeticError("planned failure")
    device.faults = {(4, 5): fault, (5,): fault}
    held = batcher.admit("a", [10])
    device.wait_for_batch()
    submissions = [batcher.admit("a", [4]), batcher.admit("a", [5]), batcher.admit("a", [10])]
    device.wait_for_batch()
    device.finish_all()
    assert results(held) + results(submissions[0]) + results(submissions[2]) == [100, 40, 100]
    with pytest.raises(InternalError):
        results(submissions[1])
    halves = [batch for batch in device.launched if batch.items in ([4], [5])]
    assert [(batch.items, batch.behind) for batch in halves] == [([4], 0), ([5], 0)]


def test_memory_that_runs_out_on_the_way_is_survived(make, device):
    """Split, tried again, and remembered in the budget."""
    batcher = make()
    device.faults = {(4, 4): OutOfMemory(), (3,): MemoryError()}
    device.at_once = True
    assert results(batcher.admit("a", [4, 4])) == [40, 40]
    assert (batcher.status().out_of_memory, batcher.status().batch_budget) == (1, 4)
    assert results(batcher.admit("a", [3])) == [30]
    assert (batcher.status().out_of_memory, batcher.status().batch_budget) == (2, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crashed_worker_fails_the_batches_on_the_device(make, device):
    """Those who ran, those behind them and those who waited get a 503, and the next request is served."""
    batcher = make()
    submissions = [batcher.admit("a", [9]) for _ in range(4)]
    device.wait_for_batch().fault = SystemExit()
    device.wait_for_batch()
    device.finish_all()
    assert [type(submission.futures[0].exception(PATIENCE)) for submission in submissions] == [NotReady] * 4
    assert results(batcher.admit("a", [3])) == [30]
    assert batcher.status().running_jobs == 0


def test_draining_ends_what_the_device_has(make, device):
    """Nothing that was accepted is lost."""
    batcher = make()
    submissions = [batcher.admit("a", [9]) for _ in range(3)]
    device.wait_for_batch()
    device.wait_for_batch()
    batcher.drain()
    device.finish_all()
    assert batcher.close(PATIENCE)
    assert [results(submission) for submission in submissions] == [[90]] * 3


def test_time_behind_another_batch_is_time_in_the_queue(make, device):
    """Forward seconds are those in which the device had nothing else to do first, and add up to the time there was."""
    clock, reports = Clock(), []
    batcher = make(clock=clock, on_batch=reports.append)
    first = batcher.admit("a", [10])
    ahead = device.wait_for_batch()
    second = batcher.admit("a", [10])
    behind = device.wait_for_batch()
    clock.now += 4
    ahead.over.set()
    assert results(first) == [100]
    clock.now += 3
    behind.over.set()
    assert results(second) == [100]
    assert batcher.close(PATIENCE)
    assert [report.seconds for report in reports] == [4, 3]
    assert [report.waits for report in reports] == [(0,), (4,)]
    assert (first.queue_seconds, first.forward_seconds) == (0, 4)
    assert (second.queue_seconds, second.forward_seconds) == (4, 3)


def test_a_device_that_hangs_is_seen(make, device):
    """The worker's silence counts, though it looks again and again and others come and go, until a part is done."""
    clock = Clock()
    batcher = make(clock=clock)
    batcher.admit("a", [1])
    batch = device.wait_for_batch()
    clock.now += 60
    batcher.admit("a", [1]).cancel()
    for _ in range(5):
        assert batch.polls.acquire(timeout=PATIENCE)
    status = batcher.status()
    assert (status.seconds_since_beat, status.running_seconds) == (60, 60)
    batch.done, batch.polls = 0.5, threading.Semaphore(0)
    for _ in range(5):
        assert batch.polls.acquire(timeout=PATIENCE)
    status = batcher.status()
    assert (status.seconds_since_beat, status.running_seconds) == (0, 60)


def test_a_batch_that_failed_on_the_device_takes_its_own_time(make, device):
    """What stood behind it is not charged with that, nor is the rate at which the queue is worked off."""
    clock, reports = Clock(), []
    batcher = make(clock=clock, on_batch=reports.append)
    device.faults = {(10,): ArithmeticError("planned failure")}
    failing = batcher.admit("a", [10])
    ahead = device.wait_for_batch()
    behind = batcher.admit("a", [9, 1])
    second = device.wait_for_batch()
    clock.now += 100
    ahead.over.set()
    with pytest.raises(InternalError):
        results(failing)
    clock.now += 1
    second.over.set()
    assert results(behind) == [90, 10]
    assert batcher.close(PATIENCE)
    assert [report.seconds for report in reports] == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_device_that_is_lost_on_the_way_ends_the_worker(make, device):
    """All requests get 503, ``on_fatal`` is called at once, and no further requests are admitted."""
    given_up = threading.Event()
    batcher = make(on_fatal=given_up.set, is_lost=lambda error: isinstance(error, ArithmeticError))
    submissions = [batcher.admit("a", [9]) for _ in range(3)]
    device.wait_for_batch().fault = ArithmeticError("an illegal memory access was encountered")
    device.wait_for_batch()
    device.finish_all()
    assert [type(submission.futures[0].exception(PATIENCE)) for submission in submissions] == [NotReady] * 3
    assert given_up.wait(PATIENCE)
    with pytest.raises(NotReady):
        batcher.admit("a", [1])


def test_who_leaves_a_batch_on_the_device_is_not_waited_for(make, device):
    """What has not been begun never is, and the others get theirs."""
    batcher = make()
    leaving = batcher.admit("a", [10, 10, 10])
    device.wait_for_batch()
    device.wait_for_batch()
    staying = batcher.admit("a", [9])
    leaving.cancel()
    device.finish_all()
    assert results(staying) == [90]
    assert [batch.items for batch in device.launched] == [[10], [10], [9]]


def batch_of(*jobs):
    """A batch of claimed jobs, of a request each."""
    submissions = [Submission("a", "", deadline, 0.0, None, 1, print, print) for _, deadline in jobs]
    batch = Batch("a", [Job(item, item, submission) for (item, _), submission in zip(jobs, submissions, strict=True)])
    batch.claim(0.0)
    return batch


def test_a_half_whose_deadline_has_passed_is_answered():
    """What waited for its second chance does not run too late."""
    batch = batch_of((1, 5.0), (2, None))
    late, still = batch.split(out_of_memory=False)[::-1]
    late.claim(6.0)
    still.claim(6.0)
    assert (late.jobs, len(still.jobs)) == ([], 1)
    with pytest.raises(DeadlineExceeded):
        batch.jobs[0].future.result(0)


def test_other_results_than_jobs_resolve_nothing():
    """No caller gets another one's image."""
    batch = batch_of((1, None), (2, None))
    with pytest.raises(RuntimeError, match="The batch had 2 jobs, but the network returned 1 results"):
        batch.deliver([10], 1.0, 1.0)
    assert not any(job.future.done() for job in batch.jobs)


def test_the_next_batch_comes_shortly_before_the_end_of_the_one_that_runs(make, device):
    """If the speed is known, a new request need not wait for a batch that was launched too early."""
    clock = Clock()
    batcher = make(clock=clock, max_batch_cost=10)
    first = batcher.admit("a", [10])
    batch = device.wait_for_batch()
    clock.now += 1
    batch.over.set()
    results(first)
    large = batcher.admit("a", [10, 10, 10])
    running = device.wait_for_batch()
    for _ in range(5):
        assert running.polls.acquire(timeout=PATIENCE)
    small = batcher.admit("a", [1])
    clock.now += 1 - PREFETCH_S / 2
    following = device.wait_for_batch()
    device.finish_all()
    for submission in (large, small):
        results(submission)
    assert (following.items, following.behind) == ([1], 1)

"""The worker of the batcher: failures of batches and callbacks, its replacement, reports and draining."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from app.batching.batch import BatchReport
from app.errors import Draining, InternalError, NotReady
from tests.scripted import PATIENCE, Clock, results


def test_one_bad_item_hurts_itself_alone(make, script, hold):
    """A batch that fails is split until the image that fails is alone; the others get their results."""
    batcher = make()

    def fault(items):
        if 3 in items:
            raise ArithmeticError("three")

    hold(batcher)
    script.fault = fault
    submissions = [batcher.admit("a", [item]) for item in (1, 2, 3, 4)]
    script.gate.open()
    assert [results(submission) for submission in (submissions[0], submissions[1], submissions[3])] == [
        [10],
        [20],
        [40],
    ]
    with pytest.raises(InternalError) as error:
        results(submissions[2])
    assert "three" not in str(error.value)
    assert [items for _, items in script.calls] == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


def test_a_service_error_reaches_the_caller_unchanged(make, script):
    """What already has a status keeps it."""
    error = NotReady("gone")
    script.fault = lambda _items: (_ for _ in ()).throw(error)
    with pytest.raises(NotReady) as raised:
        results(make().admit("a", [1]))
    assert raised.value is error


def test_missing_results_are_a_failure_and_not_a_hang(make):
    """A run that returns too few results answers every caller."""
    submission = make(run=lambda _key, _items: []).admit("a", [1])
    with pytest.raises(InternalError):
        results(submission)


def test_a_faulty_callback_loses_no_result(make, script, hold):
    """A progress callback that raises after the results were delivered changes nothing."""
    batcher = make()
    hold(batcher)

    def fault(progress):
        if progress.done:
            raise ValueError("callback")

    submissions = [batcher.admit("a", [1], on_progress=fault), batcher.admit("a", [2])]
    script.gate.open()
    assert [results(submission) for submission in submissions] == [[10], [20]]
    assert results(batcher.admit("a", [3])) == [30]
    assert script.calls == [("a", [1, 2]), ("a", [3])]


def test_leaving_while_a_failed_batch_is_split_resolves_the_future(make, script, hold):
    """A job whose batch failed and whose caller left is not run again, and not left waiting."""
    batcher = make()
    hold(batcher)
    submissions = []

    def fault(items):
        if len(items) > 1:
            submissions[1].cancel()
            raise ArithmeticError

    script.fault = fault
    submissions += [batcher.admit("a", [1]), batcher.admit("a", [2])]
    script.gate.open()
    assert results(submissions[0]) == [10]
    with pytest.raises(CancelledError):
        results(submissions[1])
    assert script.calls == [("a", [1, 2]), ("a", [1])]


def test_every_batch_is_reported(make, script, hold):
    """A report has the key, jobs, cost and waits, each request's wait once."""
    reports = []
    batcher = make(on_batch=reports.append, clock=Clock(), max_batch_cost=4)
    hold(batcher)
    submissions = [batcher.admit("a", [3, 3]), batcher.admit("a", [1])]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert batcher.close(PATIENCE)
    assert reports[1:] == [BatchReport("a", 2, 4, 0.0, (0.0, 0.0)), BatchReport("a", 1, 3, 0.0, ())]


def test_draining_finishes_what_was_admitted_and_refuses_the_rest(make, script, hold):
    """Nothing that was accepted is lost."""
    batcher = make()
    hold(batcher)
    submission = batcher.admit("a", [1])
    reservation = batcher.reserve(1)
    batcher.drain()
    with pytest.raises(Draining):
        batcher.admit("a", [1])
    assert batcher.status().draining
    reserved = batcher.admit("a", [2], reservation=reservation)
    script.gate.open()
    assert batcher.close(PATIENCE)
    assert results(submission) + results(reserved) == [10, 20]
    assert not batcher.alive


def test_draining_waits_for_a_consumer(make):
    """A request that was set aside is finished, not lost."""
    batcher = make(max_batch_cost=1)
    slow = batcher.admit("a", [1] * 3, result_window=1)
    slow.futures[0].result(PATIENCE)
    batcher.drain()
    assert batcher.alive
    slow.release(1)
    slow.futures[1].result(PATIENCE)
    slow.release(1)
    assert batcher.close(PATIENCE)
    assert results(slow) == [10] * 3


def test_closing_without_time_fails_waiting_requests(make, hold):
    """When time is up, what waits gets an answer, and close says that it was not finished."""
    batcher = make()
    hold(batcher)
    submission = batcher.admit("a", [1])
    assert not batcher.close(0.0)
    with pytest.raises(Draining):
        results(submission)


def test_before_the_start_nothing_is_admitted(make):
    """A batcher whose worker was not started refuses requests, because they would wait for ever."""
    with pytest.raises(NotReady):
        make(start=False).admit("a", [1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_fails_all_requests_and_is_replaced(make, script, hold):
    """A fault outside any batch costs those who wait a 503, and the next request is served."""

    class Faulty:
        def __le__(self, other):
            raise ZeroDivisionError

    batcher = make()
    held = hold(batcher)
    waiting = batcher.admit("a", [9], deadline=Faulty()), batcher.admit("a", [9, 9])
    script.gate.open()
    assert results(held) == [10]
    errors = [future.exception(PATIENCE) for submission in waiting for future in submission.futures]
    assert [type(error) for error in errors] == [NotReady] * 3
    assert results(batcher.admit("a", [3])) == [30]
    assert script.calls == [("a", [3])]


def test_a_callback_that_raises_loses_its_progress_and_nothing_else(make, script, hold):
    """A request whose callback fails at its new position runs like the others, in one try, and gets no more calls."""
    batcher, heard = make(), []
    hold(batcher)

    def fault(progress):
        heard.append(progress.position)
        if progress.position == 1:
            raise ValueError("callback")

    submissions = [batcher.admit("a", [9]), batcher.admit("a", [9], on_progress=fault)]
    script.gate.open()
    assert [results(submission) for submission in submissions] == [[90], [90]]
    assert script.calls == [("a", [9]), ("a", [9])]
    assert heard == [2, 1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_between_taking_and_running_answers_those_who_were_taken(make, script, hold):
    """A fault of the worker itself costs a 503, and no more."""
    faults = []

    def clock():
        if faults and threading.current_thread().name == "swin2sr-worker" and (fault := faults.pop(0)):
            raise fault
        return time.monotonic()

    batcher = make(clock=clock)
    hold(batcher)
    end_and_take = [None, None, None]  # readings of the clock until the next batch is taken
    script.fault = lambda _items: faults.extend([*end_and_take, ArithmeticError("the clock")])
    taken = batcher.admit("a", [9])
    script.gate.open()
    assert isinstance(taken.futures[0].exception(PATIENCE), NotReady)
    assert script.calls == [], "it never ran"
    script.fault = lambda _items: None
    assert results(batcher.admit("a", [3])) == [30]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_keeps_dying_is_not_restarted(make):
    """After five deaths in a row ``on_fatal`` is called, and requests are refused."""
    given_up = threading.Event()

    def die(_key, _items):
        raise SystemExit

    batcher = make(run=die, on_fatal=given_up.set)
    errors = [batcher.admit("a", [1]).futures[0].exception(PATIENCE) for _ in range(5)]
    assert [type(error) for error in errors] == [NotReady] * 5
    assert given_up.wait(PATIENCE)
    assert not batcher.alive
    with pytest.raises(NotReady):
        batcher.admit("a", [1])


def test_an_idle_worker_sleeps(make):
    """With nothing to do no processor time is used."""
    batcher = make()
    results(batcher.admit("a", [1]))
    before = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before < 0.05

"""Requests wait in one place, are taken in turn, and are resolved once. Jobs are whole numbers, and cost that."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import CancelledError

import pytest

from app.batching.batch import BatchReport
from app.batching.jobs import JobProgress
from app.errors import DeadlineExceeded, Draining, ImageTooLarge, InternalError, NotReady, QueueFull
from tests.scripted import PATIENCE, Clock, Gate, batchers, results


class Script:
    """What the batcher runs: multiplies by ten, behind a gate, and logs its calls."""

    def __init__(self):
        self.gate = Gate()
        self.calls = []
        self.fault = lambda _items: None

    def __call__(self, key, items):
        self.calls.append((key, items))
        self.gate.pass_through()
        self.fault(items)
        return [item * 10 for item in items]


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def make(script):
    """Makes started batchers, and ends them."""
    with batchers(script, script.gate.open) as build:
        yield build


@pytest.fixture
def hold(script):
    """Occupies the worker with a job of key ``-`` until the test opens the gate."""

    def occupy(batcher):
        script.gate.close()
        submission = batcher.admit("-", [1])
        script.gate.wait_until_reached()
        script.calls.clear()
        return submission

    return occupy


def test_a_lone_request_runs_at_once(make, script):
    """No job waits for others to share its batch."""
    assert results(make().admit("a", [3])) == [30]
    assert script.calls == [("a", [3])]


def test_what_waits_goes_into_as_few_batches_as_the_budget_allows(make, script, hold):
    """With the first call held, ten more become two full batches."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", [2]) for _ in range(10)]
    script.gate.open()
    assert [results(submission) for submission in submissions] == [[20]] * 10
    assert script.calls == [("a", [2] * 5), ("a", [2] * 5)]


def test_no_batch_is_over_the_budget_and_every_job_runs_once(make, script, hold):
    """Costs are added up, and small jobs fill what large ones leave."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", items) for items in ([7, 7, 7], [3], [2, 2], [6], [1, 1, 1])]
    script.gate.open()
    for submission in submissions:
        results(submission)
    ran = [items for _, items in script.calls]
    assert all(sum(items) <= 10 for items in ran)
    assert sorted(item for items in ran for item in items) == [1, 1, 1, 2, 2, 3, 6, 7, 7, 7]
    assert len(ran) == 4


def test_requests_take_turns_job_by_job(make, script, hold):
    """A request of many jobs gives way to the others after each."""
    batcher = make(max_batch_cost=4)
    hold(batcher)
    large = batcher.admit("a", [4, 4, 4])
    small = [batcher.admit("a", [2]) for _ in range(2)]
    script.gate.open()
    for submission in (large, *small):
        results(submission)
    assert script.calls == [("a", [4]), ("a", [2, 2]), ("a", [4]), ("a", [4])]


def test_a_job_that_was_passed_over_heads_the_next_batch(make, script, hold):
    """However many small requests come, a large job is passed over in one batch at most."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", [3]), batcher.admit("a", [9])] + [batcher.admit("a", [3]) for _ in range(9)]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert script.calls[0] == ("a", [3, 3, 3])
    assert script.calls[1] == ("a", [9])


def test_clients_take_turns(make, script, hold):
    """One client's many requests do not delay another's one."""
    batcher = make(max_batch_cost=2)
    hold(batcher)
    busy = [batcher.admit("a", [2], client="busy") for _ in range(5)]
    other = batcher.admit("a", [1], client="other")
    script.gate.open()
    for submission in (*busy, other):
        results(submission)
    assert script.calls[1] == ("a", [1])


def test_a_large_job_is_not_passed_over_twice_whichever_client_it_belongs_to(make, script, hold):
    """Its own client's small jobs and another client's do not starve it together."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", [3], client="b"), batcher.admit("a", [9], client="a")]
    submissions += [batcher.admit("a", [3], client=client) for _ in range(10) for client in "ab"]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert 9 in script.calls[1][1]


def test_keys_take_turns_and_never_share_a_batch(make, script, hold):
    """A batch has one key, and the keys alternate while both wait."""
    batcher = make(max_batch_cost=4)
    hold(batcher)
    submissions = [batcher.admit(key, [4]) for key in "aaabbb"]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert [key for key, _ in script.calls] == list("ababab")


def test_results_keep_the_order_of_the_items(make):
    """However jobs are batched, each future has its own item's result."""
    assert results(make(max_batch_cost=9).admit("a", [9, 1, 8, 2])) == [90, 10, 80, 20]


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


def test_an_idle_worker_waits_for_a_fuller_batch_only_if_configured(make, script):
    """With a delay, requests that come within it share a batch; a full batch does not wait."""
    batcher = make(max_queue_delay=PATIENCE)
    submissions = [batcher.admit("a", [4]), batcher.admit("a", [6])]
    assert [results(submission) for submission in submissions] == [[40], [60]]
    assert script.calls == [("a", [4, 6])]


def test_a_new_request_is_served_before_those_that_just_had_a_turn(make, script):
    """Beside a large request a small one that arrives while a batch runs is in the next batch, without a large tile."""
    batcher = make(max_batch_cost=10)
    script.gate.close()
    large = batcher.admit("a", [8, 8, 8, 8])
    script.gate.wait_until_reached()
    small = batcher.admit("a", [1])
    script.gate.open()
    for submission in (large, small):
        results(submission)
    assert [items for _, items in script.calls] == [[8], [1], [8], [8], [8]]


def test_new_requests_cannot_starve_one_that_has_started(make, script):
    """However many arrive, a request that was overtaken is in the next batch."""
    arrivals = []

    def arrive(_items):
        if len(arrivals) < 20:
            arrivals.append(batcher.admit("a", [1]))

    script.fault = arrive
    batcher = make(max_batch_cost=10)
    large = batcher.admit("a", [8] * 6)
    results(large)
    for submission in arrivals:
        results(submission)
    served = [8 in items for _, items in script.calls]
    assert not any(first == second is False for first, second in itertools.pairwise(served[:11]))


def test_a_small_tile_of_a_started_request_fills_a_batch_of_new_ones(make, script):
    """Where it costs no more than they do, so that at most it doubles their time."""
    batcher = make(max_batch_cost=10)
    script.gate.close()
    started = batcher.admit("a", [8, 2, 2])
    script.gate.wait_until_reached()
    new = batcher.admit("a", [3])
    script.gate.open()
    for submission in (started, new):
        results(submission)
    assert script.calls[1] == ("a", [3, 2])


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

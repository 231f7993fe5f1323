"""The batcher: the queue where requests wait, and the thread that runs them in batches.

It does not handle images: a job has a key (jobs of one key may share a batch), a cost, and an item for the callable
that runs a batch. Every future is resolved exactly once, by the owner of the job; the queue's lock decides who that is.

    admitted -> waiting -> taken -> running -> result | error
                   |         |
                   +---------+-> cancelled | deadline passed | worker lost

An asynchronous device is given the next batch shortly before it finishes the current one, so that it does not wait for
the host. The worker never waits for a consumer: a submission whose results are not used gets no turn.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from app.batching.admission import AdmissionQueue
from app.batching.batch import Batch, BatchReport, InFlight, Running
from app.batching.batch_budget import BatchBudget
from app.batching.jobs import Job, JobProgress, Reservation, Status, Submission
from app.batching.supervision import Heartbeat, SupervisedThread
from app.errors import Draining, InternalError, NotReady, OutOfMemory, ServiceError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2
"""Batches on a device at a time: the current one and the next one."""

POLL_INTERVAL_S = 5e-4
"""Interval at which the worker asks a device whether a batch is done."""

PREFETCH_S = 0.006
"""How long before the expected end of a batch the device is given the next one. More makes small requests wait longer
behind a large one; less leaves the device idle when the host is late."""


class Batcher(Generic[T, R]):
    """A bounded queue of jobs and the worker thread that runs them in batches.

    Args:
        run: runs a batch of items of one key and returns the list of their results in order, or launches it on a device
            and returns a handle. Called in the worker thread only.
        cost: cost of an item, at least 1; the budgets have the same unit.
        max_batch_cost: largest cost of a job, and of a batch unless ``lower_budget`` says less.
        max_queue_cost, max_queue_requests: bounds of what waits.
        max_queue_delay: seconds that a free worker waits for a fuller batch.
        prefetch_cost: minimum cost of a batch that is launched while the device computes another one; by default a
            full batch.
        clock: monotonic seconds; deadlines are times of this clock.
        on_batch: called with a report of every batch that ran.
        on_fatal: called when the worker died too often in a row and is not restarted.
        is_lost: whether all other batches would fail too after this error; then ``on_fatal`` is called at once.
        restart_delay: seconds before the first restart of a dead worker; doubled at each further death in a row.
        heartbeat: recorded by the worker, and by ``run`` where that takes long.
    """

    def __init__(
        self,
        run: Callable[[str, list[T]], list[R] | Running[R]],
        cost: Callable[[T], int],
        *,
        max_batch_cost: int,
        max_queue_cost: int,
        max_queue_requests: int,
        max_queue_delay: float = 0.0,
        prefetch_cost: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
        on_fatal: Callable[[], None] = lambda: None,
        is_lost: Callable[[Exception], bool] = lambda _error: False,
        restart_delay: float = 0.1,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_queue_delay = max_queue_delay
        self._prefetch_cost = max_batch_cost if prefetch_cost is None else prefetch_cost
        self._clock = clock
        self._on_batch = on_batch
        self._is_lost = is_lost
        self._heartbeat = heartbeat or Heartbeat(clock)
        self._budget = BatchBudget(max_batch_cost)
        self._worker = SupervisedThread(self._work, self._fail_pending, on_fatal=on_fatal, restart_delay=restart_delay)
        self._queue: AdmissionQueue[T, R] = AdmissionQueue(
            max_job_cost=max_batch_cost,
            max_cost=max_queue_cost,
            max_requests=max_queue_requests,
            clock=clock,
            is_alive=lambda: self.alive,
        )
        self._in_flight: InFlight[T, R] = InFlight()  # guarded by the queue's lock
        self._ended_at = -math.inf  # when the latest batch on the device ended; only the worker uses it

    # Called by callers, in any thread.

    def reserve(self, cost: int, *, client: str = "") -> Reservation:
        """Reserve room for a request that will cost at most ``cost``, before its items exist.

        Raises:
            QueueFull, Draining, NotReady: if it cannot be admitted now.
            ImageTooLarge: if it can never be admitted.
        """
        return self._queue.reserve(cost, client)

    def admit(
        self,
        key: str,
        items: Sequence[T],
        *,
        client: str = "",
        deadline: float | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        reservation: Reservation | None = None,
        is_last: bool = True,
        result_window: int | None = None,
    ) -> Submission[T, R]:
        """Admit all items of a request, or none.

        Args:
            key: items of one key may share a batch.
            items: at least one.
            client: who sent the request; clients take turns.
            deadline: time of the clock after which the items are not run any more.
            on_progress: called when the position or the number of finished items changes, mostly in the worker thread;
                must neither block nor call the batcher.
            reservation: an earlier reservation, whose cost is reduced by that of the items.
            is_last: whether the rest of the reservation is not needed.
            result_window: how many results may be computed and not yet released with ``Submission.release``. While
                there are as many, none of the other items is run. Unlimited by default.

        Raises:
            QueueFull, Draining, NotReady: if it cannot be admitted now.
            ImageTooLarge: if it can never be admitted.
        """
        window = math.inf if result_window is None else result_window
        submission: Submission[T, R] = Submission(
            key, client, deadline, self._clock(), on_progress, window, self._cancel, self._release
        )
        submission.waiting.extend(Job(item, self._cost(item), submission) for item in items)
        submission.futures = deque(job.future for job in submission.waiting)
        submission.total = len(submission.waiting)
        submission.cost = sum(job.cost for job in submission.waiting)
        with self._queue.changed:
            self._record_if_idle()
            self._queue.admit(submission, reservation, is_last=is_last)
        return submission

    def lower_budget(self, cost: int) -> None:
        """Limit the cost of a batch from now on. A single job above it still runs alone."""
        with self._queue.changed:
            self._budget.lower(cost)

    def status(self) -> Status:
        """The current state."""
        with self._queue.changed:
            begun = [batch for batch in self._in_flight.all if batch.started_at is not None]
            since = begun[0].started_at if begun else None
            return Status(
                waiting_requests=self._queue.requests,
                waiting_cost=self._queue.cost,
                running_jobs=sum(len(batch.jobs) for batch in begun),
                running_seconds=0.0 if since is None else self._clock() - since,
                seconds_since_beat=self._heartbeat.seconds_since_beat if self._has_work else 0.0,
                batch_budget=self._budget.current,
                out_of_memory=self._budget.failures,
                alive=self.alive,
                draining=self._queue.draining,
            )

    @property
    def alive(self) -> bool:
        """Whether a worker runs or will be restarted."""
        return self._worker.alive

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def drain(self) -> None:
        """Refuse new requests from now on; admitted ones are finished."""
        self._queue.drain()
        self._worker.skip_backoff()

    def close(self, timeout: float | None = None) -> bool:
        """Drain, and wait at most ``timeout`` seconds for the worker to finish everything.

        Returns:
            Whether everything was finished. If not, waiting requests were failed with ``Draining``.
        """
        self.drain()
        finished = not self._worker.started or self._worker.join(timeout)
        for job in self._queue.clear():
            job.fail(Draining("The server was shut down while the request waited. Send it again."))
        return finished

    def _cancel(self, submission: Submission[T, R]) -> None:
        submission.cancelled = True
        for job in self._queue.remove(submission):
            job.future.cancel()

    def _release(self, submission: Submission[T, R], count: int) -> None:
        with self._queue.changed:
            self._record_if_idle()
            self._queue.release(submission, count)

    def _record_if_idle(self) -> None:
        """Record a heartbeat if there was no work, so that the time without work does not count."""
        if not self._has_work:
            self._heartbeat.record()

    @property
    def _has_work(self) -> bool:
        return self._queue.has_ready or bool(self._in_flight.all)

    # The worker's thread.

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            step()  # no batch is referenced between steps, so that its memory and weights are freed

    def _next_step(self) -> Callable[[], None] | None:
        """Wait until a batch can be begun or ended; None when draining is complete."""
        queue, in_flight = self._queue, self._in_flight
        while True:
            if in_flight.poll():  # without the lock, because the device may answer slowly
                self._heartbeat.record()
            with queue.changed:
                if self._can_take():
                    self._take()
                    return self._begin_current
                if in_flight.oldest_is_done:
                    return self._end_oldest
                if queue.is_finished and not in_flight.running:
                    return None
                queue.changed.wait(self._wait_timeout())

    def _can_take(self) -> bool:
        queue, in_flight, budget = self._queue, self._in_flight, self._budget.current
        if in_flight.retries:
            return not in_flight.running
        if not queue.has_ready or len(in_flight.running) == MAX_IN_FLIGHT:
            return False
        is_free = not in_flight.running or in_flight.oldest_is_done
        if not is_free and not (queue.has_at_least(min(self._prefetch_cost, budget)) and self._ends_soon()):
            return False
        return queue.batching_delay(self._max_queue_delay, budget) <= 0

    def _ends_soon(self) -> bool:
        """Whether the batch on the device is expected to end within the prefetch time."""
        batch, _ = self._in_flight.running[0]
        assert batch.started_at is not None, "it was begun"
        elapsed = self._clock() - max(batch.started_at, self._ended_at)
        return self._queue.expected_seconds(batch.cost) - elapsed <= PREFETCH_S

    def _take(self) -> None:
        self._heartbeat.record()
        if self._in_flight.retries:
            self._in_flight.current = self._in_flight.retries.pop()
            return
        self._in_flight.current = Batch(*self._queue.take(self._budget.current))
        self._queue.report_positions()

    def _wait_timeout(self) -> float | None:
        """Seconds after which to look again if nothing was notified."""
        if self._in_flight.running:
            return POLL_INTERVAL_S
        if not self._queue.has_ready:
            return None
        return self._queue.batching_delay(self._max_queue_delay, self._budget.current)

    def _begin_current(self) -> None:
        batch = self._in_flight.current
        assert batch is not None, "a batch was taken before this step"
        batch.claim(self._clock())
        if batch.jobs:
            self._attempt(batch, self._begin)
        with self._queue.changed:
            self._in_flight.current = None

    def _end_oldest(self) -> None:
        batch, running = self._in_flight.running[0]
        self._attempt(batch, partial(self._receive, running=running))
        with self._queue.changed:
            self._in_flight.running.popleft()
            self._in_flight.fraction_done = 0.0

    def _attempt(self, batch: Batch[T, R], step: Callable[[Batch[T, R]], None]) -> None:
        try:
            step(batch)
        except Exception as error:  # noqa: BLE001 - every error fails these jobs only
            self._split_or_fail(batch, error)

    def _begin(self, batch: Batch[T, R]) -> None:
        self._heartbeat.record()
        started = self._clock()
        batch.begin(started)
        outcome = self._run(batch.key, [job.item for job in batch.jobs])
        if isinstance(outcome, list):
            self._end(batch, outcome, started, self._clock())
            return
        with self._queue.changed:
            self._in_flight.current = None
            self._in_flight.running.append((batch, outcome))

    def _receive(self, batch: Batch[T, R], running: Running[R]) -> None:
        assert batch.started_at is not None, "it was begun"
        since = max(batch.started_at, self._ended_at)  # before that the device computed another batch
        try:
            results = running.results()
        finally:
            self._ended_at = self._clock()
        self._end(batch, results, since, self._ended_at)

    def _end(self, batch: Batch[T, R], results: list[R], since: float, now: float) -> None:
        seconds = now - since
        self._heartbeat.record()
        batch.deliver(results, now, seconds)
        self._worker.succeed()
        with self._queue.changed:
            self._queue.record(batch.cost, seconds)
            self._budget.succeed()
        for submission in batch.submissions:
            submission.report_progress("running")
        waits = tuple(since - submission.admitted_at for submission in batch.new)
        self._on_batch(BatchReport(batch.key, len(batch.jobs), batch.cost, seconds, waits))

    def _split_or_fail(self, batch: Batch[T, R], error: Exception) -> None:
        """Split a batch that failed until the job at fault is alone and the only one to fail."""
        if self._is_lost(error):
            self._worker.stop_restarting()
            raise error
        out_of_memory = isinstance(error, OutOfMemory | MemoryError)
        again = batch.split(out_of_memory=out_of_memory)
        with self._queue.changed:
            self._in_flight.retries += again
            if out_of_memory:
                self._budget.shrink(batch.cost)
        if out_of_memory:
            logger.warning("out of memory; largest batch is now %d pixels", self._budget.current)
        elif not again and not isinstance(error, ServiceError):
            logger.error("a batch failed", exc_info=error)
        if not again:
            fault = OutOfMemory() if out_of_memory else InternalError()
            batch.fail(error if isinstance(error, ServiceError) else fault)

    def _fail_pending(self) -> None:
        """Fail all pending jobs after the worker died. The next worker runs later requests."""
        with self._queue.changed:
            remaining = self._in_flight.clear() + self._queue.clear()
        error = NotReady("The worker failed and is being restarted. Send the request again.", retry_after=1)
        for job in remaining:
            job.fail(error)

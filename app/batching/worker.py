"""The thread that takes batches from the queue and runs them.

An asynchronous device is given the next batch shortly before it finishes the current one, so that it does not wait for
the host. The worker never waits for a consumer: a submission whose results are not used gets no turn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from app.batching.admission import AdmissionQueue
from app.batching.batch import Batch, BatchReport, InFlight, Running
from app.batching.batch_budget import BatchBudget
from app.batching.supervision import Heartbeat, SupervisedThread
from app.errors import InternalError, NotReady, OutOfMemory, ServiceError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2
"""Batches on a device at a time: the current one and the next one."""

POLL_INTERVAL_S = 5e-4
"""Interval at which the worker asks a device whether a batch is done."""

PREFETCH_S = 0.006
"""How long before the expected end of a batch the device is given the next one. With more, small requests wait longer
for a large one; less leaves the device idle when the host is late."""


class Worker(Generic[T, R]):
    """Runs the jobs of a queue in batches, until it is drained.

    Args:
        run, max_queue_delay, prefetch_cost, clock, on_batch, on_fatal, is_lost, restart_delay, heartbeat: as of
            ``Batcher``.
        queue: whose lock guards ``in_flight`` and ``budget`` too.
        budget: the largest cost of a batch.

    Attributes:
        in_flight: batches that were taken and are not finished.
        thread: in which batches are run.
    """

    def __init__(
        self,
        run: Callable[[str, list[T]], list[R] | Running[R]],
        queue: AdmissionQueue[T, R],
        budget: BatchBudget,
        *,
        max_queue_delay: float,
        prefetch_cost: int,
        clock: Callable[[], float],
        on_batch: Callable[[BatchReport], None],
        on_fatal: Callable[[], None],
        is_lost: Callable[[Exception], bool],
        restart_delay: float,
        heartbeat: Heartbeat,
    ) -> None:
        self.in_flight: InFlight[T, R] = InFlight()
        self.thread = SupervisedThread(self._work, self._fail_pending, on_fatal=on_fatal, restart_delay=restart_delay)
        self._run = run
        self._queue = queue
        self._budget = budget
        self._max_queue_delay = max_queue_delay
        self._prefetch_cost = prefetch_cost
        self._clock = clock
        self._on_batch = on_batch
        self._is_lost = is_lost
        self._heartbeat = heartbeat
        self._ended_at = -math.inf  # when the latest batch on the device ended; only the worker uses it

    def record_if_idle(self) -> None:
        """Record a heartbeat if there was no work, so that the time without work does not count."""
        if not self._has_work:
            self._heartbeat.record()

    @property
    def seconds_since_beat(self) -> float:
        """Seconds without a sign of life; 0 without work."""
        return self._heartbeat.seconds_since_beat if self._has_work else 0.0

    @property
    def _has_work(self) -> bool:
        return self._queue.has_ready or bool(self.in_flight.all)

    # In the thread.

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            step()  # no batch is referenced between steps, so that its memory and weights are freed

    def _next_step(self) -> Callable[[], None] | None:
        """Wait until a batch can be begun or ended; None when draining is complete."""
        queue, in_flight = self._queue, self.in_flight
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
        queue, in_flight, budget = self._queue, self.in_flight, self._budget.current
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
        batch, _ = self.in_flight.running[0]
        assert batch.started_at is not None, "it was begun"
        elapsed = self._clock() - max(batch.started_at, self._ended_at)
        return self._queue.expected_seconds(batch.cost) - elapsed <= PREFETCH_S

    def _take(self) -> None:
        self._heartbeat.record()
        if self.in_flight.retries:
            self.in_flight.current = self.in_flight.retries.pop()
            return
        self.in_flight.current = Batch(*self._queue.take(self._budget.current))
        self._queue.report_positions()

    def _wait_timeout(self) -> float | None:
        """Seconds after which to look again if nothing was notified."""
        if self.in_flight.running:
            return POLL_INTERVAL_S
        if not self._queue.has_ready:
            return None
        return self._queue.batching_delay(self._max_queue_delay, self._budget.current)

    def _begin_current(self) -> None:
        batch = self.in_flight.current
        assert batch is not None, "a batch was taken before this step"
        batch.claim(self._clock())
        if batch.jobs:
            self._attempt(batch, self._begin)
        with self._queue.changed:
            self.in_flight.current = None

    def _end_oldest(self) -> None:
        batch, running = self.in_flight.running[0]
        self._attempt(batch, partial(self._receive, running=running))
        with self._queue.changed:
            self.in_flight.running.popleft()
            self.in_flight.fraction_done = 0.0

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
            self.in_flight.current = None
            self.in_flight.running.append((batch, outcome))

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
        self.thread.succeed()
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
            self.thread.stop_restarting()
            raise error
        out_of_memory = isinstance(error, OutOfMemory | MemoryError)
        again = batch.split(out_of_memory=out_of_memory)
        with self._queue.changed:
            self.in_flight.retries += again
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
            remaining = self.in_flight.clear() + self._queue.clear()
        error = NotReady("The worker failed and is being restarted. Send the request again.", retry_after=1)
        for job in remaining:
            job.fail(error)

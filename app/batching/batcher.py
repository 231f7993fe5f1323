"""The batcher: requests are admitted to a queue, and a worker runs them in batches.

It does not handle images: a job has a key (jobs of one key may share a batch), a cost, and an item for the callable
that runs a batch. Every future is resolved exactly once, by the owner of the job; the queue's lock decides who that is.

    admitted -> waiting -> taken -> running -> result | error
                   |         |
                   +---------+-> cancelled | deadline passed | worker lost
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.batching.admission import AdmissionQueue
from app.batching.batch import BatchReport, Running
from app.batching.batch_budget import BatchBudget
from app.batching.jobs import Job, JobProgress, Reservation, Status, Submission
from app.batching.supervision import Heartbeat
from app.batching.worker import Worker
from app.errors import Draining

T = TypeVar("T")
R = TypeVar("R")


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
        self._cost = cost
        self._clock = clock
        self._budget = BatchBudget(max_batch_cost)
        self._queue: AdmissionQueue[T, R] = AdmissionQueue(
            max_job_cost=max_batch_cost,
            max_cost=max_queue_cost,
            max_requests=max_queue_requests,
            clock=clock,
            is_alive=lambda: self.alive,
        )
        self._worker = Worker(
            run,
            self._queue,
            self._budget,
            max_queue_delay=max_queue_delay,
            prefetch_cost=max_batch_cost if prefetch_cost is None else prefetch_cost,
            clock=clock,
            on_batch=on_batch,
            on_fatal=on_fatal,
            is_lost=is_lost,
            restart_delay=restart_delay,
            heartbeat=heartbeat or Heartbeat(clock),
        )

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
            self._worker.record_if_idle()
            self._queue.admit(submission, reservation, is_last=is_last)
        return submission

    def lower_budget(self, cost: int) -> None:
        """Limit the cost of a batch from now on. A single job above it still runs alone."""
        with self._queue.changed:
            self._budget.lower(cost)

    def status(self) -> Status:
        """The current state."""
        with self._queue.changed:
            begun = [batch for batch in self._worker.in_flight.all if batch.started_at is not None]
            since = begun[0].started_at if begun else None
            return Status(
                waiting_requests=self._queue.requests,
                waiting_cost=self._queue.cost,
                running_jobs=sum(len(batch.jobs) for batch in begun),
                running_seconds=0.0 if since is None else self._clock() - since,
                seconds_since_beat=self._worker.seconds_since_beat,
                batch_budget=self._budget.current,
                out_of_memory=self._budget.failures,
                alive=self.alive,
                draining=self._queue.draining,
            )

    @property
    def alive(self) -> bool:
        """Whether a worker runs or will be restarted."""
        return self._worker.thread.alive

    def start(self) -> None:
        """Start the worker."""
        self._worker.thread.start()

    def drain(self) -> None:
        """Refuse new requests from now on; admitted ones are finished."""
        self._queue.drain()
        self._worker.thread.skip_backoff()

    def close(self, timeout: float | None = None) -> bool:
        """Drain, and wait at most ``timeout`` seconds for the worker to finish everything.

        Returns:
            Whether everything was finished. If not, waiting requests were failed with ``Draining``.
        """
        self.drain()
        finished = not self._worker.thread.started or self._worker.thread.join(timeout)
        for job in self._queue.clear():
            job.fail(Draining("The server was shut down while the request waited. Send it again."))
        return finished

    def _cancel(self, submission: Submission[T, R]) -> None:
        submission.cancelled = True
        for job in self._queue.remove(submission):
            job.future.cancel()

    def _release(self, submission: Submission[T, R], count: int) -> None:
        with self._queue.changed:
            self._worker.record_if_idle()
            self._queue.release(submission, count)

"""The one place where requests wait, and the one thread that works on them.

It knows no images: jobs have a key (only jobs of one key share a batch), a cost, and a callable that runs a batch.
Every future is resolved exactly once, by whoever owns the job at that moment: the queue's lock decides who that is.

    admitted -> waiting -> taken -> running -> result | error
                   |         |
                   +---------+-> cancelled | deadline passed | worker lost
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from app.errors import DeadlineExceeded, Draining, ImageTooLarge, InternalError, NotReady, QueueFull, ServiceError
from app.fairness import FairQueue, Line
from app.jobs import BatchReport, Job, Place, Progress, Status, Ticket
from app.supervision import SupervisedThread

T = TypeVar("T")
R = TypeVar("R")

LONGEST_RETRY_SECONDS = 60
BATCHES_REMEMBERED = 16

logger = logging.getLogger(__name__)


class Batcher(Generic[T, R]):
    """A bounded queue of jobs and the worker thread that runs them in batches.

    Args:
        run: runs a batch of items of one key and returns their results in order; called in the worker thread alone.
        cost: what an item costs, at least 1; the budgets are in this unit.
        max_batch_cost: what a batch may cost.
        max_queue_cost, max_queue_requests: what may wait.
        max_queue_delay: seconds that a free worker waits for a fuller batch.
        clock: monotonic seconds; deadlines are times of this clock.
        on_batch: told about every batch that ran.
        on_fatal: called when the worker has died too often in a row to be started again.
        restart_delay: seconds before the first restart of a dead worker; doubled at each further death in a row.
    """

    def __init__(
        self,
        run: Callable[[str, list[T]], list[R]],
        cost: Callable[[T], int],
        *,
        max_batch_cost: int,
        max_queue_cost: int,
        max_queue_requests: int,
        max_queue_delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
        on_fatal: Callable[[], None] = lambda: None,
        restart_delay: float = 0.1,
    ) -> None:
        self.max_batch_cost = max_batch_cost
        self.max_queue_cost = max_queue_cost
        self.max_queue_requests = max_queue_requests
        self._run = run
        self._cost = cost
        self._max_queue_delay = max_queue_delay
        self._clock = clock
        self._on_batch = on_batch
        self._worker = SupervisedThread(self._work, self._bury, on_fatal=on_fatal, restart_delay=restart_delay)
        self._changed = threading.Condition()
        # All below is guarded by the condition's lock.
        self._queue: FairQueue[Job[T, R]] = FairQueue()
        self._places: set[Place] = set()
        self._halves: list[list[Job[T, R]]] = []  # of batches that failed, run before anything else
        self._taken: list[Job[T, R]] = []
        self._running_since: float | None = None
        self._speeds: deque[tuple[int, float]] = deque(maxlen=BATCHES_REMEMBERED)
        self._draining = False

    # The callers' side: any thread.

    def reserve(self, cost: int) -> Place:
        """Hold a place for a request that will cost ``cost`` at most, before its items are at hand.

        Raises:
            QueueFull, Draining, NotReady: if it cannot be taken now.
            ImageTooLarge: if it could never be.
        """
        with self._changed:
            self._make_sure_of_room(cost)
            place = Place(cost, self.give_back)
            self._places.add(place)
            return place

    def give_back(self, place: Place) -> None:
        """Release a place, unless it was used."""
        with self._changed:
            self._places.discard(place)
            self._changed.notify_all()

    def admit(
        self,
        key: str,
        items: Sequence[T],
        *,
        client: str = "",
        deadline: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        place: Place | None = None,
    ) -> Ticket[T, R]:
        """Take in all items of a request, or none.

        Args:
            key: only items of one key share a batch.
            items: at least one.
            client: whose request this is; clients take turns.
            deadline: time of the clock after which the items are not run any more.
            on_progress: called when the request's place or the number of finished items changes, mostly in the worker
                thread; must neither block nor call the batcher.
            place: an earlier reservation, which is used up.

        Raises:
            QueueFull, Draining, NotReady: if it cannot be taken now.
            ImageTooLarge: if it could never be.
        """
        ticket = Ticket(key, deadline, self._clock(), on_progress, self._cancel)
        jobs = [Job(item, self._cost(item), ticket) for item in items]
        ticket.futures = [job.future for job in jobs]
        ticket.total = len(jobs)
        self._refuse_unfit(jobs)
        with self._changed:
            cost = sum(job.cost for job in jobs)
            held = place in self._places and place is not None and cost <= place.cost and self.alive
            if place is not None:
                self._places.discard(place)
            if not held:
                self._make_sure_of_room(cost, promised=place is not None)
            ticket.line = Line(key, client, deque((job.cost, job) for job in jobs))
            self._queue.add(ticket.line)
            ticket.position = len(self._queue)
            ticket.tell("queued")
            self._changed.notify_all()
        return ticket

    def status(self) -> Status:
        """How things stand now."""
        with self._changed:
            since = self._running_since
            return Status(
                waiting_requests=len(self._queue) + len(self._places),
                waiting_cost=self._waiting_cost,
                running_jobs=0 if since is None else len(self._taken),
                running_seconds=0.0 if since is None else self._clock() - since,
                alive=self.alive,
                draining=self._draining,
            )

    @property
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""
        return self._worker.alive

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def drain(self) -> None:
        """Refuse what is new from now on; what was admitted is finished."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        self._worker.hurry()

    def close(self, timeout: float | None = None) -> bool:
        """Drain, and wait for the worker to finish everything, ``timeout`` seconds at most.

        Returns:
            Whether everything was finished. If not, what waited was answered with ``Draining``.
        """
        self.drain()
        finished = not self._worker.started or self._worker.join(timeout)
        self._fail_waiting(Draining("This server was shut down before the request's turn came. Send it again."))
        return finished

    def _cancel(self, ticket: Ticket[T, R]) -> None:
        with self._changed:
            ticket.cancelled = True
            waiting = self._queue.remove(ticket.line) if ticket.line is not None else []
            self._changed.notify_all()
        for job in waiting:
            job.future.cancel()

    @property
    def _waiting_cost(self) -> int:
        return self._queue.cost + sum(place.cost for place in self._places)

    def _refuse_unfit(self, jobs: Iterable[Job[T, R]]) -> None:
        largest = max(job.cost for job in jobs)
        if largest > self.max_batch_cost:
            raise ImageTooLarge(
                f"A piece of {largest} pixels is more than the {self.max_batch_cost} that are computed at once.",
                limit=self.max_batch_cost,
                actual=largest,
            )

    def _make_sure_of_room(self, cost: int, *, promised: bool = False) -> None:
        if cost > self.max_queue_cost:
            raise ImageTooLarge(
                f"With its tiles and passes this is work for {cost} pixels, and the queue holds {self.max_queue_cost}. "
                "Send a smaller image, or one without transparency, or leave out the ensemble.",
                limit=self.max_queue_cost,
                actual=cost,
            )
        if self._draining and not promised:
            raise Draining("This server is shutting down. Send the request again.")
        if not self.alive:
            raise NotReady("The worker is not running. Use another server, or restart this one.")
        requests = len(self._queue) + len(self._places)
        if requests >= self.max_queue_requests:
            raise self._full("requests", self.max_queue_requests, requests)
        if self._waiting_cost + cost > self.max_queue_cost:
            raise self._full("pixels", self.max_queue_cost, self._waiting_cost + cost)

    def _full(self, unit: str, limit: int, actual: int) -> QueueFull:
        cost = sum(cost for cost, _ in self._speeds)
        seconds = sum(seconds for _, seconds in self._speeds)
        needed = self._waiting_cost * seconds / cost if cost else 1.0
        return QueueFull(
            f"The queue holds {limit} {unit} and no more. Try again after the time in Retry-After.",
            retry_after=min(max(math.ceil(needed), 1), LONGEST_RETRY_SECONDS),
            reason=unit,
            limit=limit,
            actual=actual,
        )

    # The worker's side: its thread alone.

    def _work(self) -> None:
        while (taken := self._next_batch()) is not None:
            key, jobs = taken
            jobs = [job for job in jobs if job.claim()]
            if not jobs:
                continue
            try:
                self._run_batch(key, jobs)
            except Exception as error:  # noqa: BLE001 - whatever it was, it concerns these jobs alone
                self._blame(jobs, error)
            with self._changed:
                self._taken, self._running_since = [], None

    def _next_batch(self) -> tuple[str, list[Job[T, R]]] | None:
        """Wait for work; None when draining is complete."""
        with self._changed:
            while True:
                if self._halves:
                    self._taken = self._halves.pop()
                    return self._taken[0].ticket.key, self._taken
                wait: float | None = None
                if self._queue:
                    wait = self._company()
                    if wait <= 0:
                        break
                elif self._draining and not self._places:
                    return None
                self._changed.wait(wait)
            key, jobs = self._queue.take(self.max_batch_cost)
            self._taken = jobs
            self._tell_positions()
        return key, self._in_time(jobs)

    def _company(self) -> float:
        """Seconds to wait for a fuller batch."""
        if self._max_queue_delay <= 0 or self._draining or self._queue.next_cost() >= self.max_batch_cost:
            return 0.0
        oldest = next(iter(self._queue)).jobs[0][1].ticket.admitted_at
        return oldest + self._max_queue_delay - self._clock()

    def _in_time(self, jobs: list[Job[T, R]]) -> list[Job[T, R]]:
        now = self._clock()
        late = [job for job in jobs if job.ticket.deadline is not None and now >= job.ticket.deadline]
        for job in late:
            job.fail(DeadlineExceeded("The deadline passed while the request waited."))
        return [job for job in jobs if job not in late] if late else jobs

    def _tell_positions(self) -> None:
        for position, line in enumerate(self._queue, 1):
            ticket = line.jobs[0][1].ticket
            if ticket.started_at is None and ticket.position != position:
                ticket.position = position
                ticket.tell("queued")

    def _run_batch(self, key: str, jobs: list[Job[T, R]]) -> None:
        started = self._clock()
        with self._changed:
            self._running_since = started
        tickets = list({job.ticket: None for job in jobs})
        waits = tuple(started - ticket.admitted_at for ticket in tickets if ticket.started_at is None)
        for ticket in tickets:
            if ticket.started_at is None:
                ticket.started_at = started
                ticket.tell("running")
        results = self._run(key, [job.item for job in jobs])
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(jobs)} items gave {len(results)} results")
        finished = self._clock()
        for ticket in tickets:
            ticket.forward_seconds += finished - started
            ticket.finished_at = finished
        for job, result in zip(jobs, results, strict=True):
            job.ticket.done += 1
            job.future.set_result(result)
        self._worker.succeed()
        cost = sum(job.cost for job in jobs)
        with self._changed:
            self._speeds.append((cost, finished - started))
        for ticket in tickets:
            ticket.tell("running")
        self._on_batch(BatchReport(key, len(jobs), cost, finished - started, waits))

    def _blame(self, jobs: list[Job[T, R]], error: Exception) -> None:
        """Split a batch that failed, until the culprit is alone and the only one to fail."""
        left = [job for job in jobs if not job.future.done()]
        if len(left) > 1:
            middle = len(left) // 2
            with self._changed:
                self._halves += [left[middle:], left[:middle]]
            return
        if not isinstance(error, ServiceError):
            logger.error("a batch failed", exc_info=error)
        for job in left:
            job.fail(error if isinstance(error, ServiceError) else InternalError())

    def _bury(self) -> None:
        """Leave nobody waiting after the worker died."""
        with self._changed:
            orphans = [*self._taken, *(job for half in self._halves for job in half)]
            self._taken, self._halves, self._running_since = [], [], None
        error = NotReady("The worker failed and is being started again. Send the request again.", retry_after=1)
        for job in orphans:
            job.fail(error)
        self._fail_waiting(error)

    def _fail_waiting(self, error: ServiceError) -> None:
        with self._changed:
            jobs = [job for line in list(self._queue) for job in self._queue.remove(line)]
        for job in jobs:
            job.fail(error)

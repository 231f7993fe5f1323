"""The one place where requests wait, and the one thread that works on them.

It knows no images: jobs have a key (only jobs of one key share a batch), a cost, and a callable that runs a batch.
Every future is resolved exactly once, by whoever owns the job at that moment: the queue's lock decides who that is.

    admitted -> waiting -> taken -> running -> result | error
                   |         |
                   +---------+-> cancelled | deadline passed | worker lost
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.admission import WaitingRoom
from app.budget import Budget
from app.errors import DeadlineExceeded, Draining, InternalError, NotReady, OutOfMemory, ServiceError
from app.jobs import BatchReport, Job, Place, Progress, Status, Ticket
from app.supervision import Pulse, SupervisedThread

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class Batcher(Generic[T, R]):
    """A bounded queue of jobs and the worker thread that runs them in batches.

    Args:
        run: runs a batch of items of one key and returns their results in order; called in the worker thread alone.
        cost: what an item costs, at least 1; the budgets are in this unit.
        max_batch_cost: what a batch may cost; less while memory is short.
        max_queue_cost, max_queue_requests: what may wait.
        max_queue_delay: seconds that a free worker waits for a fuller batch.
        clock: monotonic seconds; deadlines are times of this clock.
        on_batch: told about every batch that ran.
        on_fatal: called when the worker has died too often in a row to be started again.
        restart_delay: seconds before the first restart of a dead worker; doubled at each further death in a row.
        pulse: beaten by whoever works, also within ``run`` where that takes long.
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
        pulse: Pulse | None = None,
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_queue_delay = max_queue_delay
        self._clock = clock
        self._on_batch = on_batch
        self._pulse = pulse or Pulse(clock)
        self._budget = Budget(max_batch_cost)
        self._worker = SupervisedThread(self._work, self._bury, on_fatal=on_fatal, restart_delay=restart_delay)
        self._room: WaitingRoom[T, R] = WaitingRoom(
            max_batch_cost=max_batch_cost,
            max_cost=max_queue_cost,
            max_requests=max_queue_requests,
            clock=clock,
            is_alive=lambda: self.alive,
        )
        # All below is guarded by the room's lock.
        self._halves: list[list[Job[T, R]]] = []  # of batches that failed, run before anything else
        self._taken: list[Job[T, R]] = []
        self._running_since: float | None = None

    # The callers' side: any thread.

    def reserve(self, cost: int, *, client: str = "") -> Place:
        """Hold a place for a request that will cost ``cost`` at most, before its items are at hand.

        Raises:
            QueueFull, Draining, NotReady: if it cannot be taken now.
            ImageTooLarge: if it could never be.
        """
        return self._room.reserve(cost, client)

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
        if not self._room.has_jobs:
            self._pulse.beat()  # silence counts from when there is work
        self._room.admit(ticket, jobs, client, place)
        return ticket

    def lower_budget(self, cost: int) -> None:
        """Let a batch cost no more than this from now on; a single item above it still runs, alone."""
        with self._room.changed:
            self._budget.lower(cost)

    def status(self) -> Status:
        """How things stand now."""
        with self._room.changed:
            since = self._running_since
            busy = since is not None or self._room.has_jobs or bool(self._halves)
            return Status(
                waiting_requests=self._room.requests,
                waiting_cost=self._room.cost,
                running_jobs=0 if since is None else len(self._taken),
                running_seconds=0.0 if since is None else self._clock() - since,
                silent_seconds=self._pulse.silent_seconds if busy else 0.0,
                batch_budget=self._budget.now,
                out_of_memory=self._budget.failures,
                alive=self.alive,
                draining=self._room.draining,
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
        self._room.drain()
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
        ticket.cancelled = True
        for job in self._room.remove(ticket):
            job.future.cancel()

    # The worker's side: its thread alone.

    def _work(self) -> None:
        while self._work_once():
            pass  # between batches nothing is held, so that memory and weights are free again

    def _work_once(self) -> bool:
        taken = self._next_batch()
        if taken is None:
            return False
        key, jobs = taken
        jobs = [job for job in jobs if job.claim()]
        try:
            if jobs:
                self._run_batch(key, jobs)
        except Exception as error:  # noqa: BLE001 - whatever it was, it concerns these jobs alone
            self._blame(jobs, error)
        with self._room.changed:
            self._taken, self._running_since = [], None
        return True

    def _next_batch(self) -> tuple[str, list[Job[T, R]]] | None:
        """Wait for work; None when draining is complete."""
        room = self._room
        with room.changed:
            while True:
                if self._halves:
                    self._taken = self._halves.pop()
                    return self._taken[0].ticket.key, self._taken
                if room.expects_none:
                    return None
                wait = room.company(self._max_queue_delay, self._budget.now) if room.has_jobs else None
                if wait is not None and wait <= 0:
                    break
                room.changed.wait(wait)
            self._pulse.beat()
            key, self._taken = room.take(self._budget.now)
            room.tell_places()
        return key, self._in_time(self._taken)

    def _in_time(self, jobs: list[Job[T, R]]) -> list[Job[T, R]]:
        now = self._clock()
        late = [job for job in jobs if job.ticket.deadline is not None and now >= job.ticket.deadline]
        for job in late:
            job.fail(DeadlineExceeded("The deadline passed while the request waited."))
        return [job for job in jobs if job not in late] if late else jobs

    def _run_batch(self, key: str, jobs: list[Job[T, R]]) -> None:
        started = self._clock()
        with self._room.changed:
            self._running_since = started
        self._pulse.beat()
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
        with self._room.changed:
            self._room.remember(cost, finished - started)
            self._budget.succeed()
        for ticket in tickets:
            ticket.tell("running")
        self._on_batch(BatchReport(key, len(jobs), cost, finished - started, waits))

    def _blame(self, jobs: list[Job[T, R]], error: Exception) -> None:
        """Split a batch that failed, until the culprit is alone and the only one to fail."""
        left = [job for job in jobs if not job.future.done()]
        starved = isinstance(error, OutOfMemory | MemoryError)
        again: list[list[Job[T, R]]] = []
        if len(left) > 1:
            middle = len(left) // 2
            again = [left[middle:], left[:middle]]
        elif starved and left and not left[0].retried:
            left[0].retried = True
            again = [left]
        with self._room.changed:
            self._halves += again
            if starved:
                self._budget.shrink(sum(job.cost for job in jobs))
        if starved:
            logger.warning("memory ran out; a batch has %d pixels at most now", self._budget.now)
        elif not again and not isinstance(error, ServiceError):
            logger.error("a batch failed", exc_info=error)
        if not again:
            answer = OutOfMemory() if starved else InternalError()
            for job in left:
                job.fail(error if isinstance(error, ServiceError) else answer)

    def _bury(self) -> None:
        """Leave nobody waiting after the worker died."""
        with self._room.changed:
            orphans = [*self._taken, *(job for half in self._halves for job in half)]
            self._taken, self._halves, self._running_since = [], [], None
        error = NotReady("The worker failed and is being started again. Send the request again.", retry_after=1)
        for job in orphans:
            job.fail(error)
        self._fail_waiting(error)

    def _fail_waiting(self, error: ServiceError) -> None:
        for job in self._room.clear():
            job.fail(error)

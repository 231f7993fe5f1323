"""The one place where requests wait, and the one thread that works on them.

It knows no images: jobs have a key (only jobs of one key share a batch), a cost, and a callable that runs a batch.
Every future is resolved exactly once, by whoever owns the job at that moment: the queue's lock decides who that is.

    admitted -> waiting -> taken -> running -> result | error
                   |         |
                   +---------+-> cancelled | deadline passed | worker lost

A device that computes by itself is given the next batch while it has one, so that it never waits for the host.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from app.batching.admission import WaitingRoom
from app.batching.batch import Batch, BatchReport, Running, UnderWay
from app.batching.jobs import Job, Place, Progress, Status, Ticket
from app.batching.memory_budget import Budget
from app.batching.supervision import Pulse, SupervisedThread
from app.errors import Draining, InternalError, NotReady, OutOfMemory, ServiceError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

AHEAD = 2
"""Batches that a device has at a time: the one that it computes, and the next."""

GLANCE_SECONDS = 5e-4
"""How often the worker looks at a device that has something: a device tells nobody that it is done. What a request may
wait longer for that."""


class Batcher(Generic[T, R]):
    """A bounded queue of jobs and the worker thread that runs them in batches.

    Args:
        run: runs a batch of items of one key and returns the list of their results in order, or gives it to a device
            and returns what becomes of it; called in the worker thread alone.
        cost: what an item costs, at least 1; the budgets are in this unit.
        max_batch_cost: what a batch may cost; less while memory is short.
        max_queue_cost, max_queue_requests: what may wait.
        max_queue_delay: seconds that a free worker waits for a fuller batch.
        enough: cost from which on a batch is given to a device that still has another; by default a full one, for which
            there is nothing to wait for.
        clock: monotonic seconds; deadlines are times of this clock.
        on_batch: told about every batch that ran.
        on_fatal: called when the worker has died too often in a row to be started again.
        is_lost: whether after this error of a batch all others would fail too; then ``on_fatal`` is called at once.
        restart_delay: seconds before the first restart of a dead worker; doubled at each further death in a row.
        pulse: beaten by whoever works, also within ``run`` where that takes long.
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
        enough: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
        on_fatal: Callable[[], None] = lambda: None,
        is_lost: Callable[[Exception], bool] = lambda _error: False,
        restart_delay: float = 0.1,
        pulse: Pulse | None = None,
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_queue_delay = max_queue_delay
        self._enough = max_batch_cost if enough is None else enough
        self._clock = clock
        self._on_batch = on_batch
        self._is_lost = is_lost
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
        self._under_way: UnderWay[T, R] = UnderWay()
        self._ended_at = -math.inf  # the worker's own

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
        with self._room.changed:
            if not self._room.has_jobs and not self._under_way.all:
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
            begun = [batch for batch in self._under_way.all if batch.started_at is not None]
            since = begun[0].started_at if begun else None
            busy = bool(self._under_way.all) or self._room.has_jobs
            return Status(
                waiting_requests=self._room.requests,
                waiting_cost=self._room.cost,
                running_jobs=sum(len(batch.jobs) for batch in begun),
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
        for job in self._room.clear():
            job.fail(Draining("This server was shut down before the request's turn came. Send it again."))
        return finished

    def _cancel(self, ticket: Ticket[T, R]) -> None:
        ticket.cancelled = True
        for job in self._room.remove(ticket):
            job.future.cancel()

    # The worker's side: its thread alone.

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            step()  # between steps only what runs is held, so that memory and weights are free again

    def _next_step(self) -> Callable[[], None] | None:
        """Wait until a batch can be begun or ended; None when draining is complete."""
        room, under_way = self._room, self._under_way
        while True:
            if under_way.look():  # without the lock: the device may be slow to answer
                self._pulse.beat()
            with room.changed:
                if self._can_take():
                    self._take()
                    return self._begin_taken
                if under_way.is_over:
                    return self._end_oldest
                if room.expects_none and not under_way.running:
                    return None
                room.changed.wait(self._patience())

    def _can_take(self) -> bool:
        room, under_way, budget = self._room, self._under_way, self._budget.now
        if under_way.halves:
            return not under_way.running
        if not room.has_jobs or len(under_way.running) == AHEAD:
            return False
        is_free = not under_way.running or under_way.is_over
        return (is_free or room.holds(min(self._enough, budget))) and room.company(self._max_queue_delay, budget) <= 0

    def _take(self) -> None:
        self._pulse.beat()
        if self._under_way.halves:
            self._under_way.taken = self._under_way.halves.pop()
            return
        self._under_way.taken = Batch(*self._room.take(self._budget.now))
        self._room.tell_places()

    def _patience(self) -> float | None:
        """Seconds after which to look again, though nobody has said that something changed."""
        if self._under_way.running:
            return GLANCE_SECONDS
        return self._room.company(self._max_queue_delay, self._budget.now) if self._room.has_jobs else None

    def _begin_taken(self) -> None:
        batch = self._under_way.taken
        assert batch is not None, "a step to begin it follows its taking"
        batch.claim(self._clock())
        if batch.jobs:
            self._attempt(batch, self._begin)
        with self._room.changed:
            self._under_way.taken = None

    def _end_oldest(self) -> None:
        batch, running = self._under_way.running[0]
        self._attempt(batch, partial(self._receive, running=running))
        with self._room.changed:
            self._under_way.running.popleft()
            self._under_way.share = 0.0

    def _attempt(self, batch: Batch[T, R], step: Callable[[Batch[T, R]], None]) -> None:
        try:
            step(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, it concerns these jobs alone
            self._blame(batch, error)

    def _begin(self, batch: Batch[T, R]) -> None:
        self._pulse.beat()
        started = self._clock()
        batch.begin(started)
        found = self._run(batch.key, [job.item for job in batch.jobs])
        if isinstance(found, list):
            self._end(batch, found, started, self._clock())
            return
        with self._room.changed:
            self._under_way.taken = None
            self._under_way.running.append((batch, found))

    def _receive(self, batch: Batch[T, R], running: Running[R]) -> None:
        assert batch.started_at is not None, "it was begun"
        since = max(batch.started_at, self._ended_at)  # until then it stood behind another
        try:
            results = running.results()
        finally:
            self._ended_at = self._clock()
        self._end(batch, results, since, self._ended_at)

    def _end(self, batch: Batch[T, R], results: list[R], since: float, now: float) -> None:
        seconds = now - since
        self._pulse.beat()
        batch.deliver(results, now, seconds)
        self._worker.succeed()
        with self._room.changed:
            self._room.remember(batch.cost, seconds)
            self._budget.succeed()
        for ticket in batch.tickets:
            ticket.tell("running")
        waits = tuple(since - ticket.admitted_at for ticket in batch.firsts)
        self._on_batch(BatchReport(batch.key, len(batch.jobs), batch.cost, seconds, waits))

    def _blame(self, batch: Batch[T, R], error: Exception) -> None:
        """Split a batch that failed, until the culprit is alone and the only one to fail."""
        if self._is_lost(error):
            self._worker.give_up_next()
            raise error
        starved = isinstance(error, OutOfMemory | MemoryError)
        again = batch.split(starved=starved)
        with self._room.changed:
            self._under_way.halves += again
            if starved:
                self._budget.shrink(batch.cost)
        if starved:
            logger.warning("memory ran out; a batch has %d pixels at most now", self._budget.now)
        elif not again and not isinstance(error, ServiceError):
            logger.error("a batch failed", exc_info=error)
        if not again:
            answer = OutOfMemory() if starved else InternalError()
            batch.fail(error if isinstance(error, ServiceError) else answer)

    def _bury(self) -> None:
        """Leave nobody waiting after the worker died; who comes from now on is for the next one."""
        with self._room.changed:
            orphans = self._under_way.clear() + self._room.clear()
        error = NotReady("The worker failed and is being started again. Send the request again.", retry_after=1)
        for job in orphans:
            job.fail(error)

"""The admission queue: a request is admitted as a whole or refused, in one step under one lock."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from app.batching.fair_queue import FairQueue
from app.batching.jobs import Job, Reservation, Submission
from app.errors import Draining, ImageTooLarge, NotReady, QueueFull

T = TypeVar("T")
R = TypeVar("R")

LONGEST_RETRY_S = 60
BATCHES_REMEMBERED = 16


class AdmissionQueue(Generic[T, R]):
    """A queue that is bounded in requests and in cost, and shared between named clients.

    A client may fill the whole queue while no other client waits. While others wait, a client that already has a
    waiting request gets more only if it then holds at most as much as is still free. What a client holds beyond half of
    the queue does not count against a client that has nothing waiting, so no client can lock another one out.

    Args:
        max_job_cost: largest cost of one job.
        max_cost, max_requests: bounds of what waits.
        clock: monotonic seconds.
        is_alive: whether a worker serves the queue.

    Attributes:
        changed: its lock guards everything here; it is notified of every change.
        draining: whether new requests are refused.
    """

    def __init__(
        self,
        *,
        max_job_cost: int,
        max_cost: int,
        max_requests: int,
        clock: Callable[[], float],
        is_alive: Callable[[], bool],
    ) -> None:
        self.changed = threading.Condition()
        self.draining = False
        self._max_job_cost = max_job_cost
        self._max_cost = max_cost
        self._max_requests = max_requests
        self._clock = clock
        self._is_alive = is_alive
        self._queue: FairQueue[T, R] = FairQueue()
        self._reservations: set[Reservation] = set()
        self._speeds: deque[tuple[int, float]] = deque(maxlen=BATCHES_REMEMBERED)

    @property
    def requests(self) -> int:
        """Number of requests that wait or have a reservation."""
        return len(self._queue) + sum(not each.is_used for each in self._reservations)

    @property
    def cost(self) -> int:
        """Cost of what waits and of reservations."""
        return self._queue.cost + sum(reservation.cost for reservation in self._reservations)

    @property
    def has_ready(self) -> bool:
        """Whether there is a job that may be taken."""
        return self._queue.has_ready

    @property
    def is_finished(self) -> bool:
        """Whether nothing waits and nothing can be admitted any more."""
        return self.draining and not len(self._queue) and not self._reservations

    # Called by callers.

    def reserve(self, cost: int, client: str) -> Reservation:
        """As ``Batcher.reserve``."""
        with self.changed:
            self._check_capacity(cost, client)
            reservation = Reservation(cost, client, self.discard)
            self._reservations.add(reservation)
            return reservation

    def discard(self, reservation: Reservation) -> None:
        """Free a reservation, unless it was used."""
        with self.changed:
            self._reservations.discard(reservation)
            self.changed.notify_all()

    def admit(self, submission: Submission[T, R], reservation: Reservation | None, *, is_last: bool = True) -> None:
        """Admit all waiting jobs of a submission, or none; see ``Batcher.admit``."""
        self._check_job(max(job.cost for job in submission.waiting))
        cost = submission.cost
        with self.changed:
            reserved = reservation in self._reservations and reservation is not None
            fits = reserved and reservation is not None and cost <= reservation.cost and self._is_alive()
            if reservation is not None:
                reservation.cost, reservation.is_used = max(0, reservation.cost - cost), True
                if is_last:
                    self._reservations.discard(reservation)
            if not fits:
                self._check_capacity(cost, submission.client, promised=reservation is not None)
            self._queue.add(submission)
            submission.position = len(self._queue)
            submission.report_progress("queued")
            self.changed.notify_all()

    def remove(self, submission: Submission[T, R]) -> list[Job[T, R]]:
        """Remove a submission from the queue and return its waiting jobs."""
        with self.changed:
            jobs = self._queue.remove(submission)
            self.changed.notify_all()
            return jobs

    def release(self, submission: Submission[T, R], count: int) -> None:
        """Count results of a submission as used."""
        with self.changed:
            self._queue.release(submission, count)
            self.changed.notify_all()

    def clear(self) -> list[Job[T, R]]:
        """Remove all submissions and return their waiting jobs."""
        with self.changed:
            return [job for submission in list(self._queue) for job in self._queue.remove(submission)]

    def drain(self) -> None:
        """Refuse new requests. Those with a reservation are still admitted."""
        with self.changed:
            self.draining = True
            self.changed.notify_all()

    # Called by the worker, which holds the lock.

    def take(self, budget: int) -> tuple[str, list[Job[T, R]]]:
        """The next batch, of one key."""
        return self._queue.take(budget)

    def report_positions(self) -> None:
        """Tell each request that has not started its new position."""
        for position, submission in enumerate(self._queue, 1):
            if submission.started_at is None and submission.position != position:
                submission.position = position
                submission.report_progress("queued")

    def has_at_least(self, cost: int) -> bool:
        """Whether jobs of this cost wait for the next batch's key."""
        return self._queue.next_cost() >= cost

    def batching_delay(self, delay: float, budget: int) -> float:
        """Seconds to wait for a fuller batch; the oldest request waits at most ``delay`` seconds."""
        if delay <= 0 or self.draining or self.has_at_least(budget):
            return 0.0
        return next(iter(self._queue)).admitted_at + delay - self._clock()

    def record(self, cost: int, seconds: float) -> None:
        """Remember the speed of a batch."""
        self._speeds.append((cost, seconds))

    def expected_seconds(self, cost: int) -> float:
        """Seconds that jobs of this cost will take at the speed of the latest batches; 0 before the first batch."""
        known = sum(cost for cost, _ in self._speeds)
        return cost * sum(seconds for _, seconds in self._speeds) / known if known else 0.0

    def _check_job(self, cost: int) -> None:
        if cost > self._max_job_cost:
            raise ImageTooLarge(
                f"A tile of {cost} pixels is larger than the largest tile of this server: {self._max_job_cost} pixels. "
                "Ask for smaller tiles with the option tile.",
                limit=self._max_job_cost,
                actual=cost,
            )

    def _check_capacity(self, cost: int, client: str, *, promised: bool = False) -> None:
        if cost > self._max_cost:
            raise ImageTooLarge(
                f"This request needs {cost} pixels of work (tiles, passes, alpha, ensemble), and the queue holds "
                f"{self._max_cost} (MAX_QUEUE_PIXELS). Send a smaller image or one without transparency, or omit "
                "ensemble.",
                limit=self._max_cost,
                actual=cost,
            )
        if self.draining and not promised:
            raise Draining("This server is shutting down. Send the request again.")
        if not self._is_alive():
            raise NotReady("The worker is not running. Use another server, or restart this one.")
        costs, requests = Counter[str](), Counter[str]()
        for each in (*self._queue, *self._reservations):
            costs[each.client] += each.cost
            requests[each.client] += not (isinstance(each, Reservation) and each.is_used)
        self._check_limit("pixels", self._max_cost, costs, cost, client)
        self._check_limit("requests", self._max_requests, requests, 1, client)

    def _check_limit(self, unit: str, limit: int, held: Counter[str], wanted: int, client: str) -> None:
        """Check one of the two bounds, given what each client holds."""
        own, used = held[client], held.total()
        if client and not own:
            used = sum(min(each, limit // 2) if name else each for name, each in held.items())
        if used + wanted > limit:
            self._refuse(f"The queue is full: {limit} {unit}.", unit, limit, used + wanted)
        if client and own and used > own and own + wanted > limit - used:
            self._refuse(
                f"Your share of the queue is full: {limit - used} {unit} while requests with other API keys wait.",
                "share",
                limit - used,
                own + wanted,
            )

    def _refuse(self, sentence: str, reason: str, limit: int, actual: int) -> NoReturn:
        needed = self.expected_seconds(self.cost) if self._speeds else 1.0
        raise QueueFull(
            f"{sentence} Try again after the time in Retry-After.",
            retry_after=min(max(math.ceil(needed), 1), LONGEST_RETRY_S),
            reason=reason,
            limit=limit,
            actual=actual,
        )

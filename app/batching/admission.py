"""The door and the waiting room: a request is taken in as a whole, or refused, in one step under one lock."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, NoReturn, TypeVar

from app.batching.fair_queue import FairQueue, Line
from app.batching.jobs import Job, Place, Ticket
from app.errors import Draining, ImageTooLarge, NotReady, QueueFull

T = TypeVar("T")
R = TypeVar("R")

LONGEST_RETRY_SECONDS = 60
BATCHES_REMEMBERED = 16


class WaitingRoom(Generic[T, R]):
    """Bounded in requests and in cost; nobody who waits can keep others from coming in.

    A named client that has something waiting may hold no more than what it leaves free. So one client takes half of
    the room at most by and by, two a third each, and there is always some left for the next. A request of a client
    that has nothing waiting is measured by the whole room, however large it is.

    Args:
        max_batch_cost: what a job may cost.
        max_cost, max_requests: what may wait.
        clock: monotonic seconds.
        is_alive: whether somebody works on what waits.

    Attributes:
        changed: its lock guards everything here; it is notified of every change.
        draining: whether nothing new is taken in any more.
    """

    def __init__(
        self,
        *,
        max_batch_cost: int,
        max_cost: int,
        max_requests: int,
        clock: Callable[[], float],
        is_alive: Callable[[], bool],
    ) -> None:
        self.changed = threading.Condition()
        self.draining = False
        self._max_batch_cost = max_batch_cost
        self._max_cost = max_cost
        self._max_requests = max_requests
        self._clock = clock
        self._is_alive = is_alive
        self._queue: FairQueue[Job[T, R]] = FairQueue()
        self._places: set[Place] = set()
        self._speeds: deque[tuple[int, float]] = deque(maxlen=BATCHES_REMEMBERED)

    @property
    def requests(self) -> int:
        """How many requests wait or have a place."""
        return len(self._queue) + len(self._places)

    @property
    def cost(self) -> int:
        """What waits, and what has a place."""
        return self._queue.cost + sum(place.cost for place in self._places)

    @property
    def has_jobs(self) -> bool:
        """Whether there is something to take."""
        return len(self._queue) > 0

    @property
    def expects_none(self) -> bool:
        """Whether nothing waits, and nothing can come any more."""
        return self.draining and not self.has_jobs and not self._places

    # The callers' side.

    def reserve(self, cost: int, client: str) -> Place:
        """As ``Batcher.reserve``."""
        with self.changed:
            self._make_sure_of_room(cost, client)
            place = Place(cost, client, self.give_back)
            self._places.add(place)
            return place

    def give_back(self, place: Place) -> None:
        """Release a place, unless it was used."""
        with self.changed:
            self._places.discard(place)
            self.changed.notify_all()

    def admit(self, ticket: Ticket[T, R], jobs: Iterable[Job[T, R]], client: str, place: Place | None) -> None:
        """Take in all jobs of a request, or none; see ``Batcher.admit``."""
        line = Line(ticket.key, client, deque((job.cost, job) for job in jobs))
        self._refuse_unfit(max(cost for cost, _ in line.jobs))
        cost = line.cost
        with self.changed:
            held = place in self._places and place is not None and cost <= place.cost and self._is_alive()
            if place is not None:
                self._places.discard(place)
            if not held:
                self._make_sure_of_room(cost, client, promised=place is not None)
            ticket.line = line
            self._queue.add(line)
            ticket.position = len(self._queue)
            ticket.tell("queued")
            self.changed.notify_all()

    def remove(self, ticket: Ticket[T, R]) -> list[Job[T, R]]:
        """Take out what waits of a request."""
        with self.changed:
            waiting = self._queue.remove(ticket.line) if ticket.line is not None else []
            self.changed.notify_all()
            return waiting

    def clear(self) -> list[Job[T, R]]:
        """Take out everything that waits."""
        with self.changed:
            return [job for line in list(self._queue) for job in self._queue.remove(line)]

    def drain(self) -> None:
        """Take in nothing new, but for those who have a place."""
        with self.changed:
            self.draining = True
            self.changed.notify_all()

    # The worker's side; its caller holds the lock.

    def take(self, budget: int) -> tuple[str, list[Job[T, R]]]:
        """The next batch, of one key."""
        return self._queue.take(budget)

    def tell_places(self) -> None:
        """Let those who still wait know their new places."""
        for position, line in enumerate(self._queue, 1):
            ticket = line.jobs[0][1].ticket
            if ticket.started_at is None and ticket.position != position:
                ticket.position = position
                ticket.tell("queued")

    def holds(self, cost: int) -> bool:
        """Whether so much waits for the next batch's key."""
        return self._queue.next_cost() >= cost

    def company(self, delay: float, budget: int) -> float:
        """Seconds to wait for a fuller batch, if the oldest request may wait ``delay`` for it."""
        if delay <= 0 or self.draining or self.holds(budget):
            return 0.0
        oldest = next(iter(self._queue)).jobs[0][1].ticket.admitted_at
        return oldest + delay - self._clock()

    def remember(self, cost: int, seconds: float) -> None:
        """Learn how fast the queue is worked off."""
        self._speeds.append((cost, seconds))

    def _refuse_unfit(self, largest: int) -> None:
        if largest > self._max_batch_cost:
            raise ImageTooLarge(
                f"A piece of {largest} pixels is more than the {self._max_batch_cost} that are computed at once.",
                limit=self._max_batch_cost,
                actual=largest,
            )

    def _make_sure_of_room(self, cost: int, client: str, *, promised: bool = False) -> None:
        if cost > self._max_cost:
            raise ImageTooLarge(
                f"With its tiles and passes this is work for {cost} pixels, and the queue holds {self._max_cost}. "
                "Send a smaller image, or one without transparency, or leave out the ensemble.",
                limit=self._max_cost,
                actual=cost,
            )
        if self.draining and not promised:
            raise Draining("This server is shutting down. Send the request again.")
        if not self._is_alive():
            raise NotReady("The worker is not running. Use another server, or restart this one.")
        if self.requests >= self._max_requests:
            self._refuse(f"{self._max_requests} requests", "requests", self._max_requests, self.requests)
        if self.cost + cost > self._max_cost:
            self._refuse(f"{self._max_cost} pixels", "pixels", self._max_cost, self.cost + cost)
        if client:
            self._make_sure_of_share(cost, client)

    def _make_sure_of_share(self, cost: int, client: str) -> None:
        costs = [line.cost for line in self._queue if line.client == client]
        costs += [place.cost for place in self._places if place.client == client]
        if not costs:
            return
        limit, actual = self._max_cost - self.cost, sum(costs) + cost
        if actual > limit:
            self._refuse(f"{limit} pixels more, which are for other keys too,", "share", limit, actual)
        limit, actual = self._max_requests - self.requests, len(costs) + 1
        if actual > limit:
            self._refuse(f"{limit} requests more, which are for other keys too,", "share", limit, actual)

    def _refuse(self, what: str, reason: str, limit: int, actual: int) -> NoReturn:
        cost = sum(cost for cost, _ in self._speeds)
        seconds = sum(seconds for _, seconds in self._speeds)
        needed = self.cost * seconds / cost if cost else 1.0
        raise QueueFull(
            f"The queue holds {what} and no more. Try again after the time in Retry-After.",
            retry_after=min(max(math.ceil(needed), 1), LONGEST_RETRY_SECONDS),
            reason=reason,
            limit=limit,
            actual=actual,
        )

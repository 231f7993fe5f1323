"""The order in which waiting jobs are taken: fair between variants, clients and requests.

Keys (variants) take turns batch by batch. Within a batch clients take turns, and so do the requests of a client, one
job (tile) at a time. Three rules bound the time that a request waits:

- A job that does not fit into the rest of a batch is passed over for smaller ones. The first request that was passed
  over heads the next batch of its key.
- A new request comes before requests that had a turn in the batch that was taken last. So a small request is in the
  next batch, even while a large image is computed.
- Jobs of a request that has started join a batch that a new request heads only if they cost no more than the batch so
  far. So the new request does not wait for a tile of the large image in its own batch.

A request that was overtaken by new ones heads the next batch, so at least every second batch serves requests that have
started. A request whose result window is full is set aside until its results are released.

This module is not thread-safe: the owner of the queue holds a lock. It does not handle images.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.batching.jobs import Job, Submission

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class RoundRobin(Generic[T, R]):
    """The submissions of one key that may have a turn: clients rotate, and so do the submissions of each client."""

    clients: dict[str, deque[Submission[T, R]]] = field(default_factory=dict)
    skipped: Submission[T, R] | None = None
    cost: int = 0

    def add(self, submission: Submission[T, R]) -> None:
        """Put a submission at the end; a new one before those that had a turn in the latest batch."""
        queue = self.clients.get(submission.client)
        if queue is None:
            served = [] if submission.had_turn else [name for name, each in self.clients.items() if _count_served(each)]
            self.clients[submission.client] = deque([submission])
            for name in served:
                self._move_to_end(name)
        else:
            queue.insert(len(queue) - (0 if submission.had_turn else _count_served(queue)), submission)
        self.cost += submission.cost

    def remove(self, submission: Submission[T, R]) -> None:
        """Remove a submission."""
        queue = self.clients[submission.client]
        queue.remove(submission)
        if not queue:
            del self.clients[submission.client]
        if self.skipped is submission:
            self.skipped = None
        self.cost -= submission.cost

    def choose(self, room: float, room_for_started: float, served: set[Submission[T, R]]) -> Submission[T, R] | None:
        """The next submission whose first job fits. The first one passed over without a turn heads the next batch."""
        for submission in self._in_turn():
            if submission.waiting[0].cost <= (min(room, room_for_started) if submission.had_turn else room):
                return submission
            if submission not in served:
                self.skipped = self.skipped or submission
        return None

    def rotate(self, submission: Submission[T, R], *, stays: bool) -> None:
        """Move a submission that was served to the end, or remove it, and move its client to the end."""
        self.remove(submission)
        if stays:
            self.clients.setdefault(submission.client, deque()).append(submission)
            self.cost += submission.cost
        if submission.client in self.clients:
            self._move_to_end(submission.client)

    def end_batch(self, served: set[Submission[T, R]]) -> None:
        """Record which submissions had a turn in the latest batch."""
        for submission in itertools.chain(served, *self.clients.values()):
            submission.had_turn |= submission in served
            submission.left_out = submission not in served

    def _move_to_end(self, client: str) -> None:
        self.clients[client] = self.clients.pop(client)

    def _in_turn(self) -> Iterator[Submission[T, R]]:
        if self.skipped is not None:
            yield self.skipped
        for queue in self.clients.values():
            yield from queue


def _count_served(queue: deque[Submission[T, R]]) -> int:
    """How many submissions had a turn in the latest batch; they are at the end."""
    return sum(each.had_turn and not each.left_out for each in queue)


class FairQueue(Generic[T, R]):
    """Submissions with waiting jobs, taken batch by batch, each batch of one key."""

    def __init__(self) -> None:
        self._keys: dict[str, RoundRobin[T, R]] = {}
        self._submissions: dict[Submission[T, R], None] = {}  # in the order of admission
        self._set_aside: set[Submission[T, R]] = set()
        self.cost = 0

    def __len__(self) -> int:
        """Submissions with waiting jobs."""
        return len(self._submissions)

    def __iter__(self) -> Iterator[Submission[T, R]]:
        """Submissions in the order of their admission."""
        return iter(self._submissions)

    @property
    def has_ready(self) -> bool:
        """Whether there is a job to take."""
        return bool(self._keys)

    def add(self, submission: Submission[T, R]) -> None:
        """Add a submission with at least one waiting job."""
        assert submission.waiting, "a submission without jobs would never be taken"
        self._submissions[submission] = None
        self.cost += submission.cost
        self._make_ready(submission)

    def remove(self, submission: Submission[T, R]) -> list[Job[T, R]]:
        """Remove a submission, if it is in the queue, and return its waiting jobs."""
        if submission not in self._submissions:
            return []
        if submission in self._set_aside:
            self._set_aside.discard(submission)
        else:
            self._make_unready(submission)
        del self._submissions[submission]
        self.cost -= submission.cost
        jobs, submission.cost = list(submission.waiting), 0
        submission.waiting.clear()
        return jobs

    def release(self, submission: Submission[T, R], count: int) -> None:
        """Count results of a submission as used. It is queued again if it was set aside and its window is not full."""
        submission.unreleased -= count
        if submission in self._set_aside and submission.unreleased < submission.result_window:
            self._set_aside.discard(submission)
            self._make_ready(submission)

    def next_cost(self) -> int:
        """Cost of the waiting jobs of the next key; 0 when nothing can be taken."""
        ring = next(iter(self._keys.values()), None)
        return ring.cost if ring else 0

    def take(self, budget: int) -> tuple[str, list[Job[T, R]]]:
        """The next batch: a key, and jobs that cost at most ``budget`` together. A single first job may cost more."""
        key = next(iter(self._keys))
        ring = self._keys.pop(key)
        self._keys[key] = ring  # at the end: the other keys have the next turns
        jobs: list[Job[T, R]] = []
        served: set[Submission[T, R]] = set()
        spent, headed_by_new = 0, False
        room = room_for_started = math.inf
        while (submission := ring.choose(room, room_for_started, served)) is not None:
            headed_by_new |= not jobs and not submission.had_turn
            jobs.append(self._take_job(ring, submission))
            served.add(submission)
            spent += jobs[-1].cost
            room = budget - spent
            room_for_started = spent if headed_by_new else math.inf
        ring.end_batch(served)
        if not ring.clients:
            del self._keys[key]
        return key, jobs

    def _take_job(self, ring: RoundRobin[T, R], submission: Submission[T, R]) -> Job[T, R]:
        job = submission.waiting.popleft()
        submission.cost -= job.cost
        ring.cost -= job.cost
        self.cost -= job.cost
        submission.unreleased += 1
        is_open = submission.unreleased < submission.result_window
        ring.rotate(submission, stays=bool(submission.waiting) and is_open)
        if not submission.waiting:
            del self._submissions[submission]
        elif not is_open:
            self._set_aside.add(submission)
        return job

    def _make_ready(self, submission: Submission[T, R]) -> None:
        self._keys.setdefault(submission.key, RoundRobin()).add(submission)

    def _make_unready(self, submission: Submission[T, R]) -> None:
        ring = self._keys[submission.key]
        ring.remove(submission)
        if not ring.clients:
            del self._keys[submission.key]

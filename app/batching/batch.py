"""A batch: jobs of one key that run together, until each of them is resolved or waits in a smaller batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from app.batching.jobs import Job, Ticket
from app.errors import DeadlineExceeded

T = TypeVar("T")
R = TypeVar("R")


class Running(Protocol[R]):
    """What a device computes by itself: until it is done, the host can prepare and begin another batch."""

    def share(self) -> float:
        """How much of it is done, 1 at the end or when waiting is in vain; never raises."""

    def results(self) -> list[R]:
        """Wait for the results, in the items' order; raises what went wrong."""


@dataclass(eq=False)
class Batch(Generic[T, R]):
    """Jobs of one key that run together."""

    key: str
    jobs: list[Job[T, R]]
    started_at: float | None = None
    firsts: list[Ticket[T, R]] = field(default_factory=list)
    """The requests that begin to run in this batch."""

    @property
    def cost(self) -> int:
        """Of its jobs together."""
        return sum(job.cost for job in self.jobs)

    @property
    def tickets(self) -> list[Ticket[T, R]]:
        """Whose jobs these are, each once."""
        return list({job.ticket: None for job in self.jobs})

    def claim(self, now: float) -> None:
        """Leave out the jobs that nobody wants any more, and answer those whose deadline has passed."""
        late = [job for job in self.jobs if job.ticket.deadline is not None and now >= job.ticket.deadline]
        for job in late:
            job.fail(DeadlineExceeded("The deadline passed while the request waited."))
        self.jobs = [job for job in self.jobs if job.claim()]

    def begin(self, now: float) -> None:
        """Note the time, and tell those whose first batch this is."""
        self.started_at = now
        self.firsts = [ticket for ticket in self.tickets if ticket.started_at is None]
        for ticket in self.firsts:
            ticket.started_at = now
            ticket.tell("running")

    def deliver(self, results: list[R], now: float, seconds: float) -> None:
        """Resolve every job.

        Args:
            results: of the jobs, in order.
            now: when that is.
            seconds: what the forward pass took.

        Raises:
            RuntimeError: if there is not one result for each job; then none is resolved.
        """
        if len(results) != len(self.jobs):
            raise RuntimeError(f"{len(self.jobs)} items gave {len(results)} results")
        for ticket in self.tickets:
            ticket.forward_seconds += seconds
            ticket.finished_at = now
        for job, result in zip(self.jobs, results, strict=True):
            job.ticket.done += 1
            job.future.set_result(result)

    def split(self, *, starved: bool) -> list[Batch[T, R]]:
        """What to try after a failure, last first: both halves; or, once, the same job again where memory was short."""
        left = [job for job in self.jobs if not job.future.done()]
        if len(left) > 1:
            middle = len(left) // 2
            return [Batch(self.key, half) for half in (left[middle:], left[:middle])]
        if starved and left and not left[0].retried:
            left[0].retried = True
            return [Batch(self.key, left)]
        return []

    def fail(self, error: Exception) -> None:
        """Resolve with an error whatever is not resolved."""
        for job in self.jobs:
            if not job.future.done():
                job.fail(error)


@dataclass
class UnderWay(Generic[T, R]):
    """The batches between the queue and their end."""

    halves: list[Batch[T, R]] = field(default_factory=list)
    """Of batches that failed; the last is next."""
    taken: Batch[T, R] | None = None
    """What the worker has in hand."""
    running: deque[tuple[Batch[T, R], Running[R]]] = field(default_factory=deque)
    """What a device has, in the order in which it was begun."""
    share: float = 0.0
    """How much of the oldest of these was done when somebody looked."""

    def look(self) -> bool:
        """Look again; whether something has happened."""
        share = self.running[0][1].share() if self.running else 0.0
        before, self.share = self.share, share
        return share > before

    @property
    def is_over(self) -> bool:
        """Whether the oldest that a device has can be ended."""
        return self.share >= 1

    @property
    def all(self) -> list[Batch[T, R]]:
        """Every batch, those that a device has first."""
        return [*(batch for batch, _ in self.running), *([self.taken] if self.taken else []), *self.halves]

    def clear(self) -> list[Job[T, R]]:
        """Give up everything: the jobs, for whoever answers them."""
        jobs = [job for batch in self.all for job in batch.jobs]
        self.halves, self.taken, self.running, self.share = [], None, deque(), 0.0
        return jobs


@dataclass(frozen=True)
class BatchReport:
    """What one batch was: told to whoever counts, after its results were delivered."""

    key: str
    jobs: int
    cost: int
    seconds: float
    waits: tuple[float, ...]
    """For each request that began to run in this batch: the seconds that it waited."""

"""A batch: jobs of one key that run together, until each is resolved or waits in a smaller batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from app.batching.jobs import Job, Submission
from app.errors import DeadlineExceeded

T = TypeVar("T")
R = TypeVar("R")


class Running(Protocol[R]):
    """A batch on an asynchronous device. Until it is done, the host can prepare and launch another one."""

    def fraction_done(self) -> float:
        """The fraction that is done, from 0 to 1; 1 also if the batch failed. Never raises."""

    def results(self) -> list[R]:
        """Wait for the results, in the order of the items. Raises the error of the batch if it failed."""


@dataclass(eq=False)
class Batch(Generic[T, R]):
    """Jobs of one key that run together."""

    key: str
    jobs: list[Job[T, R]]
    started_at: float | None = None
    new: list[Submission[T, R]] = field(default_factory=list)
    """The submissions whose first batch this is."""

    @property
    def cost(self) -> int:
        """Cost of its jobs together."""
        return sum(job.cost for job in self.jobs)

    @property
    def submissions(self) -> list[Submission[T, R]]:
        """The submissions of its jobs, each once."""
        return list({job.submission: None for job in self.jobs})

    def claim(self, now: float) -> None:
        """Drop cancelled jobs, and fail those whose deadline has passed."""
        late = [job for job in self.jobs if job.submission.deadline is not None and now >= job.submission.deadline]
        for job in late:
            job.fail(DeadlineExceeded("The deadline passed while the request waited."))
        self.jobs = [job for job in self.jobs if job.claim()]

    def begin(self, now: float) -> None:
        """Record the time, and report to the submissions whose first batch this is."""
        self.started_at = now
        self.new = [submission for submission in self.submissions if submission.started_at is None]
        for submission in self.new:
            submission.started_at = now
            submission.report_progress("running")

    def deliver(self, results: list[R], now: float, seconds: float) -> None:
        """Resolve every job.

        Args:
            results: one for each job, in order.
            now: time of the clock.
            seconds: duration of the forward pass.

        Raises:
            RuntimeError: if there is not one result for each job; then none is resolved.
        """
        if len(results) != len(self.jobs):
            raise RuntimeError(f"The batch had {len(self.jobs)} jobs, but the network returned {len(results)} results.")
        for submission in self.submissions:
            submission.forward_seconds += seconds
            submission.finished_at = now
        for job, result in zip(self.jobs, results, strict=True):
            job.submission.done += 1
            job.future.set_result(result)

    def split(self, *, out_of_memory: bool) -> list[Batch[T, R]]:
        """The batches to try after a failure, last first: both halves, or the same job once more if memory ran out."""
        left = [job for job in self.jobs if not job.future.done()]
        if len(left) > 1:
            middle = len(left) // 2
            return [Batch(self.key, half) for half in (left[middle:], left[:middle])]
        if out_of_memory and left and not left[0].retried:
            left[0].retried = True
            return [Batch(self.key, left)]
        return []

    def fail(self, error: Exception) -> None:
        """Resolve the remaining jobs with an error."""
        for job in self.jobs:
            if not job.future.done():
                job.fail(error)


@dataclass
class InFlight(Generic[T, R]):
    """The batches that were taken from the queue and are not finished."""

    retries: list[Batch[T, R]] = field(default_factory=list)
    """Parts of batches that failed; the last is next."""
    current: Batch[T, R] | None = None
    """The batch that the worker prepares or computes."""
    running: deque[tuple[Batch[T, R], Running[R]]] = field(default_factory=deque)
    """The batches on the device, in the order of their launch."""
    fraction_done: float = 0.0
    """The fraction of the oldest one that was done at the last poll."""

    def poll(self) -> bool:
        """Update ``fraction_done``; return whether it grew."""
        fraction = self.running[0][1].fraction_done() if self.running else 0.0
        before, self.fraction_done = self.fraction_done, fraction
        return fraction > before

    @property
    def oldest_is_done(self) -> bool:
        """Whether the oldest batch on the device is finished."""
        return self.fraction_done >= 1

    @property
    def all(self) -> list[Batch[T, R]]:
        """Every batch, those on the device first."""
        return [*(batch for batch, _ in self.running), *([self.current] if self.current else []), *self.retries]

    def clear(self) -> list[Job[T, R]]:
        """Forget every batch and return its jobs; the caller resolves them."""
        jobs = [job for batch in self.all for job in batch.jobs]
        self.retries, self.current, self.running, self.fraction_done = [], None, deque(), 0.0
        return jobs


@dataclass(frozen=True)
class BatchReport:
    """Facts about one batch, for metrics; reported after its results were delivered."""

    key: str
    jobs: int
    cost: int
    seconds: float
    waits: tuple[float, ...]
    """Seconds that each request waited that started with this batch."""

"""Submissions and their jobs, reservations, progress and status: shared by the batcher and its callers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobProgress:
    """Progress of a request: its position in the queue (1 is next, 0 is running), and finished jobs of all its jobs."""

    state: Literal["queued", "running"]
    position: int
    done: int
    total: int


@dataclass(eq=False)
class Job(Generic[T, R]):
    """One item of a submission, and the future that its caller waits for."""

    item: T
    cost: int
    submission: Submission[T, R]
    future: Future[R] = field(default_factory=Future)
    retried: bool = False
    """Whether it ran out of memory in a batch of its own and is tried a second and last time."""

    def claim(self) -> bool:
        """Return whether the job is still wanted. From then on its future cannot be cancelled."""
        if self.future.running():  # a split batch
            if self.submission.cancelled:
                self.future.set_exception(CancelledError())
            return not self.submission.cancelled
        if self.submission.cancelled:
            self.future.cancel()
        return not self.future.done() and self.future.set_running_or_notify_cancel()

    def fail(self, error: BaseException) -> None:
        """Resolve with an error, unless the caller has cancelled."""
        if self.future.running() or (not self.future.done() and self.future.set_running_or_notify_cancel()):
            self.future.set_exception(error)


@dataclass(eq=False)
class Submission(Generic[T, R]):
    """The admitted jobs of one pass of a request. Times are seconds of the batcher's clock."""

    key: str
    client: str
    deadline: float | None
    admitted_at: float
    on_progress: Callable[[JobProgress], None] | None
    result_window: float
    """Results that may be computed and not yet released. A submission that has as many gets no turn."""
    on_cancel: Callable[[Submission[T, R]], None]
    on_release: Callable[[Submission[T, R], int], None]
    waiting: deque[Job[T, R]] = field(default_factory=deque)
    """Jobs in the queue, in order. Guarded by the queue's lock, like ``unreleased``, ``had_turn`` and ``left_out``."""
    futures: deque[Future[R]] = field(default_factory=deque)
    """One per item, in order. Remove a future when its result was used, so that its memory is freed."""
    cost: int = 0
    """Of the waiting jobs."""
    total: int = 0
    done: int = 0
    unreleased: int = 0
    had_turn: bool = False
    """Whether a batch with one of its jobs was taken."""
    left_out: bool = False
    """Whether a batch of the same key that was taken after its last turn had none of its jobs."""
    cancelled: bool = False
    position: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    forward_seconds: float = 0.0
    """Time in batches with a job of this submission, without waiting for another batch on a device."""

    @property
    def queue_seconds(self) -> float:
        """Time between admission and the last result that was not spent in a batch."""
        return max(0.0, (self.finished_at or self.admitted_at) - self.admitted_at - self.forward_seconds)

    def cancel(self) -> None:
        """Drop the waiting jobs, and do not wait for running ones. Safe at any time, from any thread."""
        self.on_cancel(self)

    def release(self, count: int) -> None:
        """Report that ``count`` results were used. Safe from any thread."""
        self.on_release(self, count)

    def report_progress(self, state: Literal["queued", "running"]) -> None:
        """Call the caller's callback. If it raises, it is logged and not called again."""
        if self.on_progress is None:
            return
        try:
            self.on_progress(JobProgress(state, self.position if state == "queued" else 0, self.done, self.total))
        except Exception:
            self.on_progress = None
            logger.exception("a progress callback failed and is not called again")


@dataclass(frozen=True)
class Status:
    """The state of the batcher, consistent at one moment."""

    waiting_requests: int
    waiting_cost: int
    running_jobs: int
    running_seconds: float
    """Time since the oldest running batch was begun; 0 when none is."""
    seconds_since_beat: float
    """Time since the worker's last heartbeat while there is work for it; 0 when there is none."""
    batch_budget: int
    """Largest cost of a batch now."""
    out_of_memory: int
    """Number of times that memory ran out."""
    alive: bool
    draining: bool


class Reservation:
    """Room in the queue for jobs that do not exist yet. Leaving the block frees what was not used.

    Attributes:
        cost: the remaining reserved cost.
        client: of the request.
        is_used: whether some jobs were admitted; then the request is counted with them.
    """

    def __init__(self, cost: int, client: str, on_exit: Callable[[Reservation], None]) -> None:
        self.cost = cost
        self.client = client
        self.is_used = False
        self._on_exit = on_exit

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_exit(self)

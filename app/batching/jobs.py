"""What waits in the batcher: the jobs of a request, their futures, and the ticket that its caller holds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

from app.batching.fair_queue import Line

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """How far a request is: its place among those that wait (1 is next, 0 is running), and jobs done of all."""

    state: Literal["queued", "running"]
    position: int
    done: int
    total: int


@dataclass(eq=False)
class Job(Generic[T, R]):
    """One item of a request, and the future that its caller waits for."""

    item: T
    cost: int
    ticket: Ticket[T, R]
    future: Future[R] = field(default_factory=Future)
    retried: bool = False
    """Whether it ran out of memory alone once, and is given a second chance."""

    def claim(self) -> bool:
        """Whether the job is still wanted; from then on its future cannot be cancelled."""
        if self.future.running():  # its batch failed and was split
            if self.ticket.cancelled:
                self.future.set_exception(CancelledError())
            return not self.ticket.cancelled
        if self.ticket.cancelled:
            self.future.cancel()
        return not self.future.done() and self.future.set_running_or_notify_cancel()

    def fail(self, error: BaseException) -> None:
        """Resolve with an error, unless the caller has left."""
        if self.future.running() or (not self.future.done() and self.future.set_running_or_notify_cancel()):
            self.future.set_exception(error)


@dataclass(eq=False)
class Ticket(Generic[T, R]):
    """A request that was admitted, and its times in seconds of the batcher's clock."""

    key: str
    deadline: float | None
    admitted_at: float
    on_progress: Callable[[Progress], None] | None
    leave: Callable[[Ticket[T, R]], None]
    futures: list[Future[R]] = field(default_factory=list)
    """One per item, in order; whoever has used a result takes its future out, so that memory is bounded."""
    total: int = 0
    done: int = 0
    line: Line[Job[T, R]] | None = None
    cancelled: bool = False
    position: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    forward_seconds: float = 0.0
    """Time in batches that held a job of this request, but for that in which they stood behind another on a device."""

    @property
    def queue_seconds(self) -> float:
        """Time between admission and the last result that was not spent in a batch."""
        return max(0.0, (self.finished_at or self.admitted_at) - self.admitted_at - self.forward_seconds)

    def cancel(self) -> None:
        """Leave: what waits is dropped at once, what runs is not waited for. Safe at any time, from any thread."""
        self.leave(self)

    def tell(self, state: Literal["queued", "running"]) -> None:
        """Report progress to the caller."""
        if self.on_progress is not None:
            self.on_progress(Progress(state, self.position if state == "queued" else 0, self.done, self.total))


@dataclass(frozen=True)
class Status:
    """A look at the batcher, consistent at one moment."""

    waiting_requests: int
    waiting_cost: int
    running_jobs: int
    running_seconds: float
    """How long ago the oldest batch that is running was begun; 0 when none is."""
    silent_seconds: float
    """How long nothing was heard of the worker though there is work; 0 when there is none."""
    batch_budget: int
    """What a batch may cost now."""
    out_of_memory: int
    """How often memory ran out."""
    alive: bool
    draining: bool


class Place:
    """A reservation in the queue, made before the work itself is at hand; left unused it is given back."""

    def __init__(self, cost: int, client: str, give_back: Callable[[Place], None]) -> None:
        self.cost = cost
        self.client = client
        self._give_back = give_back

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back(self)

"""A worker thread that is restarted when it dies, and its heartbeat, which shows whether it is frozen."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Heartbeat:
    """The time of the worker's last heartbeat. Written by the worker, read by health checks.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def record(self) -> None:
        """Record a heartbeat."""
        self._last = self._clock()

    @property
    def seconds_since_beat(self) -> float:
        """Seconds since the last heartbeat."""
        return max(0.0, self._clock() - self._last)


class SupervisedThread:
    """Runs ``work`` in a thread until it returns. If it raises, cleans up and starts another thread.

    Args:
        work: returns when nothing is left to do.
        on_death: called in the dying thread before another one is started; must resolve all pending requests. If it
            raises, the thread is replaced nevertheless.
        on_fatal: called after ``max_failures`` deaths in a row.
        restart_delay: seconds before the first restart; doubled at each further death in a row.
        max_failures: deaths in a row after which no other thread is started.
    """

    def __init__(
        self,
        work: Callable[[], None],
        on_death: Callable[[], None],
        *,
        on_fatal: Callable[[], None] = lambda: None,
        restart_delay: float = 0.1,
        max_failures: int = 5,
    ) -> None:
        self._work = work
        self._on_death = on_death
        self._on_fatal = on_fatal
        self._restart_delay = restart_delay
        self._max_failures = max_failures
        self._failures = 0
        self._started = False
        self._skip_backoff = threading.Event()
        self._ended = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether a thread runs or will be restarted."""
        return self._started and not self._ended.is_set()

    @property
    def started(self) -> bool:
        """Whether ``start`` was called."""
        return self._started

    def start(self) -> None:
        """Start the first thread."""
        assert not self._started, "start() must be called once"
        self._started = True
        self._start_thread()

    def succeed(self) -> None:
        """Reset the count of deaths. Called by the work when it has made progress."""
        self._failures = 0

    def stop_restarting(self) -> None:
        """Start no other thread after the next death. Called by the work when a restart would not help."""
        self._failures = self._max_failures

    def skip_backoff(self) -> None:
        """Do not wait before restarts any more."""
        self._skip_backoff.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the work; return whether it ended in time."""
        return self._ended.wait(timeout)

    def _start_thread(self) -> None:
        # A daemon thread, so that a hanging forward pass does not keep the process alive.
        threading.Thread(target=self._run, name="swin2sr-worker", daemon=True).start()

    def _run(self) -> None:
        done = False
        try:
            self._work()
            done = True
        finally:
            if done:
                self._ended.set()
            else:
                self._handle_death()

    def _handle_death(self) -> None:
        self._failures += 1
        if self._failures >= self._max_failures:
            logger.critical("the worker died %d times in a row; giving up", self._failures)
            self._end()
            return
        try:
            self._on_death()
        finally:
            self._restart()

    def _restart(self) -> None:
        logger.error("the worker died; restarting it")
        self._skip_backoff.wait(self._restart_delay * 2 ** (self._failures - 1))
        started = False
        try:
            self._start_thread()
            started = True
        finally:
            if not started:
                logger.critical("cannot start a worker thread; giving up")
                self._end()

    def _end(self) -> None:
        self._ended.set()  # first, so that nothing is admitted after ``on_death``
        try:
            self._on_death()
        finally:
            self._on_fatal()

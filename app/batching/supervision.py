"""A thread that is not allowed to die in silence, and a pulse that tells a slow one from a frozen one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Pulse:
    """When somebody who works last gave a sign of life; beaten by the worker, read by whoever worries.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """Give a sign of life."""
        self._last = self._clock()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last sign of life."""
        return max(0.0, self._clock() - self._last)


class SupervisedThread:
    """Runs ``work`` in a thread until it returns; if it dies instead, cleans up after it and starts another.

    Args:
        work: returns when there is nothing left to do for good.
        bury: called in the dying thread, before another is started; must leave nobody waiting. If it raises, the thread
            is replaced all the same.
        on_fatal: called after ``deaths_borne`` deaths in a row.
        restart_delay: seconds before the first restart; doubled at each further death in a row.
        deaths_borne: how many deaths in a row are too many.
    """

    def __init__(
        self,
        work: Callable[[], None],
        bury: Callable[[], None],
        *,
        on_fatal: Callable[[], None] = lambda: None,
        restart_delay: float = 0.1,
        deaths_borne: int = 5,
    ) -> None:
        self._work = work
        self._bury = bury
        self._on_fatal = on_fatal
        self._restart_delay = restart_delay
        self._deaths_borne = deaths_borne
        self._deaths = 0
        self._started = False
        self._hurry = threading.Event()
        self._ended = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether a thread is there, or will be again."""
        return self._started and not self._ended.is_set()

    @property
    def started(self) -> bool:
        """Whether it ever was started."""
        return self._started

    def start(self) -> None:
        """Start the first thread."""
        assert not self._started, "a supervised thread is started once"
        self._started = True
        self._start_thread()

    def succeed(self) -> None:
        """Forget earlier deaths: called by the work when it has got something done."""
        self._deaths = 0

    def give_up_next(self) -> None:
        """Start no other thread after the next death: called by the work when that would not help."""
        self._deaths = self._deaths_borne

    def hurry(self) -> None:
        """Do not wait any more before a restart."""
        self._hurry.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the work; whether it came in time."""
        return self._ended.wait(timeout)

    def _start_thread(self) -> None:
        # A daemon, because a forward pass that hangs must not keep the process from ending.
        threading.Thread(target=self._live, name="swin2sr-worker", daemon=True).start()

    def _live(self) -> None:
        done = False
        try:
            self._work()
            done = True
        finally:
            if done:
                self._ended.set()
            else:
                self._die()

    def _die(self) -> None:
        self._deaths += 1
        if self._deaths >= self._deaths_borne:
            logger.critical("the worker died and is not started again; giving up")
            self._give_up()
            return
        try:
            self._bury()
        finally:  # there is another thread, or everybody can see that there is none
            self._restart()

    def _restart(self) -> None:
        logger.error("the worker died; starting it again")
        self._hurry.wait(self._restart_delay * 2 ** (self._deaths - 1))
        started = False
        try:
            self._start_thread()
            started = True
        finally:
            if not started:
                logger.critical("no thread is to be had for the worker; giving up")
                self._give_up()

    def _give_up(self) -> None:
        self._ended.set()  # first, so that nobody comes after those who are buried
        try:
            self._bury()
        finally:
            self._on_fatal()

"""Finished pieces wait for the joining, a few at a time, and nobody waits for good."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from app.imaging import backpressure
from app.imaging.backpressure import Spool
from tests.scripted import PATIENCE


def finishing(futures, reached):
    """A thread that finishes futures one by one, and says before each that it will."""

    def work():
        for future, event in zip(futures, reached, strict=True):
            event.set()
            future.set_result(None)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_whoever_finishes_more_than_fits_waits_for_the_joining(monkeypatch):
    """Two fit; the third is finished, and the fourth only begins when one was joined."""
    monkeypatch.setattr(backpressure, "LONGEST_PAUSE", PATIENCE)
    futures = [Future() for _ in range(4)]
    reached = [threading.Event() for _ in range(4)]
    with Spool(futures, 2) as room:
        thread = finishing(futures, reached)
        assert reached[2].wait(PATIENCE)
        futures[2].result(PATIENCE)
        assert not reached[3].is_set()
        room.take(1)
        assert reached[3].wait(PATIENCE)
    thread.join(PATIENCE)
    assert not thread.is_alive(), "leaving lets everything through"


def test_a_joining_that_never_comes_holds_nobody_for_good(monkeypatch):
    """After its pause the worker goes on, whatever became of the request."""
    monkeypatch.setattr(backpressure, "LONGEST_PAUSE", 0.01)
    futures = [Future() for _ in range(5)]
    with Spool(futures, 1):
        thread = finishing(futures, [threading.Event() for _ in range(5)])
        thread.join(PATIENCE)
        assert all(future.done() for future in futures)


def test_the_event_loops_own_thread_never_waits(monkeypatch):
    """What is cancelled from there, or was finished before, is passed over at once."""
    monkeypatch.setattr(backpressure, "LONGEST_PAUSE", 10**6)
    futures = [Future() for _ in range(3)]
    with Spool(futures, 1):
        for future in futures:
            future.cancel()
    assert all(future.cancelled() for future in futures)

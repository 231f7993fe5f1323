"""A thread that dies is replaced, or not restarted after too many deaths, and ``alive`` always reports the truth."""

from __future__ import annotations

import threading

import pytest

from app.batching.supervision import Heartbeat, SupervisedThread
from tests.scripted import PATIENCE, join_workers

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def _joined():
    yield
    join_workers()


class Life:
    """What a supervised thread does: dies ``deaths`` times, then works until a test says that it is enough.

    Args:
        deaths: how often.
        faults: of how many cleanups raise.
    """

    def __init__(self, deaths, faults=0):
        self.deaths, self.faults = deaths, faults
        self.cleanups = 0
        self.given_up, self.working, self.enough = threading.Event(), threading.Event(), threading.Event()

    def work(self):
        if self.deaths:
            self.deaths -= 1
            raise ArithmeticError("at work")
        self.working.set()
        assert self.enough.wait(PATIENCE)

    def on_death(self):
        self.cleanups += 1
        if self.faults:
            self.faults -= 1
            raise ArithmeticError("at the grave")

    def supervised(self, max_failures=5):
        return SupervisedThread(
            self.work, self.on_death, on_fatal=self.given_up.set, restart_delay=0.0, max_failures=max_failures
        )


def test_work_that_ends_is_not_restarted():
    """The thread is alive until its work returns, and neither callback is called."""
    life = Life(deaths=0)
    thread = life.supervised()
    assert not thread.alive
    thread.start()
    assert thread.alive
    life.enough.set()
    assert thread.join(PATIENCE)
    assert not thread.alive
    assert (life.cleanups, life.given_up.is_set()) == (0, False)


@pytest.mark.parametrize("faults", [0, 1, 4])
def test_the_dead_are_replaced_also_when_burying_them_fails(faults):
    """Four deaths, some of whose cleanups raise: afterwards a thread works, and ``alive`` says so."""
    life = Life(deaths=4, faults=faults)
    thread = life.supervised()
    thread.start()
    assert life.working.wait(PATIENCE)
    assert thread.alive
    assert life.cleanups == 4
    life.enough.set()
    assert thread.join(PATIENCE)
    assert not life.given_up.is_set()


@pytest.mark.parametrize("faults", [0, 1, 2])
def test_too_many_crashes_are_final_also_if_the_cleanup_fails(faults):
    """After ``max_failures`` deaths ``on_fatal`` is called, and ``alive`` is false."""
    life = Life(deaths=9, faults=faults)
    thread = life.supervised(max_failures=2)
    thread.start()
    assert life.given_up.wait(PATIENCE)
    assert not thread.alive
    assert life.cleanups == 2
    assert thread.join(0)


def test_crashes_with_success_between_them_are_not_in_a_row():
    """One that gets something done may die as often as it likes."""
    life = Life(deaths=20)
    thread = SupervisedThread(
        lambda: (thread.succeed(), life.work()), life.on_death, on_fatal=life.given_up.set, restart_delay=0.0
    )
    thread.start()
    assert life.working.wait(PATIENCE)
    life.enough.set()
    assert thread.join(PATIENCE)
    assert not life.given_up.is_set()


def test_without_a_new_thread_the_work_ends(monkeypatch):
    """Requests since the first cleanup are failed too, ``on_fatal`` is called, and ``alive`` is false."""
    life = Life(deaths=1)
    thread = life.supervised()
    start = threading.Thread.start

    def refuse(self):
        if life.cleanups:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    thread.start()
    assert life.given_up.wait(PATIENCE)
    assert not thread.alive
    assert life.cleanups == 2


def test_the_delay_doubles_after_each_crash_in_a_row(monkeypatch):
    """So that a fault that stays does not keep a processor busy."""
    waited = []
    life = Life(deaths=4)
    thread = SupervisedThread(life.work, life.on_death, restart_delay=0.5)
    monkeypatch.setattr(thread._skip_backoff, "wait", waited.append)
    thread.start()
    assert life.working.wait(PATIENCE)
    assert waited == [0.5, 1, 2, 4]
    life.enough.set()
    assert thread.join(PATIENCE)


def test_skip_backoff_ends_the_wait_before_a_restart():
    """At the end of the process a restart is not waited for."""
    life = Life(deaths=1)
    thread = SupervisedThread(life.work, life.on_death, restart_delay=10 * PATIENCE)
    thread.skip_backoff()
    thread.start()
    assert life.working.wait(PATIENCE)
    life.enough.set()
    assert thread.join(PATIENCE)


def test_a_heartbeat_reports_the_time_since_the_last_beat():
    """Seconds of its clock since the last beat, never less than none."""
    now = [100.0]
    heartbeat = Heartbeat(lambda: now[0])
    now[0] = 107.0
    assert heartbeat.seconds_since_beat == 7
    heartbeat.record()
    assert heartbeat.seconds_since_beat == 0
    now[0] = 90.0
    assert heartbeat.seconds_since_beat == 0

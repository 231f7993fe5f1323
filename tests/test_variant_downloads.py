"""Downloads of weights: one thread per variant, for any number of callers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from app.variants.downloads import Downloads
from model.official.fetch import FetchError
from model.variants import VARIANTS
from tests.scripted import PATIENCE, Gate

VARIANT, OTHER = VARIANTS["classical-x2"], VARIANTS["jpeg"]


class Carrier:
    """Replaces the official weights: gives a path when its gate is open, or raises."""

    def __init__(self, fault=None, *, is_open=True):
        self.gate = Gate(is_open=is_open)
        self.fault = fault
        self.fetched = []

    def fetch(self, variant, on_step):
        self.fetched.append(variant.name)
        self.gate.pass_through()
        on_step("a step")
        if self.fault:
            raise self.fault
        return Path(variant.name)


def fetch_all(carrier, *variants):
    """The outcomes of downloading all at once."""
    downloads = Downloads(carrier)

    async def go():
        coming = [asyncio.create_task(downloads.fetch(variant, lambda _step: None)) for variant in variants]
        await asyncio.sleep(0)  # each has begun
        carrier.gate.open()
        return await asyncio.gather(*coming, return_exceptions=True)

    return asyncio.run(asyncio.wait_for(go(), PATIENCE))


def test_callers_of_one_variant_share_a_download():
    """One download for any number of callers, and one for each other variant."""
    carrier = Carrier(is_open=False)
    assert fetch_all(carrier, VARIANT, VARIANT, OTHER, VARIANT) == [
        Path(each.name) for each in (VARIANT, VARIANT, OTHER, VARIANT)
    ]
    assert sorted(carrier.fetched) == [VARIANT.name, OTHER.name]


def test_a_finished_download_is_not_reused():
    """The next call after a failed download starts another one."""
    carrier = Carrier(FetchError("no network"))
    downloads = Downloads(carrier)

    async def go():
        with pytest.raises(FetchError, match="no network"):
            await downloads.fetch(VARIANT, lambda _step: None)
        carrier.fault = None
        return await downloads.fetch(VARIANT, lambda _step: None)

    assert asyncio.run(go()) == Path(VARIANT.name)
    assert len(carrier.fetched) == 2


def test_a_cancelled_caller_does_not_cancel_the_download():
    """A client that leaves while weights come does not take them from the others."""
    carrier = Carrier(is_open=False)
    downloads = Downloads(carrier)

    async def go():
        leaving, staying = (asyncio.create_task(downloads.fetch(VARIANT, lambda _step: None)) for _ in range(2))
        await asyncio.to_thread(carrier.gate.wait_until_reached)
        leaving.cancel()
        await asyncio.wait([leaving])
        carrier.gate.open()
        return leaving.cancelled(), await staying

    assert asyncio.run(go()) == (True, Path(VARIANT.name))


@pytest.mark.parametrize("fault", [OSError("no such disk"), RuntimeError("no more threads"), MemoryError()])
def test_every_fault_is_a_sentence(fault):
    """Every failure reaches all callers as a FetchError."""
    (error,) = fetch_all(Carrier(fault), VARIANT)
    assert isinstance(error, FetchError)
    assert str(error) in (str(fault), "MemoryError")


def test_a_crashed_thread_fails_its_callers(monkeypatch):
    """An unexpected exception ends the wait too, and its traceback is shown as those of other threads."""
    shown, told = [], threading.Event()

    def show(death):
        shown.append(death.exc_type)
        told.set()

    monkeypatch.setattr(threading, "excepthook", show)
    (error,) = fetch_all(Carrier(KeyError("surprise")), VARIANT)
    assert isinstance(error, FetchError)
    assert "unexpected" in str(error)
    assert told.wait(PATIENCE)
    assert shown == [KeyError]

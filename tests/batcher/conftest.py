"""Fixtures of the batcher's tests: a scripted network, and batchers that run it."""

from __future__ import annotations

import pytest

from tests.scripted import Script, batchers


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def make(script):
    """Makes started batchers, and ends them."""
    with batchers(script, script.gate.open) as build:
        yield build


@pytest.fixture
def hold(script):
    """Occupies the worker with a job of key ``-`` until the test opens the gate."""
    return script.occupy

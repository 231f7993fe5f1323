"""Promise 18: after a run with all kinds of failures, the metrics agree with the clients."""

import os

from tests.chaos.chaos import balance


def test_promise_18_metrics_add_up():
    """Outcomes are what clients counted, gauges are zero; ten thousand requests in the long form."""
    assert "disconnected" in balance(10_000 if os.environ.get("PROVE") == "1" else 400)

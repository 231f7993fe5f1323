"""The largest cost of a batch, lowered after running out of memory."""

from __future__ import annotations

SUCCESSES_BEFORE_GROWTH = 50
"""Successful batches in a row before a lowered budget is raised. If that is too early, one batch is repeated."""


class BatchBudget:
    """The largest cost of a batch: halved after running out of memory, raised by a quarter after enough successes.

    Args:
        maximum: the configured budget.

    Attributes:
        current: the budget now. A single job above it still runs, alone.
        failures: number of times that memory ran out.
    """

    def __init__(self, maximum: int) -> None:
        self.current = self._maximum = maximum
        self.failures = 0
        self._successes = 0

    def lower(self, maximum: int) -> None:
        """Lower the maximum. A larger value has no effect."""
        self._maximum = max(1, min(self._maximum, maximum))
        self.current = min(self.current, self._maximum)

    def shrink(self, cost: int) -> None:
        """Record that a batch of this cost ran out of memory."""
        self.failures += 1
        self._successes = 0
        self.current = max(1, min(self.current, cost) // 2)

    def succeed(self) -> None:
        """Record that a batch ran."""
        if self.current == self._maximum:
            return
        self._successes += 1
        if self._successes >= SUCCESSES_BEFORE_GROWTH:
            self._successes = 0
            self.current = min(self._maximum, self.current + max(1, self.current // 4))

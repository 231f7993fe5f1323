"""How much a batch may hold, learned from running out of memory."""

from __future__ import annotations

SUCCESSES_BEFORE_GROWTH = 50
"""Batches in a row that must have run before a lowered budget is raised: a wrong guess costs one batch's time."""


class Budget:
    """What a batch may cost: halved below what did not fit, raised again by a quarter while things go well.

    Args:
        most: the budget that was configured.

    Attributes:
        now: the budget; a single item above it still runs, alone.
        failures: how often memory ran out.
    """

    def __init__(self, most: int) -> None:
        self.now = self._most = most
        self.failures = 0
        self._successes = 0

    def lower(self, most: int) -> None:
        """Configure a smaller budget; a larger one changes nothing."""
        self._most = max(1, min(self._most, most))
        self.now = min(self.now, self._most)

    def shrink(self, cost: int) -> None:
        """A batch of this cost ran out of memory."""
        self.failures += 1
        self._successes = 0
        self.now = max(1, min(self.now, cost) // 2)

    def succeed(self) -> None:
        """A batch ran."""
        if self.now == self._most:
            return
        self._successes += 1
        if self._successes >= SUCCESSES_BEFORE_GROWTH:
            self._successes = 0
            self.now = min(self._most, self.now + max(1, self.now // 4))

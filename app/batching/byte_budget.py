"""Bytes that requests share: for decoded images and encoders, and for responses that are being sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from app.errors import ImageTooLarge


class ByteBudget:
    """A number of bytes that requests share, first come, first served. Used in the event loop only.

    Args:
        limit: bytes. One request that needs more is admitted when nothing else is held.

    Attributes:
        held: bytes that requests hold now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextmanager
    def open(self) -> Iterator[ByteReservation]:
        """A reservation of no bytes yet; all that it holds is released at the end of the block."""
        reservation = ByteReservation(self)
        try:
            yield reservation
        finally:
            reservation.shrink(0)

    def check(self, amount: int) -> None:
        """Refuse what can never fit.

        Raises:
            ImageTooLarge: with both numbers, in bytes.
        """
        if amount > self.limit:
            raise ImageTooLarge(
                f"With its result and the encoder this image takes {amount} bytes of memory, and the limit is "
                f"{self.limit} bytes (MAX_MEMORY_BYTES). Send a smaller image, ask for a smaller size, or for a format "
                "whose encoder takes less, such as png or jpeg.",
                limit=self.limit,
                actual=amount,
            )

    async def _take(self, amount: int) -> None:
        if not self._waiting and self._fits(amount):
            self.held += amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(amount)  # it was granted at the same moment
            else:
                with suppress(ValueError):  # it was passed over at the same moment
                    self._waiting.remove((amount, turn))
                self._wake()
            raise

    def _release(self, amount: int) -> None:
        self.held -= amount
        self._wake()

    def _fits(self, amount: int) -> bool:
        return not self.held or self.held + amount <= self.limit

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self.held += amount
                turn.set_result(None)


class ByteReservation:
    """What one request holds of a budget.

    Attributes:
        held: bytes.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    async def reserve(self, amount: int) -> None:
        """Wait until so many bytes are free, and hold them. A reservation waits once."""
        await self._budget._take(amount)  # noqa: SLF001 - its other half
        self.held += amount

    def shrink(self, amount: int) -> None:
        """Hold no more than this from now on."""
        surplus = self.held - amount
        if surplus > 0:
            self.held = amount
            self._budget._release(surplus)  # noqa: SLF001 - its other half

    def set(self, amount: int) -> None:
        """Correct an estimate: hold exactly this, without waiting."""
        surplus, self.held = self.held - amount, amount
        self._budget._release(surplus)  # noqa: SLF001 - its other half

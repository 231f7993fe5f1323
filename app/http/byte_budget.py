"""Budgets of bytes that requests share: for uploads, decoded images and encoders, and responses."""

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
        """Open an empty reservation. It is released at the end of the block."""
        reservation = ByteReservation(self)
        try:
            yield reservation
        finally:
            reservation.set(0)

    def check(self, amount: int) -> None:
        """Check that an amount can fit at all.

        Raises:
            ImageTooLarge: if not, with both numbers in bytes.
        """
        if amount > self.limit:
            raise ImageTooLarge(
                f"This request needs {amount} bytes of memory for the image, its result and the encoder, and the limit "
                f"is {self.limit} bytes (MAX_MEMORY_BYTES). Send a smaller image, request a smaller size, or use a "
                "format whose encoder needs less memory, such as png or jpeg.",
                limit=self.limit,
                actual=amount,
            )

    async def take(self, amount: int) -> None:
        """Wait until bytes are free, in the order of the calls, and hold them."""
        if not self._waiting and self._fits(amount):
            self.held += amount
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(amount)  # granted just before the cancellation
            else:
                with suppress(ValueError):  # already removed from the queue
                    self._waiting.remove((amount, granted))
                self._wake()
            raise

    def release(self, amount: int) -> None:
        """Free held bytes, and admit the requests that wait for them."""
        self.held -= amount
        self._wake()

    def _fits(self, amount: int) -> bool:
        return not self.held or self.held + amount <= self.limit

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            amount, granted = self._waiting.popleft()
            if not granted.done():
                self.held += amount
                granted.set_result(None)


class ByteReservation:
    """The part of a budget that one request holds.

    Attributes:
        budget: shared by all requests.
        held: bytes.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.held = 0

    async def reserve(self, amount: int) -> None:
        """Wait until ``amount`` bytes are free, and hold them. Call it once per reservation."""
        await self.budget.take(amount)
        self.held += amount

    def set(self, amount: int) -> None:
        """Hold exactly ``amount`` bytes from now on, without waiting."""
        surplus, self.held = self.held - amount, amount
        self.budget.release(surplus)

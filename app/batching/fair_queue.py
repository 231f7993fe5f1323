"""The order in which waiting jobs are taken: fair between variants, clients and requests.

Keys (variants) take turns batch by batch. Within a batch clients take turns, and within a client its requests do, one
job (tile) at a time. A job that does not fit into what is left of a batch is passed over for smaller ones behind it,
and heads the very next batch of its key. So one that waits is overtaken by every other request at most once per job,
however many arrive after it, and never twice for being large.

No threads and no images here: whoever owns the queue holds a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

J = TypeVar("J")


@dataclass(eq=False)
class Line(Generic[J]):
    """The waiting jobs of one request, with their costs, in the order in which they run."""

    key: str
    client: str
    jobs: deque[tuple[int, J]]

    @property
    def cost(self) -> int:
        """What still waits in this line."""
        return sum(cost for cost, _ in self.jobs)


@dataclass(eq=False)
class _Ring(Generic[J]):
    """The lines of one key: clients in turn, and each client's lines in turn."""

    clients: dict[str, deque[Line[J]]] = field(default_factory=dict)
    owed: Line[J] | None = None
    cost: int = 0

    def add(self, line: Line[J]) -> None:
        self.clients.setdefault(line.client, deque()).append(line)

    def remove(self, line: Line[J]) -> None:
        lines = self.clients[line.client]
        lines.remove(line)
        if not lines:
            del self.clients[line.client]
        if self.owed is line:
            self.owed = None

    def next_line(self, room: float) -> Line[J] | None:
        """The line whose turn it is among those whose next job fits; the first passed over is owed the next batch."""
        for line in self._in_turn():
            if line.jobs[0][0] <= room:
                return line
            self.owed = self.owed or line
        return None

    def turn(self, line: Line[J]) -> None:
        """Send a line that was served, and its client, to the back."""
        self.remove(line)
        if line.jobs:
            self.add(line)
        if line.client in self.clients:
            self.clients[line.client] = self.clients.pop(line.client)

    def _in_turn(self) -> Iterator[Line[J]]:
        if self.owed is not None:
            yield self.owed
        for lines in self.clients.values():
            yield from lines


class FairQueue(Generic[J]):
    """Lines of jobs, taken batch by batch, each batch of one key."""

    def __init__(self) -> None:
        self._rings: dict[str, _Ring[J]] = {}
        self._lines: dict[Line[J], None] = {}  # by admission
        self.cost = 0

    def __len__(self) -> int:
        """Requests with something waiting."""
        return len(self._lines)

    def __iter__(self) -> Iterator[Line[J]]:
        """Lines in the order of their admission."""
        return iter(self._lines)

    def __contains__(self, line: Line[J]) -> bool:
        """Whether something of this line waits."""
        return line in self._lines

    def add(self, line: Line[J]) -> None:
        """Put a line, with at least one job, behind the others."""
        assert line.jobs, "a line without jobs would wait for ever"
        ring = self._rings.setdefault(line.key, _Ring())
        ring.add(line)
        ring.cost += line.cost
        self._lines[line] = None
        self.cost += line.cost

    def remove(self, line: Line[J]) -> list[J]:
        """Take a line out of the queue, if it is still there, and return what waited in it."""
        if line not in self._lines:
            return []
        ring = self._rings[line.key]
        ring.remove(line)
        ring.cost -= line.cost
        if not ring.clients:
            del self._rings[line.key]
        del self._lines[line]
        self.cost -= line.cost
        return [job for _, job in line.jobs]

    def next_cost(self) -> int:
        """What waits for the key whose turn is next; 0 when nothing waits."""
        ring = next(iter(self._rings.values()), None)
        return ring.cost if ring else 0

    def take(self, budget: int) -> tuple[str, list[J]]:
        """The next batch: a key, and jobs whose costs add up to ``budget`` at most; a first job over it goes alone."""
        key = next(iter(self._rings))
        ring = self._rings.pop(key)
        jobs: list[J] = []
        room: float = float("inf")  # whoever's turn it is gets it
        spent = 0
        while (line := ring.next_line(room)) is not None:
            cost, job = line.jobs.popleft()
            ring.turn(line)
            if not line.jobs:
                del self._lines[line]
            jobs.append(job)
            spent += cost
            room = budget - spent
        self.cost -= spent
        ring.cost -= spent
        if ring.clients:
            self._rings[key] = ring
        return key, jobs

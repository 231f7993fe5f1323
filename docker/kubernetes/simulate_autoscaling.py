"""Simulate a day of arrivals under the autoscaler of docker/kubernetes/components/keda.

For each target (waiting pixels for each replica) it prints how long requests wait and how many replicas run, and with
``--svg`` it draws both for one target. Requests come at random, most by day, with a sudden peak at 14:00.

    python docker/kubernetes/simulate_autoscaling.py --pixels-per-second 300000 --svg autoscaling.svg
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STEP = 5.0
"""Seconds of simulated time in a step."""
DAY = 24 * 3600.0
POLL, START, LOOK_BACK, DOWN_EVERY = 15.0, 40.0, 600.0, 120.0
"""Seconds: between looks at the queue, until a new pod is ready, before scaling down, between two pods going."""


@dataclass(frozen=True)
class Result:
    """A simulated day.

    Attributes:
        waits: seconds from arrival to the start of work, of each request.
        replicas, waiting: ready pods and seconds of waiting at each step.
    """

    waits: list[float]
    replicas: list[int]
    waiting: list[float]

    def wait(self, share: float) -> float:
        """The wait that a share of the requests does not exceed, in seconds."""
        return sorted(self.waits)[min(len(self.waits) - 1, int(share * len(self.waits)))]

    @property
    def pod_hours(self) -> float:
        """What the day costs."""
        return sum(self.replicas) * STEP / 3600


def rate(seconds: float, busiest: float) -> float:
    """Requests a second at a time of the day: a quiet night, a busy afternoon, twice as many from 14:00 to 14:20."""
    hour = seconds / 3600
    day = 0.1 + 0.9 * max(0.0, math.sin((hour - 6) / 14 * math.pi)) if 6 <= hour <= 20 else 0.1
    return busiest * day * (2.0 if 14 <= hour < 14 + 1 / 3 else 1.0)


def arrivals(generator: random.Random, busiest: float, pixels: float) -> Iterator[tuple[float, float]]:
    """Time and size of each request, in seconds and pixels; sizes are spread as uploads are, a few are large."""
    time = 0.0
    while time < DAY:
        time += generator.expovariate(2 * busiest)
        if generator.random() < rate(time, busiest) / (2 * busiest):
            yield time, pixels * generator.lognormvariate(-0.5, 1.0)


def simulate(
    *, target: float, speed: float, busiest: float, pixels: float, least: int, most: int, seed: int = 0
) -> Result:
    """A day under a target of waiting pixels for each replica.

    Args:
        target: waiting pixels for each replica at which the autoscaler is content.
        speed: pixels a second of one replica.
        busiest: requests a second at the busiest hour, the peak apart.
        pixels: of a request, on average.
        least, most: replicas.
    """
    coming = deque(arrivals(random.Random(seed), busiest, pixels))  # noqa: S311 - a simulation
    queue: deque[list[float]] = deque()
    result = Result([], [], [])
    ready, starting, wanted = least, deque[float](), deque[tuple[float, int]]()
    looked = removed = credit = 0.0
    for step in range(int(DAY / STEP)):
        now = step * STEP
        while coming and coming[0][0] <= now:
            queue.append(list(coming.popleft()))
        while starting and starting[0] <= now:
            starting.popleft()
            ready += 1
        credit = min(credit, 0.0) + ready * speed * STEP
        while queue and credit > 0:
            arrived, size = queue.popleft()
            result.waits.append(now - arrived)
            credit -= size
        backlog = sum(size for _, size in queue)
        if now - looked >= POLL:
            looked = now
            wish = min(most, max(least, math.ceil(backlog / target)))
            wanted.append((now, wish))
            while wanted[0][0] < now - LOOK_BACK:
                wanted.popleft()
            total = ready + len(starting)
            starting.extend([now + START] * max(0, wish - total))
            if max(number for _, number in wanted) < ready and now - removed >= DOWN_EVERY:
                ready, removed = ready - 1, now
        result.replicas.append(ready)
        result.waiting.append(backlog / (ready * speed))
    return result


def draw(result: Result) -> str:
    """Replicas and the wait over the day, as SVG."""
    width, height = 960, 200
    panels = []
    for row, (name, values) in enumerate((("replicas", result.replicas), ("wait, seconds", result.waiting))):
        top = max(1.0, *values)
        every = max(1, len(values) // width)
        chosen = [max(values[index : index + every]) for index in range(0, len(values), every)]
        points = " ".join(
            f"{60 + x * width / len(chosen):.1f},{30 + row * 260 + height * (1 - y / top):.1f}"
            for x, y in enumerate(chosen)
        )
        panels.append(
            f'<text x="60" y="{20 + row * 260}">{name}, at most {top:.1f}</text>'
            f'<polyline fill="none" stroke="#1c2a45" points="{points}"/>'
        )
    hours = "".join(f'<text x="{60 + hour * 40}" y="250">{hour}:00</text>' for hour in range(0, 24, 4))
    ground, body = '<rect width="1060" height="520" fill="#fff"/>', "".join(panels) + hours
    size = 'viewBox="0 0 1060 520" font-family="sans-serif"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ground}{body}</svg>\n'


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of targets, and draw one of them if asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument(
        "--pixels-per-second", type=float, default=300_000, help="of one replica; GET /v1/variants says it"
    )
    parser.add_argument("--busiest", type=float, default=5.0, help="requests a second at the busiest hour")
    parser.add_argument("--pixels", type=float, default=250_000, help="input pixels of a request, on average")
    parser.add_argument("--min", type=int, default=2, dest="least", help="replicas")
    parser.add_argument("--max", type=int, default=20, dest="most", help="replicas")
    parser.add_argument("--svg", type=Path, help="draw the row with four seconds of work to this file")
    chosen = parser.parse_args(arguments)
    print("target (pixels)  seconds of work  median wait  95 %    99 %    pod hours  most replicas")
    for seconds in (1, 2, 4, 8, 16, 32):
        target = seconds * chosen.pixels_per_second
        result = simulate(
            target=target, speed=chosen.pixels_per_second, busiest=chosen.busiest, pixels=chosen.pixels,
            least=chosen.least, most=chosen.most,
        )  # fmt: skip
        waits = f"{result.wait(0.5):9.1f} s  {result.wait(0.95):5.1f} s {result.wait(0.99):5.1f} s"
        print(f"{target:15.0f}  {seconds:15d}  {waits}  {result.pod_hours:9.1f}  {max(result.replicas):13d}")
        if chosen.svg and seconds == 4:
            chosen.svg.write_text(draw(result), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What tests put in the place of the network and the clock: a scripted upscaler, and functions for a batcher to run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from app.batching.batcher import Batcher
from app.batching.jobs import Submission

PATIENCE = 20.0
"""Seconds after which a test that waits has failed."""


class Clock:
    """A clock that a test advances."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def results(submission: Submission) -> list:
    """What became of a request's jobs."""
    return [future.result(PATIENCE) for future in submission.futures]


class Gate:
    """Blocks calls until a test opens it. The test can wait until a call is blocked."""

    def __init__(self, *, is_open: bool = True) -> None:
        self._open = threading.Event()
        self._reached = threading.Semaphore(0)
        if is_open:
            self._open.set()

    @property
    def is_open(self) -> bool:
        """Whether calls pass."""
        return self._open.is_set()

    def open(self) -> None:
        """Let all calls pass."""
        self._open.set()

    def close(self) -> None:
        """Block calls from now on."""
        self._open.clear()

    def wait_until_reached(self) -> None:
        """Wait until a call is blocked."""
        assert self._reached.acquire(timeout=PATIENCE), "no call reached the gate"

    def pass_through(self) -> None:
        """Called by what the gate blocks."""
        if not self._open.is_set():
            self._reached.release()
        assert self._open.wait(PATIENCE), "the gate was not opened"


class ScriptedUpscaler:
    """Enlarges by repeating pixels; logs every call.

    Args:
        scale, channels, window_size: of the network that it replaces.
        fault: called with each tile before it is computed; what it raises, the call raises.
        memory: pixels above which a call runs out of memory.

    Attributes:
        gate: every call after the first ``skip`` (the warm-up) passes through it.
        calls: for each call, the (height, width) of its tiles.
    """

    device = "scripted"
    precision = "exact"
    bytes_per_pixel = 1000
    runs_ahead = False

    def __init__(
        self,
        scale: int = 2,
        channels: int = 3,
        window_size: int = 8,
        *,
        fault: Callable[[np.ndarray], None] = lambda _tile: None,
        memory: int | None = None,
        skip: int = 2,
    ) -> None:
        self.scale = scale
        self.channels = channels
        self.window_size = window_size
        self.fault = fault
        self.memory = memory
        self.gate = Gate()
        self.calls: list[list[tuple[int, int]]] = []
        self._skip = skip

    def forward(self, tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Repeat every pixel ``scale`` times in both directions."""
        if self._skip:
            self._skip -= 1
        else:
            self.calls.append([tile.shape[:2] for tile in tiles])
            self.gate.pass_through()
            if self.memory is not None and sum(tile.shape[0] * tile.shape[1] for tile in tiles) > self.memory:
                raise MemoryError
        for tile in tiles:
            assert tile.shape[2] == self.channels
            assert tile.shape[0] % self.window_size == tile.shape[1] % self.window_size == 0
            self.fault(tile)
        return [self._enlarge(tile) for tile in tiles]

    def _enlarge(self, tile: np.ndarray) -> np.ndarray:
        values = tile.astype(np.float32) / np.float32(np.iinfo(tile.dtype).max)
        return values.repeat(self.scale, 0).repeat(self.scale, 1)


def loading(**upscalers: ScriptedUpscaler) -> Callable[[str, Path], ScriptedUpscaler]:
    """A registry's ``load`` that gives these upscalers (``small_x2=`` for ``small-x2``) instead of reading weights."""
    return lambda name, _path: upscalers[name.replace("-", "_").replace(".", "_")]


def model_dir(folder: Path, *names: str) -> Path:
    """A folder that looks as if it held checkpoints of these names; only a scripted ``load`` can load them."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text("{}")
    return folder


class Script:
    """What a batcher of whole numbers runs: it multiplies by ten, behind a gate, and logs its calls.

    Attributes:
        gate: every call passes through it.
        calls: for each call, its key and items.
        fault: called with the items of each call; what it raises, the call raises.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.calls: list[tuple[str, list[int]]] = []
        self.fault: Callable[[list[int]], None] = lambda _items: None

    def __call__(self, key: str, items: list[int]) -> list[int]:
        self.calls.append((key, items))
        self.gate.pass_through()
        self.fault(items)
        return [item * 10 for item in items]

    def occupy(self, batcher: Batcher) -> Submission:
        """Keep the worker in a job of key ``-`` until the gate is opened; the log is empty then."""
        self.gate.close()
        submission = batcher.admit("-", [1])
        self.gate.wait_until_reached()
        self.calls.clear()
        return submission


@contextmanager
def batchers(run: Callable, release: Callable[[], None]) -> Iterator[Callable[..., Batcher]]:
    """Makes started batchers of whole numbers, which cost what they are; at the end all is released and finished."""
    made = []

    def build(*, start=True, **options):
        limits = {"max_batch_cost": 10, "max_queue_cost": 1000, "max_queue_requests": 100, "restart_delay": 0.0}
        made.append(Batcher(options.pop("run", run), options.pop("cost", int), **{**limits, **options}))
        if start:
            made[-1].start()
        return made[-1]

    yield build
    release()
    for batcher in made:
        assert batcher.close(PATIENCE)
    join_workers()


def join_workers() -> None:
    """Wait for the end of every worker's thread; one that died tells its exception at its very end."""
    for thread in threading.enumerate():
        if thread.name == "swin2sr-worker":
            thread.join(PATIENCE)

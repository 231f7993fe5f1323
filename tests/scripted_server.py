"""The real server with a scripted upscaler in the network's place: ``python -m tests.scripted_server``.

What happens to an image is written in its first pixel, so that a client decides about it: see :class:`Failure`.
"""

from __future__ import annotations

import argparse
import enum
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from app.ray.deployment import serve as serve_on_ray
from app.ray.settings import RaySettings
from app.server import leave, serve
from app.settings import Settings
from tests.scripted import ScriptedUpscaler, model_dir
from tests.server import ServerProcess


class Failure(enum.IntEnum):
    """What happens to an image whose first pixel is (255, 0, failure)."""

    NONE = 0
    FAULT = 1
    """The forward pass fails."""
    NO_MEMORY = 2
    """The forward pass runs out of memory, each time."""
    CRASH = 3
    """The worker crashes."""
    FREEZE = 4
    """The worker freezes."""

    def mark(self, pixels: np.ndarray) -> np.ndarray:
        """The image, marked with this failure."""
        pixels = pixels.copy()
        pixels[0, 0] = (255, 0, self.value)
        return pixels


class FailingUpscaler(ScriptedUpscaler):
    """Takes time in proportion to the pixels, and fails as first pixels say.

    Args:
        seconds: per megapixel of a batch.
        burn: spend them computing on every core instead of waiting.
        memory: pixels above which a call runs out of memory.
    """

    def __init__(self, seconds: float, *, burn: bool = False, memory: int | None = None) -> None:
        super().__init__(fault=self._obey, memory=memory)
        self._seconds, self._burn = seconds, burn

    def forward(self, tiles):
        """As the script says, then as ever; the warm-up is quick."""
        if self._skip:
            return super().forward(tiles)
        self.calls.clear()
        seconds = self._seconds * sum(tile.shape[0] * tile.shape[1] for tile in tiles) / 1e6
        until = time.monotonic() + seconds
        if not self._burn:
            threading.Event().wait(seconds)
        while self._burn and time.monotonic() < until:
            torch.mm(torch.ones(512, 512), torch.ones(512, 512))
        return super().forward(tiles)

    @staticmethod
    def _obey(tile):
        if tuple(tile[0, 0, :2]) != (255, 0):
            return
        failure = tile[0, 0, 2]
        if failure == Failure.FAULT:
            raise ArithmeticError("planned failure")
        if failure == Failure.NO_MEMORY:
            raise MemoryError
        if failure == Failure.CRASH:
            raise SystemExit
        if failure == Failure.FREEZE:
            threading.Event().wait()


PROGRAM = ("-W", "ignore", "-m", "tests.scripted_server")


class ScriptedServer(ServerProcess):
    """This program as a process, with settings under which small images have several tiles.

    It is forked from a process that has imported it; on Ray, and with another program or a runner, it is started anew.

    Args:
        seconds, burn, memory: as for ``FailingUpscaler``.
        ray: on Ray.
        program: another one that takes the same options.
        runner: a command that starts it.
        settings: of the service.
    """

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        burn: bool = False,
        memory: int | None = None,
        ray: bool = False,
        program: Sequence[str] = PROGRAM,
        runner: Sequence[str] = (),
        **settings: object,
    ) -> None:
        options = ["--seconds", str(seconds), *(["--burn"] if burn else [])]
        options += ["--memory", str(memory)] if memory else []
        options += ["--ray"] if ray else []
        small = {"tile_size": 128, "tile_overlap": 32, "device": "cpu", "variants": "classical-x2"}
        anew = ray or runner or program is not PROGRAM
        fork = () if anew else ("tests.scripted_server",)
        super().__init__(*options, program=program, runner=runner, fork=fork, **{**small, **settings})


def main() -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--burn", action="store_true")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()

    def load(_name: str, _path: Path) -> FailingUpscaler:
        return FailingUpscaler(options.seconds, burn=options.burn, memory=options.memory)

    with tempfile.TemporaryDirectory() as folder:
        kind, start = (RaySettings, serve_on_ray) if options.ray else (Settings, serve)
        settings = kind(model_dir=model_dir(Path(folder), "classical-x2", "classical-x4"))
        return start(settings, lambda line: print(f"{line}\n", end="", flush=True), load=load)


if __name__ == "__main__":
    leave(main())

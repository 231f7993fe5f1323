"""Runs the batches that the batcher takes: the forward pass of one variant."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from app.batching.batch import Running
from app.errors import OutOfMemory
from app.variants.device import is_out_of_memory, release_memory, use_threads
from app.variants.loaded_model import TileJob


class BatchRunner:
    """Runs the items of a batch; called by the batcher's worker.

    Args:
        device: of the variants.
        threads: of a forward pass on a CPU.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device = device
        self._threads = threads

    def __call__(self, _key: str, jobs: list[TileJob]) -> list[NDArray[Any]] | Running[NDArray[Any]]:
        """Run tiles of one variant, or launch them on the device.

        Raises:
            OutOfMemory: if there was not enough memory. Unused memory was returned to the device before.
        """
        use_threads(self._threads)
        upscaler, tiles = jobs[0].upscaler, [job.tile for job in jobs]
        try:
            if not upscaler.runs_ahead:
                return upscaler.forward(tiles)
            dtypes = [job.dtype for job in jobs]
            return upscaler.launch(tiles, dtypes) if any(dtypes) else upscaler.launch(tiles)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except block, so that the traceback does not keep the tensors of the failed pass.
        release_memory(self._device)
        raise OutOfMemory("There is not enough memory now. Send the request later, or with a smaller tile.")


def cost_of(job: TileJob) -> int:
    """Cost of a tile in the batcher's unit: pixels."""
    return int(job.tile.shape[0] * job.tile.shape[1])

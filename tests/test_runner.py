"""A batch is run by its variant, and a lack of memory has one name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.batching.runner import BatchRunner, cost_of
from app.errors import OutOfMemory
from app.variants.loaded_model import TileJob
from tests.scripted import ScriptedUpscaler

RUN = BatchRunner(torch.device("cpu"), threads=1)


def test_a_batch_is_one_call_of_its_variant():
    """All tiles go in together, and come out in order."""
    upscaler = ScriptedUpscaler(skip=0)
    tiles = [np.full((8, 8, 3), 255, np.uint8), np.zeros((16, 8, 3), np.uint8)]
    outputs = RUN("", [TileJob(upscaler, tile) for tile in tiles])
    assert [(output.shape, output.max()) for output in outputs] == [((16, 16, 3), 1), ((32, 16, 3), 0)]
    assert upscaler.calls == [[(8, 8), (16, 8)]]


def test_a_device_is_given_its_batch():
    """Where the device computes by itself, its handle is returned at once."""
    upscaler = ScriptedUpscaler()
    upscaler.runs_ahead, upscaler.launch = True, len
    assert RUN("", [TileJob(upscaler, np.zeros((8, 8, 3), np.uint8))]) == 1


def test_a_device_rounds_the_results_that_may_be_rounded():
    """Each to its own dtype, in one launch with those that stay float32."""
    upscaler, dtype = ScriptedUpscaler(), np.dtype(np.uint16)
    upscaler.runs_ahead, upscaler.launch = True, lambda tiles, dtypes: (len(tiles), dtypes)
    tile = np.zeros((8, 8, 3), np.uint8)
    assert RUN("", [TileJob(upscaler, tile, dtype), TileJob(upscaler, tile)]) == (2, [dtype, None])


@pytest.mark.slow
@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), None])
def test_a_forward_pass_without_memory_says_so(error):
    """Whatever the library raises, the batcher sees OutOfMemory."""
    upscaler = ScriptedUpscaler(memory=100, skip=0)

    def fault(_tile):
        raise error

    if error is not None:
        upscaler.memory, upscaler.fault = None, fault
    with pytest.raises(OutOfMemory, match="smaller tile"):
        RUN("", [TileJob(upscaler, np.zeros((16, 16, 3), np.uint8))])


def test_other_faults_stay_what_they_are():
    """They are not taken for a lack of memory."""
    upscaler = ScriptedUpscaler(skip=0)

    def fault(_tile):
        raise RuntimeError("shapes do not fit")

    upscaler.fault = fault
    with pytest.raises(RuntimeError, match="shapes"):
        RUN("", [TileJob(upscaler, np.zeros((16, 16, 3), np.uint8))])


def test_the_cost_of_a_tile_is_its_pixels():
    """Channels do not count."""
    assert cost_of(TileJob(ScriptedUpscaler(), np.zeros((16, 8, 3), np.uint8))) == 128

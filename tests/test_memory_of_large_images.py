"""Fifty megapixels in, two hundred out, within a stated amount of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 8000, 6250
INPUT = WIDTH * HEIGHT * 3 / 2**20
OUTPUT = 4 * INPUT
"""The bytes of the pixels, MiB."""


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A JPEG of fifty megapixels with something in every pixel."""
    rng = np.random.default_rng(0)
    tile = rng.integers(100, 124, (250, 400, 3), np.uint8)
    pixels = np.tile(tile, (HEIGHT // 250, WIDTH // 400, 1))
    file = tmp_path_factory.mktemp("large") / "large.jpg"
    Image.fromarray(pixels).save(file, quality=80)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bound"),
    [
        # The answer's pixels and its bytes twice (as written, and with its chunks), the input's pixels twice.
        ((), OUTPUT * 2 + INPUT * 3),
        # Pillow takes four bytes for three.
        (("format=jpeg",), OUTPUT * 2.5 + INPUT * 3),
    ],
)
def test_fifty_megapixels_are_answered_within_their_bound(photograph, options, bound):
    """The peak grows by 2 (PNG) or 2.5 (JPEG) times the answer's and 3 times the input's bytes of pixels at most."""
    command = [sys.executable, "-m", "tests.large_image", str(photograph), *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)
    length, grown = (float(word) for word in answer.stdout.split())
    assert length > 2**20
    assert INPUT + OUTPUT < grown < bound

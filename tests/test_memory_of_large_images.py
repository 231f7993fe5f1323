"""A large image is answered within a stated amount of memory: twelve megapixels, and fifty for ``make prove``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "outputs"), [((), 2), (("format=jpeg",), 2.5)], ids=["PNG", "JPEG"])
@pytest.mark.parametrize("tiles", [10, pytest.param(20, marks=pytest.mark.long)])
def test_a_large_image_is_answered_within_its_bound(tmp_path, tiles, options, outputs):
    """The peak grows by at most 2 (PNG) or 2.5 (JPEG) times the answer's and 3 times the input's bytes of pixels.

    The answer's pixels and its bytes twice (as written, and with its chunks), the input's pixels twice; and for JPEG,
    Pillow takes four bytes for three.
    """
    tile = np.random.default_rng(0).integers(100, 124, (312, 400, 3), np.uint8)
    pixels = np.tile(tile, (tiles, tiles, 1))
    file = tmp_path / "large.jpg"
    Image.fromarray(pixels).save(file, quality=80)
    before, after = pixels.nbytes / 2**20, 4 * pixels.nbytes / 2**20
    command = [sys.executable, "-m", "tests.large_image", str(file), *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)
    length, grown = (float(word) for word in answer.stdout.split())
    assert length > 2**20
    assert before + after < grown < outputs * after + 3 * before

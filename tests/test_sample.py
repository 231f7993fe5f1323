"""The picture to try the service with."""

import io
import subprocess
import sys

import numpy as np
from PIL import Image

from app.imaging.sample import SIZE, draw_sample


def test_the_sample_is_a_small_colour_png():
    """It opens as an RGB PNG of the stated size, and is small enough to be sent about."""
    body = draw_sample()
    with Image.open(io.BytesIO(body)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", SIZE)
    assert len(body) < 100_000


def test_the_sample_has_fine_detail_and_smooth_parts():
    """Upscaling shows on it: some places change abruptly, others hardly at all."""
    pixels = np.asarray(Image.open(io.BytesIO(draw_sample())).convert("L"), dtype=float)
    steps = np.abs(np.diff(pixels, axis=1))
    assert (steps > 60).mean() > 0.02
    assert (steps < 2).mean() > 0.3


def test_every_drawing_is_the_same():
    """Two drawings are equal byte by byte."""
    assert draw_sample() == draw_sample()


def test_the_module_writes_the_sample_to_a_file(tmp_path):
    """``python -m app.imaging.sample FILE`` writes what ``draw_sample`` returns."""
    file = tmp_path / "sample.png"
    subprocess.run([sys.executable, "-m", "app.imaging.sample", file], check=True)
    assert file.read_bytes() == draw_sample()

"""The authors' lightweight weights against golden images that the official network made with them."""

import numpy as np
import pytest
from PIL import Image

from model import Upscaler

pytestmark = pytest.mark.shared


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16x16", "32x32"])
def test_golden_images_are_reproduced_within_one_level(shared, size):
    """Both golden image pairs come out within one 8-bit level."""
    folder = shared / "checkpoints" / "swin2SR-lightweight-x2-64"
    pixels = np.asarray(Image.open(folder / "golden" / f"in_{size}.png").convert("RGB"))
    expected = np.asarray(Image.open(folder / "golden" / f"out_{size}.png").convert("RGB"))
    result = Upscaler.from_pretrained(folder, device="cpu")([pixels])[0]
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1

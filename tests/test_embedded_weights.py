"""The embedded weights are at least as good on graphics as the model card says."""

import pytest

from model.training.evaluate_graphics import measure_boards, measure_flat, measure_graphics, measure_spots
from model.upscaler import Upscaler
from model.variants import embedded_path

# Flat colours: levels off inside and at the rim; at a saturated spot; the mean of a checkerboard; mean gain in dB.
# Lower these figures when weights improve. The gray around a spot is right for all of them.
BOUNDS = {
    "small-x2": (2, 51, 33, 2.4, 1.1),
    "small-x4": (5, 87, 25, 20.0, 0.0),
    "small-jpeg": (11, 27, 48, 2.1, 0.1),
    "small-compressed-x4": (21, 161, 62, 17.5, -3.1),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_graphics_come_out_no_worse_than_stated(name: str) -> None:
    """Flat colours, saturated spots, checkerboards and 50 drawn images stay within the stated bounds."""
    inside, rim, spot, board, gain = BOUNDS[name]
    path = embedded_path(name)
    assert path is not None
    upscaler = Upscaler.from_pretrained(path, device="cpu")
    flat, spots = measure_flat(upscaler), measure_spots(upscaler)
    assert flat.inside <= inside
    assert flat.outside <= rim
    assert spots.inside <= spot
    assert spots.outside <= 1
    assert measure_boards(upscaler) <= board
    quality = 40 if upscaler.scale == 1 else None
    assert measure_graphics(upscaler, quality).mean >= gain

"""The embedded weights are at least as good on graphics as the model card says."""

import hashlib

import pytest

from model.training.evaluate_graphics import measure_boards, measure_flat, measure_graphics, measure_spots
from model.upscaler import Upscaler
from model.variants import embedded_path

# Levels off inside a saturated spot; the mean of a checkerboard; mean gain in dB. Tighten them when weights improve.
# Flat colours, and the gray around a spot, are right for all of them by construction.
BOUNDS = {
    "small-x2": (0, 0.5, 4.1),
    "small-x4": (0, 1.5, 2.8),
    "small-jpeg": (4, 1.0, 1.45),
    "small-compressed-x4": (0, 1.0, -1.85),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here"),
]


def test_the_model_card_states_the_digests() -> None:
    """New weights without a new card would be described by the figures of others."""
    path = embedded_path("small-x2")
    assert path is not None
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    for file in path.parent.glob("*.safetensors"):
        assert f"| `{file.name}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_graphics_come_out_no_worse_than_stated(name: str) -> None:
    """Flat colours, saturated spots, checkerboards and 50 drawn images stay within the stated bounds."""
    spot, board, gain = BOUNDS[name]
    path = embedded_path(name)
    assert path is not None
    upscaler = Upscaler.from_pretrained(path, device="cpu")
    flat, spots = measure_flat(upscaler), measure_spots(upscaler)
    assert flat.inside == flat.outside == 0
    assert spots.inside <= spot
    assert spots.outside == 0
    assert measure_boards(upscaler) <= board
    quality = 40 if upscaler.scale == 1 else None
    assert measure_graphics(upscaler, quality).mean >= gain

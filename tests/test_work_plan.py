"""What a request will cost and become."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ImageTooLarge, InvalidOption
from app.imaging.work_plan import final_size, outline, reduce_to
from app.schemas import UpscaleOptions
from app.settings import Settings

SETTINGS = Settings(max_output_pixels=4_000_000)


def plan(height, width, *, scale=2, settings=SETTINGS, **options):
    return outline(height, width, UpscaleOptions(**options), settings, scale=scale, window=8)


def test_an_image_that_fits_is_one_tile():
    """Up to the tile size, padding included."""
    assert len(plan(544, 544).tiles) == 1
    assert len(plan(545, 544).tiles) == 2
    assert plan(10, 10).cost == 16 * 16


def test_the_ensemble_is_eight_times_the_work():
    """Every turn of every tile is computed."""
    assert plan(600, 600, ensemble=True).cost == 8 * plan(600, 600).cost


@given(st.integers(1, 1500), st.integers(1, 600))
def test_an_image_on_its_side_is_the_same_work(height, width):
    """So what the header says is enough, whatever the orientation."""
    assert plan(height, width).cost == plan(width, height).cost


def test_too_large_an_output_is_refused_with_both_numbers():
    """Before anything is computed."""
    with pytest.raises(ImageTooLarge) as error:
        plan(1001, 1000)
    assert error.value.facts == {"limit": 4_000_000, "actual": 4_004_000}
    plan(1000, 1000)


def test_a_request_may_ask_for_smaller_tiles_only():
    """The server's tile size bounds memory."""
    assert len(plan(600, 600, tile=128).tiles) > len(plan(600, 600).tiles)
    with pytest.raises(InvalidOption) as error:
        plan(600, 600, tile=545)
    assert error.value.facts["limit"] == 544


@given(st.integers(64, 544))
def test_any_allowed_tile_leaves_tiles_something_of_their_own(tile):
    """Whatever the overlap of the server and the window of the variant."""
    for window in (7, 8):
        tiles = outline(600, 600, UpscaleOptions(tile=tile), SETTINGS, scale=1, window=window).tiles
        assert all(each.height <= tile for each in tiles)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (200, 400)),
        ({"width": 300}, (150, 300)),
        ({"height": 100}, (100, 200)),
        ({"width": 300, "height": 100}, (100, 200)),
        ({"width": 100, "height": 100}, (50, 100)),
        ({"factor": 1.5}, (150, 300)),
        ({"factor": 2}, (200, 400)),
        ({"width": 1}, (1, 1)),
        ({"factor": 0.001}, (1, 1)),
    ],
)
def test_the_wished_size_keeps_the_aspect(options, size):
    """Width and height together are a box to fit into."""
    assert final_size(100, 200, 2, UpscaleOptions(**options)) == size


@pytest.mark.parametrize("options", [{"width": 401}, {"height": 201}, {"factor": 2.01}])
def test_more_than_the_upscaled_size_is_refused(options):
    """Reduced only: what would be invented by interpolation is refused."""
    with pytest.raises(InvalidOption, match="400x200"):
        final_size(100, 200, 2, UpscaleOptions(**options))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_reducing_keeps_depth_and_flat_colours(dtype):
    """No clipping artefacts, no change of type, the size that was asked for."""
    limit = np.iinfo(dtype).max
    pixels = np.full((40, 60, 3), (0, limit // 3, limit), dtype)
    reduced = reduce_to(pixels, 13, 20)
    assert reduced.dtype == dtype
    np.testing.assert_array_equal(reduced, np.full((13, 20, 3), (0, limit // 3, limit), dtype))


def test_reducing_agrees_with_pillows_own_lanczos():
    """To a level, in 8 bit, where nothing is clipped between its two passes."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(90, 166, (64, 64, 3), np.uint8)
    witness = np.asarray(Image.fromarray(pixels).resize((40, 24), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(reduce_to(pixels, 24, 40).astype(int) - witness).max() <= 1


@pytest.mark.parametrize(("size", "wish"), [((1500, 60), (700, 31)), ((1999, 40), (1001, 20)), ((1037, 50), (519, 33))])
def test_reducing_in_bands_is_reducing_at_once(size, wish):
    """A tall image is reduced in parts, and nobody can tell where: one level of 65535 is the parts' rounding."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(20_000, 45_000, (*size, 1), np.uint16)
    values = Image.fromarray(pixels[:, :, 0].astype(np.float32))
    witness = np.rint(np.asarray(values.resize(wish[::-1], Image.Resampling.LANCZOS)))
    assert np.abs(reduce_to(pixels, *wish)[:, :, 0] - witness).max() <= 1


def test_reducing_to_the_same_size_is_nothing():
    """The very same pixels."""
    pixels = np.zeros((2, 3, 1), np.uint8)
    assert reduce_to(pixels, 2, 3) is pixels

"""The plan of a request: steps, size, cost, memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import codec
from app.errors import InvalidOption
from app.imaging.work_plan import Network, plan_work
from app.schemas import UpscaleOptions
from app.settings import Settings

SETTINGS = Settings()
X2, X4, RESTORE = Network("x2", 2, 8, 3), Network("x4", 4, 8, 3), Network("jpeg", 1, 7, 1)


def plan(height, width, /, *networks, header=(), **options):
    parsed = codec.Header("png", width, height, **dict(header))
    return plan_work(parsed, UpscaleOptions(**options), SETTINGS, networks or (X2,))


def test_an_image_that_fits_is_one_tile():
    """Up to the tile size, padding included."""
    assert plan(544, 544).tiles == 1
    assert plan(545, 544).tiles == 2
    assert plan(10, 10).cost == 16 * 16


def test_the_ensemble_is_eight_times_the_work():
    """Every augmentation of every tile is computed, and two tiles' results may wait."""
    assert plan(600, 600, ensemble=True).cost == 8 * plan(600, 600).cost
    assert plan(600, 600, ensemble=True).steps[0].result_window == 16


def test_an_alpha_plane_is_as_much_work_again():
    """Not for a restoring network, which does not change the size."""
    with_alpha = plan(20, 20, header={"alpha": True})
    assert with_alpha.cost == 2 * with_alpha.color_cost == 2 * plan(20, 20).cost
    assert plan(20, 20, RESTORE, header={"alpha": True}).cost == plan(20, 20, RESTORE).cost


def test_steps_follow_each_other():
    """Each takes what the one before makes; cost, tiles and description cover all."""
    work = plan(100, 200, RESTORE, X2, X4, width=500)
    assert [(step.network.name, step.height, step.width) for step in work.steps] == [
        ("jpeg", 100, 200),
        ("x2", 100, 200),
        ("x4", 200, 400),
    ]
    assert work.scale == 8
    assert work.size == (250, 500)
    assert work.describe() == "jpeg; x2; x4; resize 500x250"
    assert work.cost == sum(plan(step.height, step.width, step.network).cost for step in work.steps)
    assert work.tiles == 1 + 1 + 1


def test_the_image_is_planned_upright():
    """A photograph on its side has its width and height exchanged before anything else."""
    work = plan(100, 200, header={"orientation": 6}, width=150)
    assert work.steps[0].output_size == (400, 200)
    assert work.size == (300, 150)


def test_a_size_that_the_last_pass_makes_is_not_resized():
    """The network's result stays unchanged."""
    assert plan(100, 200, width=400).resize is None
    assert plan(100, 200).describe() == "x2"


def test_a_crop_is_a_box_of_the_upscaled_image():
    """fit=cover keeps the centre."""
    assert plan(100, 200, width=200, height=200, fit="cover").resize.box == (100, 0, 300, 200)


def test_what_the_format_cannot_hold_is_refused():
    """From the size of the result, not of the intermediate image."""
    with pytest.raises(codec.TooLargeForFormat):
        plan(10, 9000, format="webp")
    plan(10, 9000, format="webp", width=16_000)


def test_a_request_may_ask_for_smaller_tiles_only():
    """The server's tile size bounds memory."""
    assert plan(600, 600, tile=128).tiles > plan(600, 600).tiles
    with pytest.raises(InvalidOption, match=r"tile=545 .* 544") as error:
        plan(600, 600, tile=545)
    assert error.value.facts["limit"] == 544


@given(st.integers(64, 544))
def test_any_allowed_tile_leaves_tiles_pixels_of_their_own(tile):
    """Whatever the overlap of the server and the window of the variant."""
    for window in (7, 8):
        (step,) = plan(600, 600, Network("any", 1, window, 3), tile=tile).steps
        assert all(each.height <= tile for each in step.tiles)


@pytest.mark.parametrize("options", [{"format": "same"}, {}])
def test_max_bytes_needs_a_lossy_result(options):
    """Also where the format of the upload decides."""
    work = UpscaleOptions.model_construct(max_bytes=1000, **{"format": "png", **options})
    with pytest.raises(InvalidOption, match="max_bytes needs a lossy format"):
        plan_work(codec.Header("png", 8, 8), work, SETTINGS, [X2])
    plan_work(codec.Header("jpeg", 8, 8), UpscaleOptions(max_bytes=1000, format="same"), SETTINGS, [X2])


def test_memory_follows_the_result_and_its_encoder():
    """A lossless WebP takes thirteen times the bytes of its pixels, and PNG little more than them."""
    pixels = 2000 * 3000 * 4 * 3
    assert 3 * pixels < plan(2000, 3000).memory_bytes < 4 * pixels
    assert plan(2000, 3000, format="webp", quality=100).memory_bytes > 13 * pixels
    deep = plan(2000, 3000, header={"bits": 16}).memory_bytes
    assert deep == pytest.approx(2 * plan(2000, 3000).memory_bytes, rel=0.01)
    assert plan(2000, 3000, header={"mode": "gray"}).memory_bytes < plan(2000, 3000).memory_bytes


def test_a_response_is_estimated_from_its_pixels():
    """And from max_bytes, if that is less."""
    assert plan(100, 100).response_bytes == 200 * 200 * 3 + 4096
    assert plan(100, 100, format="jpeg", max_bytes=5000).response_bytes == 5000

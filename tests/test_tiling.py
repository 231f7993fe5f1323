"""Tiles cover the image on the window grid, and stitching undoes the cutting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.padding import pad, quantise
from model.tiling import BLEND, Stitcher, Tile, plan

WINDOWS = st.sampled_from([7, 8])
CELLS = st.integers(1, 60)


@given(WINDOWS, CELLS, CELLS, st.integers(2, 20), st.integers(0, 60))
def test_tiles_start_on_the_window_grid_and_cover_every_pixel(window, rows, columns, tile_cells, overlap):
    """Every pixel is covered, every origin and side is a multiple of the window, no tile is over the limit."""
    tile_size = tile_cells * window + 3
    if tile_cells <= -(-overlap // window):
        overlap = 0
    height, width = rows * window, columns * window
    covered = np.zeros((height, width), int)
    for tile in plan(height, width, tile_size, overlap, window):
        assert tile.height <= tile_size
        assert tile.width <= tile_size
        assert all(value % window == 0 for value in (tile.top, tile.left, tile.height, tile.width))
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() >= 1


@given(WINDOWS, st.integers(1, 200), st.integers(2, 20), st.integers(0, 10))
def test_neighbours_share_at_least_the_overlap_and_no_smaller_tile_would_do(window, cells, tile_cells, shared):
    """Neighbours share the overlap, and a side one window smaller would need more tiles."""
    if tile_cells <= shared:
        return
    tiles = plan(window, cells * window, tile_cells * window, shared * window, window)
    for left, right in itertools.pairwise(tiles):
        assert left.left + left.width - right.left >= shared * window
    side = tiles[0].width // window
    assert len({tile.width for tile in tiles}) == 1
    if len(tiles) > 1 and side - 1 > shared:
        assert len(plan(window, cells * window, (side - 1) * window, shared * window, window)) > len(tiles)


def test_tiles_come_in_reading_order():
    """Rows from the top, columns from the left."""
    tiles = plan(160, 240, 96, 16, 8)
    assert [(tile.row, tile.column) for tile in tiles] == [(row, column) for row in range(2) for column in range(3)]
    assert tiles == sorted(tiles, key=lambda tile: (tile.top, tile.left))


@pytest.mark.parametrize(
    ("height", "width", "tile_size", "overlap"),
    [(15, 16, 64, 8), (16, 0, 64, 8), (64, 64, 32, 32), (64, 64, 32, 40), (64, 64, 4, 0), (64, 64, 32, -8)],
)
def test_impossible_plans_are_refused(height, width, tile_size, overlap):
    """Sizes off the grid and overlaps that cover a whole tile raise ValueError."""
    with pytest.raises(ValueError, match="pixels"):
        plan(height, width, tile_size, overlap, 8)


def stitch(pixels, tiles, scale, dtype=np.uint8, change=lambda _tile, values: values):
    """Nearest-neighbour upscaling tile by tile, and stitching."""
    full = np.iinfo(pixels.dtype).max
    padded = pad(pixels, 8)
    stitcher = Stitcher(*pixels.shape, scale=scale, tiles=tiles, dtype=dtype)
    for tile in tiles:
        values = tile.cut(padded).astype(np.float32) / full
        stitcher.add(tile, change(tile, values.repeat(scale, 0).repeat(scale, 1)))
    return stitcher.finish()


@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150), st.sampled_from([1, 3])),
    st.tuples(st.sampled_from([32, 40, 72]), st.sampled_from([0, 8, 24])),
    st.integers(1, 3),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_stitching_undoes_cutting(shape, tiling, scale, dtype):
    """Tiles that agree where they overlap join to exactly the upscaled image, at any size and depth."""
    height, width, _ = shape
    pixels = np.random.default_rng(height * width).integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    tiles = plan(-(-height // 8) * 8, -(-width // 8) * 8, *tiling, 8)
    np.testing.assert_array_equal(stitch(pixels, tiles, scale, dtype), pixels.repeat(scale, 0).repeat(scale, 1))


def test_a_tile_counts_only_up_to_the_seam():
    """Wrong pixels at a tile's edge leave no trace; the seam itself is a ramp as wide as stated."""
    pixels = np.zeros((8, 104, 1), np.uint8)
    tiles = plan(8, 104, 64, 24, 8)
    assert len(tiles) == 2
    joined = stitch(pixels, tiles, 2, change=lambda tile, values: values + np.float32(tile.column))[0, :, 0]
    left, right = tiles
    middle = (right.left + left.left + left.width) // 2 * 2
    ramp = BLEND * 2
    assert (joined[: middle - ramp // 2] == 0).all()
    assert (joined[middle + ramp // 2 :] == 255).all()
    steps = np.diff(joined[middle - ramp // 2 : middle + ramp // 2].astype(int))
    assert steps.min() > 0
    np.testing.assert_allclose(steps, 255 / ramp, atol=1)


def test_a_crossing_of_seams_weighs_all_four_tiles():
    """Where four tiles meet the weights are the product of both ramps."""
    tiles = plan(104, 104, 64, 24, 8)
    marks = {(0, 0): 0.0, (0, 1): 0.25, (1, 0): 0.5, (1, 1): 1.0}
    pixels = np.zeros((104, 104, 1), np.uint8)
    joined = stitch(pixels, tiles, 1, np.uint16, lambda tile, values: values + np.float32(marks[tile.row, tile.column]))
    middle = (tiles[1].left + tiles[0].width) // 2
    down, across = 0.5 / BLEND + 2 / BLEND, 0.5 / BLEND + 5 / BLEND
    expected = (1 - down) * across * 0.25 + down * (1 - across) * 0.5 + down * across
    corner = middle - BLEND // 2
    actual = joined[corner + 2 : corner + 3, corner + 5 : corner + 6]
    np.testing.assert_array_equal(actual, quantise(np.full((1, 1, 1), expected, np.float32), np.uint16))


def test_a_rounded_tile_is_the_image_if_it_is_alone():
    """Without its padding, and in memory of its own; rounded tiles that would have to be blended are refused."""
    output = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    stitcher = Stitcher(13, 21, 3, scale=2, tiles=plan(16, 24, 64, 8, 8), dtype=np.uint8)
    stitcher.add(plan(16, 24, 64, 8, 8)[0], output)
    np.testing.assert_array_equal(stitcher.finish(), output[:26, :42])
    assert not np.shares_memory(stitcher.finish(), output)
    for tiles, dtype in ((plan(16, 24, 64, 8, 8), np.uint16), (plan(16, 24, 16, 8, 8), np.uint8)):
        stitcher = Stitcher(16, 24, 3, scale=2, tiles=tiles, dtype=dtype)
        with pytest.raises(ValueError, match="tiles of uint8 cannot become an image"):
            stitcher.add(tiles[0], output[: tiles[0].height * 2, : tiles[0].width * 2])


def test_tiles_out_of_order_misshaped_or_missing_are_refused():
    """The stitcher takes each tile once, in order, in its size, and does not finish without all of them."""
    tiles = plan(16, 48, 32, 8, 8)
    stitcher = Stitcher(16, 48, 1, scale=2, tiles=tiles, dtype=np.uint8)
    fitting = np.zeros((32, tiles[0].width * 2, 1), np.float32)
    with pytest.raises(ValueError, match="reading order"):
        stitcher.add(tiles[1], fitting)
    with pytest.raises(ValueError, match="shape"):
        stitcher.add(tiles[0], fitting[:-1])
    stitcher.add(tiles[0], fitting)
    with pytest.raises(ValueError, match="1 of 2"):
        stitcher.finish()
    stitcher.add(tiles[1], fitting)
    with pytest.raises(ValueError, match="reading order"):
        stitcher.add(tiles[1], fitting)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_may_be_quantised_in_any_order(dtype):
    """A large tile gives several calls that do not depend on each other; the image is the same."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (600, 1000, 3), dtype)
    tiles = plan(600, 1000, 544, 64, 8)
    counts = []

    def backwards(calls):
        counts.append(len(calls))
        for call in reversed(calls):
            call()

    stitcher = Stitcher(600, 1000, 3, scale=2, tiles=tiles, dtype=dtype, parallel=backwards)
    for tile in tiles:
        values = tile.cut(pixels).astype(np.float32) / np.iinfo(dtype).max
        stitcher.add(tile, values.repeat(2, 0).repeat(2, 1))
    assert min(counts) > 1
    np.testing.assert_array_equal(stitcher.finish(), pixels.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_wherever_it_is(value):
    """In the middle of a tile and in a seam: no image is better than a wrong one."""
    tiles = plan(16, 48, 32, 8, 8)
    for place in ((3, 3, 0), (3, 2 * tiles[0].width - 20, 0)):
        stitcher = Stitcher(16, 48, 1, scale=2, tiles=tiles, dtype=np.uint8)
        outputs = [np.zeros((32, tile.width * 2, 1), np.float32) for tile in tiles]
        outputs[0][place] = value
        with pytest.raises(ValueError, match="finite"):
            [stitcher.add(tile, output) for tile, output in zip(tiles, outputs, strict=True)]


def test_a_tile_is_cut_without_copying():
    """Cutting gives a view, so queued tiles cost no memory of their own."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    assert np.shares_memory(Tile(8, 0, 8, 16, 1, 0).cut(pixels), pixels)

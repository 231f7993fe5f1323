"""What tiles leave behind, against the whole image; and the program that measures it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from app.settings import Settings
from model import Upscaler
from model.bench import seams
from model.bench.seams import Difference, compare_tilings, join_feathered, join_middles
from model.evaluate import read_photo
from model.padding import quantise
from model.tiling import plan
from tests.networks import tiny_network
from tests.pictures import samples

DEFAULT = (Settings.model_fields["tile_size"].default, Settings.model_fields["tile_overlap"].default)


@pytest.mark.slow
@pytest.mark.parametrize("height", [96, pytest.param(512, marks=pytest.mark.long)])
def test_a_photo_shows_no_seams_at_the_defaults(shared, height):
    """The authors' weights, a photo in two tiles: no sample is off by more than a level, at most 0.2 % by one."""
    upscaler = Upscaler.from_pretrained(shared / "checkpoints" / "swin2SR-lightweight-x2-64", device="cpu")
    photo = read_photo(shared / "testsets" / "Kodak" / "kodim08.png", 3)[:height]
    assert photo.shape == (height, 768, 3)
    [tiling] = compare_tilings(upscaler, photo, [DEFAULT])
    assert tiling.tiles == 2
    assert tiling.middles.largest <= 1
    assert 0 < tiling.middles.share <= 0.002


def test_the_defaults_are_the_last_row_of_the_table():
    """What is served is among what was measured."""
    assert seams.TILINGS[-1] == DEFAULT


def test_a_difference_is_the_largest_and_the_share():
    """Levels down count as levels up."""
    first = np.array([[[10], [20]], [[30], [40]]], np.uint8)
    assert Difference.between(first, first) == Difference(0, 0.0)
    second = np.array([[[10], [17]], [[31], [40]]], np.uint8)
    assert Difference.between(first, second) == Difference(3, 0.5)
    assert str(Difference(3, 0.5)) == "3, 50.00%"


@pytest.mark.parametrize("join", [join_middles, join_feathered])
def test_tiles_that_agree_join_to_the_whole(join):
    """Whatever the weights, they sum to one: at edges, along seams and where four tiles meet."""
    whole = np.random.default_rng(0).random((208, 304, 3), np.float32)
    tiles = plan(104, 152, 64, 24, 8)
    outputs = [
        whole[2 * tile.top : 2 * (tile.top + tile.height), 2 * tile.left : 2 * (tile.left + tile.width)]
        for tile in tiles
    ]
    difference = Difference.between(join(tiles, outputs, (101, 149), 2), quantise(whole[:202, :298]))
    assert difference.largest <= 1, "sums of weights are rounded"
    assert difference.share < 1e-4


@pytest.mark.slow
def test_more_overlap_is_nearer_to_the_whole():
    """And a tile as large as the image is the image."""
    upscaler = Upscaler(tiny_network("lightweight_x4"), device="cpu")
    photo = samples(90, 120, 3)
    little, much, all_of_it = compare_tilings(upscaler, photo, [(64, 8), (64, 40), (120, 8)], stretch=True)
    assert little.middles.share > much.middles.share
    assert (all_of_it.tiles, all_of_it.work) == (1, pytest.approx(96 * 120 / (90 * 120)))
    assert all_of_it.middles == Difference(0, 0.0)
    assert much.tiles > little.tiles > 1


def test_the_program_prints_the_table(monkeypatch, tmp_path, capsys):
    """A row for each tiling, of the worst of all photos."""
    monkeypatch.setattr(seams, "TILINGS", ((64, 16), (96, 16)))
    monkeypatch.setattr(seams, "random_network", lambda _variant: tiny_network("lightweight_x4"))
    for number in range(2):
        Image.fromarray(samples(90, 120, 3, seed=number)).save(tmp_path / f"{number}.png")
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    assert seams.main([*files, "--crop", "80", "104"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == ["| 64, 16", "| 96, 16"]
    assert "%" in lines[2]

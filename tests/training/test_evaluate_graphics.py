"""What is measured on graphics and on JPEG files, with upscalers whose errors are known."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.checkpoints import write_official
from model.degradations import resize_bicubic
from model.network import Swin2SR
from model.training import evaluate_graphics as graphics
from model.training import restore_threshold as threshold
from model.training.graphics import KINDS
from tests.tiny_training import draw, tiny


class Bicubic:
    """Enlarges by bicubic interpolation, and then changes the pixels."""

    channels = 3

    def __init__(self, scale: int, change: Callable[[np.ndarray], np.ndarray] = lambda image: image) -> None:
        self.scale = scale
        self._change = change

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Upscale (H, W, 3) uint8."""
        return [
            self._change(resize_bicubic(image, *(self.scale * side for side in image.shape[:2]))) for image in images
        ]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_interpolation_keeps_flat_areas_and_gains_nothing(scale: int) -> None:
    """Bicubic enlargement against itself: no error inside, at the rim, at a spot or around it, and no gain."""
    plain = Bicubic(scale)
    assert graphics.measure_flat(plain) == graphics.Flatness(0, 0)
    assert graphics.measure_spots(plain).outside == 0
    assert graphics.measure_spots(plain).inside < 25  # bicubic overshoots near an edge
    assert graphics.measure_boards(plain) <= 0.5  # rounding to 8 bit
    gain = graphics.measure_graphics(plain)
    assert gain.mean == gain.worst == 0


def test_errors_are_found_where_they_are() -> None:
    """Wrong pixels in the middle, at the rim, at a spot and around it each count once."""

    def spoil(at: tuple[int, int], by: int) -> Bicubic:
        def change(image: np.ndarray) -> np.ndarray:
            image = image.copy()
            image[at] = image[at] - np.sign(image[at].astype(int) - 100) * by
            return image

        return Bicubic(2, change)

    assert graphics.measure_flat(spoil((96, 96), 7)) == graphics.Flatness(7, 0)
    assert graphics.measure_flat(spoil((32, 32), 7)) == graphics.Flatness(7, 0)
    assert graphics.measure_flat(spoil((31, 96), 9)) == graphics.Flatness(0, 9)
    assert graphics.measure_spots(spoil((96, 96), 40)).inside == 40
    assert graphics.measure_spots(spoil((40, 40), 40)).outside == 40
    assert graphics.measure_spots(spoil((80, 80), 40)).outside == 0  # nearer than 16 pixels to the spot


def test_a_shifted_mean_of_a_checkerboard_is_found() -> None:
    """Adding five levels to every pixel moves the mean by five, or less where 255 is reached."""
    lifted = Bicubic(2, lambda image: np.minimum(image.astype(int) + 5, 255).astype(np.uint8))
    assert 4.5 <= graphics.measure_boards(lifted) <= 5.5


@pytest.mark.slow
def test_the_worst_graphic_is_named() -> None:
    """An upscaler that fails on dark images only is found by the worst image, and has a name with its kind."""

    def change(image: np.ndarray) -> np.ndarray:
        return np.full_like(image, 128) if image.mean() < 30 else image

    gain = graphics.measure_graphics(Bicubic(2, change))
    assert gain.worst < -5
    assert gain.worst < gain.mean < 0
    assert gain.worst_name.split("-")[1] in KINDS


@pytest.mark.slow
def test_the_test_set_has_every_kind_and_is_always_the_same() -> None:
    """Fifty images, three hundredths of a second each, of every kind."""
    first, again = graphics.draw_test_set(2), graphics.draw_test_set(2)
    assert len(first) == 50
    assert {photo.name.split("-")[1] for photo in first} == set(KINDS)
    assert all(np.array_equal(a.sharp, b.sharp) for a, b in zip(first, again, strict=True))
    assert len(graphics.COLOURS) == len(set(graphics.COLOURS)) == 24


@pytest.mark.slow
def test_graphics_command_prints_a_row_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row by the name of the file, for restoration too."""
    write_official(Swin2SR(tiny()), tmp_path / "a.safetensors")
    write_official(Swin2SR(tiny(1, None)), tmp_path / "b.safetensors")
    assert graphics.main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["file", "---", "a", "b"]
    assert all(line.count("|") == 9 for line in lines)


# Restoring before enlarging


def test_gains_are_summarised_by_mean_and_worst_twentieth() -> None:
    """Of forty images the two worst make the worst 5 %; of three the worst one does."""
    gain = threshold.summarise([*range(40)])
    assert (gain.mean, gain.worst, gain.least) == (19.5, 0.5, 0)
    assert threshold.summarise([3.0, -1.0, 1.0]) == threshold.Gain(1.0, -1.0, -1.0)
    with pytest.raises(ValueError, match="no image"):
        threshold.summarise([])


def test_photos_are_cut_into_squares() -> None:
    """As many as fit without overlap, and a small photo as a whole."""
    photo = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    crops = list(threshold.cut_crops(photo, 2))
    assert len(crops) == 6
    assert np.array_equal(crops[-1], photo[2:4, 4:6])
    assert [crop.shape for crop in threshold.cut_crops(photo, 6)] == [(5, 7, 3)]


def test_restoring_gains_what_the_restorer_gains() -> None:
    """A restorer that changes nothing gains nothing; one that blackens the image loses."""
    references = [draw(64, 64, seed) for seed in range(3)]
    same = threshold.measure_gain(Bicubic(1), Bicubic(2), references, 50, "4:2:0")
    assert same == threshold.Gain(0, 0, 0)
    black = threshold.measure_gain(Bicubic(1, np.zeros_like), Bicubic(2), references, 50, "4:4:4")
    assert black.mean < -5


@pytest.mark.slow
def test_threshold_command_uses_the_held_out_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row a quality and a column for each scale and chroma; with --all every photo counts."""
    for name, scale in (("small-jpeg", 1), ("small-x2", 2), ("small-x4", 4)):
        network = Swin2SR(tiny(scale, None if scale == 1 else "pixelshuffledirect"))
        write_official(network, tmp_path / f"{name}.safetensors")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(draw(48, 64, number)).save(photos / f"{number}.png")
    command = [str(photos), "--weights", str(tmp_path), "--qualities", "30", "90"]
    assert threshold.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 images")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["quality", "---", "30", "90"]
    assert all(line.count("|") == 6 for line in lines[2:])
    assert threshold.main([*command, "--all"]) == 0
    assert capsys.readouterr().out.startswith("3 images")

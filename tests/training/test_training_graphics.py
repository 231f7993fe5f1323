"""Drawn graphics: every kind, from a seed alone, with any fonts, mixed with photographs, padded as serving pads."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from model.degradations import reduce
from model.network import Swin2SR
from model.padding import pad
from model.reconstruction import Reconstruction
from model.training.crops import Crops
from model.training.fonts import built_in, find_fonts
from model.training.graphics import ALIGNED, KINDS, Sketch, draw_graphic
from model.training.held_out import HeldOut, draw_held_out
from model.training.losses import reconstruction_loss
from model.training.pairs import Photo, cut
from tests.tiny_training import draw, tiny


def sketch(name: str, seed: int, unit: int = 1) -> np.ndarray:
    """Draw one kind of graphic, 64x64."""
    found = Sketch(np.random.default_rng(seed), 64, [built_in], unit)
    KINDS[name](found)
    return found.pixels()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("unit", [1, 2])
def test_every_kind_is_drawn_from_its_seed_alone(name: str, unit: int) -> None:
    """The same seed draws the same pixels, and forty seeds draw many different images."""
    drawn = [sketch(name, seed, unit) for seed in range(40)]
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in drawn)
    assert np.array_equal(drawn[0], sketch(name, 0, unit))
    assert len({image.tobytes() for image in drawn}) > 30


def test_graphics_have_the_colours_that_photographs_lack() -> None:
    """A third and more of the flat images have a channel at each end of its range."""
    drawn = [sketch("flat", seed) for seed in range(100)]
    saturated = [image for image in drawn if np.ptp(image.reshape(-1, 3).max(0)) == 255 or np.ptp(image) == 255]
    assert len(saturated) > 33


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_pairs_are_reduced_or_repeated(scale: int) -> None:
    """The low-resolution side of a pair is the bicubic reduction, or its pixels repeated are the sharp side."""
    kinds, native = set(), 0
    for seed in range(150):
        pair = draw_graphic(np.random.default_rng(seed), 24, scale)
        assert pair.reduced.shape == (24, 24, 3)
        assert pair.sharp.shape == (24 * scale, 24 * scale, 3)
        kinds.add(pair.name)
        repeated = np.array_equal(pair.reduced.repeat(scale, 0).repeat(scale, 1), pair.sharp)
        assert repeated or np.array_equal(pair.reduced, reduce(pair.sharp, scale))
        native += repeated and pair.name in {kind.__name__ for kind in ALIGNED}
    assert kinds == set(KINDS)
    assert native >= 10


def test_gray_networks_get_gray_graphics() -> None:
    """One channel where the network has one."""
    assert draw_graphic(np.random.default_rng(0), 16, 1, channels=1).sharp.shape == (16, 16, 1)


def built_in_file() -> bytes:
    """Return Pillow's built-in font as a file."""
    font = ImageFont.load_default(16)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_bytes


def test_fonts_of_a_folder_are_found_and_others_left_out(tmp_path: Path) -> None:
    """Fonts at any depth are used; a file that is no font is not."""
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "text.ttf").write_bytes(built_in_file())
    (tmp_path / "broken.otf").write_bytes(b"no font")
    (tmp_path / "readme.txt").write_text("no font")
    (font,) = find_fonts([tmp_path])
    assert font is not built_in
    loaded = font(20)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    assert Path(loaded.path) == deep / "text.ttf"
    assert loaded.size == 20


def test_without_fonts_the_built_in_one_is_used(tmp_path: Path) -> None:
    """No font on the machine is no error."""
    assert find_fonts([tmp_path, tmp_path / "absent"]) == [built_in]


def test_held_out_graphics_are_always_the_same() -> None:
    """They depend on nothing but scale and channels, and none of them is among those trained on."""
    first, again = draw_held_out(2, 3), draw_held_out(2, 3)
    assert all(np.array_equal(a.sharp, b.sharp) for a, b in zip(first, again, strict=True))
    assert len({pair.name for pair in first}) == len(KINDS)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 60, 100), (1.0, 160, 160)])
def test_the_share_of_graphics_is_kept(share: float, low: int, high: int) -> None:
    """Of 160 crops about that share is drawn, and the others are cut from photographs."""
    gray = np.full((64, 64, 3), 77, np.uint8)
    crops = Crops([Photo("gray", gray, gray)], crop=16, batch=160, graphics=share)
    drawn = sum(not bool((image == 77).all()) for image in crops.batch(0).sharp)
    assert low <= drawn <= high


def test_graphics_depend_on_seed_and_step_alone() -> None:
    """Threads and the place where a run begins change nothing."""
    gray = np.full((64, 64, 3), 77, np.uint8)
    photos = [Photo("gray", gray, gray)]
    one = Crops(photos, crop=16, batch=4, quality=(10, 95), graphics=0.5, window=8, seed=3)
    many = Crops(photos, crop=16, batch=4, quality=(10, 95), graphics=0.5, window=8, seed=3, threads=3)
    for step, batch in zip(range(1, 4), many.batches(1), strict=False):
        expected = one.batch(step)
        for name in ("degraded", "clean", "sharp", "sizes"):
            assert torch.equal(getattr(expected, name), getattr(batch, name))


@pytest.mark.parametrize("quality", [None, (30, 30)])
def test_one_crop_in_four_is_padded_as_serving_pads(quality: tuple[int, int] | None) -> None:
    """Such a crop is smaller than its batch's, by less than a window, and reflected on the right and at the bottom."""
    photo = Photo("", draw(64, 64).repeat(2, 0).repeat(2, 1), draw(64, 64))
    generator = np.random.default_rng(0)
    samples = [cut(photo, 24, quality, generator, window=8) for _ in range(200)]
    padded = [sample for sample in samples if sample.size != (24, 24)]
    assert 25 <= len(padded) <= 75
    for sample in padded:
        height, width = sample.size
        assert 16 < height <= 24
        assert 16 < width <= 24
        for image, scale in ((sample.degraded, 1), (sample.clean, 1), (sample.sharp, 2)):
            assert image.shape == (24 * scale, 24 * scale, 3)
            assert np.array_equal(pad(image[: height * scale, : width * scale], 8 * scale), image)
    assert all(cut(photo, 24, quality, generator).size == (24, 24) for _ in range(20))


def test_padding_does_not_count_in_the_loss() -> None:
    """Errors beyond an image's size change nothing; the same errors within it do."""
    sharp, clean = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 8, 8)
    wrong, wrong_aux = sharp.clone(), clean.clone()
    wrong[0, :, 12:], wrong[1, :, :, 10:] = 9.0, 9.0
    wrong_aux[0, :, 6:], wrong_aux[1, :, :, 5:] = 9.0, 9.0
    result = Reconstruction(wrong, wrong_aux)
    assert reconstruction_loss(result, sharp, clean, torch.tensor([[6, 8], [8, 5]]), aux_weight=1.0) == 0
    assert reconstruction_loss(result, sharp, clean, torch.tensor([[7, 8], [8, 5]]), aux_weight=1.0) > 0


def test_an_exact_answer_is_a_finite_score() -> None:
    """A flat graphic that comes out exact counts 60 dB, so that a mean can be taken."""
    gray = np.full((64, 64, 3), 77, np.uint8)
    photos = [Photo("gray", gray, gray[:32, :32])]
    torch.manual_seed(0)
    photo_score, graphic_score = HeldOut(photos, photos, None, 8).measure(Swin2SR(tiny()).eval())
    assert photo_score.baseline == graphic_score.baseline == 60
    assert 0 < photo_score.psnr < 60


def test_drawn_images_survive_a_png() -> None:
    """They are plain RGB images."""
    file = BytesIO()
    image = sketch("interface", 0)
    Image.fromarray(image).save(file, "PNG")
    assert np.array_equal(np.asarray(Image.open(file)), image)

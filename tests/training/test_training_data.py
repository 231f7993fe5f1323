"""Training data: photos, their smaller copies, teachers, crops and batches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.degradations import compress, resize_bicubic
from model.network import Swin2SR
from model.training.crops import Crops
from model.training.pairs import Photo, Sample, cut, stack, turn
from model.training.photos import RESTORED_QUALITY, learned_from, read_photos, split, with_restored, with_smaller
from model.upscaler import Upscaler
from tests.tiny_training import draw, tiny


def test_crops_overlap(photos: list[Photo]) -> None:
    """Input and output of a sample are the same place, turned the same way."""
    generator = np.random.default_rng(0)
    photo = dataclasses.replace(photos[0], sharp=photos[0].reduced.repeat(2, 0).repeat(2, 1))
    for _ in range(20):
        sample = cut(photo, 16, None, generator)
        assert sample.degraded is sample.clean
        assert np.array_equal(sample.degraded.repeat(2, 0).repeat(2, 1), sample.sharp)


def test_eight_ways_to_turn_are_eight() -> None:
    """Flips and quarter turns of an image without symmetry all differ."""
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert len({turn(image, way).tobytes() for way in range(8)}) == 8


def test_compressed_crops_keep_their_clean_side() -> None:
    """JPEG reaches the input alone, and an offset crop is cut out of whole blocks."""
    sharp = draw(64, 64)
    photo = Photo("", sharp, sharp)
    generator = np.random.default_rng(1)
    samples = [cut(photo, 24, (10, 10), generator) for _ in range(40)]
    aligned = 0
    for sample in samples:
        assert np.array_equal(sample.clean, sample.sharp)
        assert sample.degraded.shape == (24, 24, 3)
        assert not np.array_equal(sample.degraded, sample.clean)
        kinds = (compress(sample.clean, 10, "4:2:0"), compress(sample.clean, 10, "4:4:4"))
        aligned += any(np.array_equal(sample.degraded, kind) for kind in kinds)
    assert 20 <= aligned < 40


def test_strong_compression_is_as_likely_as_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qualities fill their range to its ends, and half of them lie below the geometric mean of both."""
    levels: list[int] = []

    def compress(pixels: np.ndarray, level: int, _: str) -> np.ndarray:
        levels.append(level)
        return pixels

    monkeypatch.setattr("model.training.pairs.compress", compress)
    generator = np.random.default_rng(0)
    photo = Photo("", draw(24, 24), draw(24, 24))
    for _ in range(2000):
        cut(photo, 8, (10, 90), generator)
    assert (min(levels), max(levels)) == (10, 90)
    assert 0.45 < sum(level < 30 for level in levels) / len(levels) < 0.55


def test_batches_depend_on_seed_and_step_alone(photos: list[Photo]) -> None:
    """However many threads prepare them and wherever a run begins, batch n is batch n."""
    one = Crops(photos, crop=16, batch=2, quality=(10, 95), seed=3)
    many = Crops(photos, crop=16, batch=2, quality=(10, 95), seed=3, threads=3)
    expected = [one.batch(step) for step in range(6)]
    for first in (0, 2):
        for wanted, batch in zip(expected[first:], many.batches(first), strict=False):
            assert torch.equal(wanted.degraded, batch.degraded)
            assert torch.equal(wanted.sharp, batch.sharp)
    other = Crops(photos, crop=16, batch=2, seed=4).batch(0)
    assert not torch.equal(other.sharp, expected[0].sharp)


def test_batches_are_channels_first() -> None:
    """Stacked samples are (B, C, h, w) bytes."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    batch = stack([Sample(image, image, image, (2, 2))] * 2)
    assert batch.sharp.shape == (2, 3, 2, 2)
    assert batch.sharp[1, 2, 0, 1] == image[0, 1, 2]


def test_small_photos_are_passed_over_and_none_is_refused(folder: Path) -> None:
    """A photo without room for a crop is of no use; a folder of such photos is an error that says so."""
    Image.fromarray(draw(20, 200)).save(folder / "thin.png")
    assert [photo.name for photo in read_photos(folder, 2, 3, 16, 2)] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="400x400"):
        read_photos(folder, 2, 3, 200, 1)


def test_held_out_photos_are_not_trained_on() -> None:
    """Every fortieth photo is set aside, one at least; a single photo must do for both."""
    image = np.zeros((8, 8, 3), np.uint8)
    photos = [Photo(str(n), image, image) for n in range(100)]
    training, held_out = split(photos)
    assert {photo.name for photo in held_out} == {"20", "60"}
    assert len(training) == 98
    assert not {photo.name for photo in training} & {photo.name for photo in held_out}
    assert [len(part) for part in split(photos[:3])] == [2, 1]
    assert [len(part) for part in split(photos[:1])] == [1, 1]


def test_smaller_copies_are_reduced_as_their_photos_are(photos: list[Photo]) -> None:
    """A copy is the photo at another size with its own low-resolution version; one without room for a crop is none."""
    first, copy = with_smaller(photos[:1], [0.75, 0.25], 2, 16)
    assert first is photos[0]
    assert copy.sharp.shape == (48, 54, 3)
    assert np.array_equal(copy.sharp, resize_bicubic(first.sharp, 48, 54))
    assert np.array_equal(copy.reduced, resize_bicubic(copy.sharp, 24, 27))


def test_a_teacher_gives_the_wanted_images(photos: list[Photo], folder: Path) -> None:
    """Its images of the low-resolution versions replace the photos; one that doubles teaches x4 by two passes."""
    torch.manual_seed(0)
    teacher = Upscaler(Swin2SR(tiny()), device="cpu")
    taught = learned_from(teacher, photos)
    assert [photo.name for photo in taught] == [photo.name for photo in photos]
    for photo, original in zip(taught, photos, strict=True):
        assert np.array_equal(photo.reduced, original.reduced)
        assert np.array_equal(photo.sharp, teacher([original.reduced])[0])
    (quarter, *_) = read_photos(folder, 4, 3, 16, 1)
    (taught_twice,) = learned_from(teacher, [quarter])
    assert np.array_equal(taught_twice.sharp, teacher(teacher([quarter.reduced]))[0])


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (4, 2, "4 times and cannot"),
        (2, 3, "that enlarges 3"),
        (3, 4, "or by 2"),
        (2, 1, "a restoring variant has none"),
    ],
)
def test_a_teacher_of_another_scale_is_refused(folder: Path, teacher: int, student: int, message: str) -> None:
    """The message names both scales and what to use; a variant that only restores has no teacher."""
    upscaler = Upscaler(Swin2SR(tiny(teacher)), device="cpu")
    with pytest.raises(ValueError, match=message):
        learned_from(upscaler, read_photos(folder, student, 3, 8, 1))


def test_half_of_the_inputs_are_restored(photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each photo comes once more, its input compressed and restored; a seed draws the same qualities again."""
    torch.manual_seed(0)
    restorer = Upscaler(Swin2SR(tiny(1, None)), device="cpu")
    both = with_restored(photos, restorer, 7)
    assert both[: len(photos)] == photos
    qualities: list[tuple[int, int]] = []

    def keep(pixels: np.ndarray, quality: tuple[int, int], _: np.random.Generator) -> np.ndarray:
        qualities.append(quality)
        return pixels

    again = with_restored(photos, restorer, 7)[len(photos) :]
    monkeypatch.setattr("model.training.photos.compress_at_random", keep)
    only_restored = with_restored(photos, restorer, 7)[len(photos) :]
    assert qualities == [RESTORED_QUALITY] * len(photos)
    for photo, second, restored, plain in zip(both[len(photos) :], again, only_restored, photos, strict=True):
        assert np.array_equal(photo.reduced, second.reduced)
        assert np.array_equal(photo.sharp, plain.sharp)
        assert np.array_equal(restored.reduced, restorer([plain.reduced])[0])
        assert not np.array_equal(photo.reduced, restored.reduced)


def test_the_seed_draws_the_qualities_of_restored_inputs(photos: list[Photo]) -> None:
    """Another seed compresses at other qualities."""
    restorer = Upscaler(Swin2SR(tiny(1, None)), device="cpu")
    first, other = (with_restored(photos, restorer, seed)[len(photos) :] for seed in (7, 8))
    assert not all(np.array_equal(one.reduced, two.reduced) for one, two in zip(first, other, strict=True))

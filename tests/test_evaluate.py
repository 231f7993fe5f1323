"""PSNR, SSIM and the folders they are measured on."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.degradations import compress, crop_to_multiple, cubic, reduce, resize_bicubic
from model.evaluate import evaluate_folder, luma, main, measure, psnr, read_pairs, ssim, tabulate
from model.types import Pixels8
from model.upscaler import Upscaler


class Enlarger:
    """An upscaler that is nothing but bicubic enlargement."""

    def __init__(self, scale: int, channels: int = 3) -> None:
        self.scale = scale
        self.channels = channels

    def __call__(self, images: Sequence[Pixels8]) -> list[Pixels8]:
        return [resize_bicubic(i, i.shape[0] * self.scale, i.shape[1] * self.scale) for i in images]


def draw(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels8:
    """Draw a smooth picture with some noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / (5 + n)) + np.cos(columns / (7 + n)) for n in range(channels)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 4, waves.shape)
    return np.clip(128 + 50 * waves + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, size in (("a", (50, 41)), ("b", (33, 64))):
        Image.fromarray(draw(*size)).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.shared
@pytest.mark.parametrize("scale", [2, 4])
def test_reduction_is_matlabs_to_the_bit(shared: Path, scale: int) -> None:
    """The low-resolution images equal those that the authors made with MATLAB in every sample."""
    set5 = shared / "testsets" / "Set5"
    for file in sorted((set5 / "HR").glob("*.png")):
        sharp = np.asarray(Image.open(file).convert("RGB"))
        theirs = np.asarray(Image.open(set5 / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png").convert("RGB"))
        assert np.array_equal(reduce(crop_to_multiple(sharp, scale), scale), theirs), file.name


@pytest.mark.slow
@pytest.mark.shared
def test_bicubic_has_the_published_psnr_on_set5(shared: Path) -> None:
    """Bicubic enlargement has 33.66 dB on Set5 x2 and 28.42 on x4 in every published table."""
    set5 = shared / "testsets" / "Set5"
    assert evaluate_folder(Enlarger(2), set5).upscaled.psnr_y == pytest.approx(33.67, abs=0.03)
    assert evaluate_folder(Enlarger(4), set5).upscaled.psnr_y == pytest.approx(28.43, abs=0.03)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "testset", "quality", "field", "least"),
    [
        ("small-x2", "Set5", None, "psnr_y", 3.82),
        ("small-x4", "Set5", None, "psnr_y", 2.8),
        *(("small-jpeg", "Set5", quality, "psnr_rgb", gain) for quality, gain in ((10, 1.38), (20, 1.35), (40, 1.08))),
        *(("small-jpeg", "middles of Kodak", quality, "psnr_rgb", 0.8) for quality in (10, 20, 40)),
        *(
            pytest.param("small-jpeg", "Kodak", quality, "psnr_rgb", gain, marks=pytest.mark.long)
            for quality, gain in ((10, 1.25), (20, 1.35), (40, 1.25))
        ),
        *(
            ("small-compressed-x4", "Set5", quality, field, 0.4)
            for quality in (10, 30)
            for field in ("psnr_y", "psnr_rgb")
        ),
    ],
)
def test_embedded_variants_keep_their_promise(
    *, shared: Path, tmp_path: Path, name: str, testset: str, quality: int | None, field: str, least: float
) -> None:
    """Each gains so many dB over bicubic, or over the JPEG, and no image loses a tenth of one."""
    weights = Path(__file__).parents[1] / "model" / "weights" / f"{name}.safetensors"
    upscaler = Upscaler.from_pretrained(weights, device="cpu")
    folder = shared / "testsets" / testset
    if testset == "middles of Kodak":
        folder = tmp_path
        for photo in (shared / "testsets" / "Kodak").glob("*.png"):
            with Image.open(photo) as image:
                left, top = image.width // 2 - 128, image.height // 2 - 128
                image.crop((left, top, left + 256, top + 256)).save(folder / photo.name)
    evaluation = evaluate_folder(upscaler, folder, quality=quality)
    assert getattr(evaluation.upscaled, field) >= getattr(evaluation.baseline, field) + least
    for image in evaluation.images:
        assert getattr(image.upscaled, field) >= getattr(image.baseline, field) - 0.1, image.name


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_resizing_keeps_a_flat_image_flat(height: int, width: int, to_height: int, to_width: int, value: int) -> None:
    """Weights add up to one at every position, borders included, whatever the sizes."""
    flat = np.full((height, width, 3), value, np.uint8)
    assert np.array_equal(resize_bicubic(flat, to_height, to_width), np.full((to_height, to_width, 3), value, np.uint8))


def test_kernel_is_one_at_zero_and_zero_at_other_whole_distances() -> None:
    """An enlargement by one changes nothing because the kernel interpolates."""
    assert cubic(np.array([0.0, 1.0, -1.0, 2.0, -2.0, 3.0])) == pytest.approx([1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("pixels", "size"),
    [
        (np.zeros((4, 4), np.uint8), (2, 2)),
        (np.zeros((4, 4, 3), np.float32), (2, 2)),
        (np.zeros((0, 4, 3), np.uint8), (2, 2)),
        (np.zeros((4, 4, 3), np.uint8), (0, 2)),
    ],
)
def test_resizing_refuses_what_it_cannot_resize(pixels: Pixels8, size: tuple[int, int]) -> None:
    """Planes, floats, empty images and empty results are refused by name."""
    with pytest.raises(ValueError, match=r"expected|cannot resize"):
        resize_bicubic(pixels, *size)


def test_reduction_refuses_a_size_off_the_scale() -> None:
    """A side that the scale does not divide is the caller's to crop."""
    with pytest.raises(ValueError, match="not a multiple of 4"):
        reduce(draw(10, 8), 4)
    with pytest.raises(ValueError, match="too few"):
        crop_to_multiple(draw(3, 8), 4)
    assert crop_to_multiple(draw(11, 9), 4).shape == (8, 8, 3)


def test_jpeg_loses_more_at_lower_quality_and_with_reduced_chroma() -> None:
    """Quality and subsampling reach the encoder, for gray as well."""
    photo = draw(64, 48)
    fine, coarse = compress(photo, 90), compress(photo, 10)
    assert psnr(fine, photo) > psnr(coarse, photo) + 3
    assert psnr(compress(photo, 90, "4:4:4"), photo) > psnr(fine, photo)
    gray = draw(20, 31, channels=1)
    assert compress(gray, 50).shape == gray.shape
    for quality in (0, 101):
        with pytest.raises(ValueError, match="1 to 100"):
            compress(photo, quality)


def test_luma_of_black_and_white_is_studio_range() -> None:
    """BT.601: black is 16, white is 235, green weighs most; gray pixels are their own luma."""
    colours = np.array([[[0, 0, 0], [255, 255, 255], [0, 255, 0]]], np.uint8)
    assert luma(colours)[0, :, 0] == pytest.approx([16, 235, 144.553])
    assert luma(np.array([[[7]]], np.uint8)).item() == 7


def test_psnr_of_a_known_error() -> None:
    """An error of 255 everywhere is 0 dB, of one level 48.13 dB, and none at all infinite."""
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0)
    assert psnr(black, black + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(black, black) == math.inf


def test_ssim_agrees_with_its_definition() -> None:
    """One 11x11 window, computed from weighted moments as the paper writes them."""
    first, second = draw(11, 11, 1), draw(11, 11, 1, seed=9)
    weight = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    weight = np.outer(weight, weight)[:, :, None] / weight.sum() ** 2
    x, y = first.astype(float), second.astype(float)
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    var_x, var_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
    covariance = (weight * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 6.5025, 58.5225
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    assert ssim(first, second) == pytest.approx(expected)
    assert ssim(first, first) == pytest.approx(1)
    with pytest.raises(ValueError, match="11x11"):
        ssim(first[:10], second[:10])


def test_border_is_left_out() -> None:
    """Errors within the border do not count, errors one pixel further in do."""
    photo = draw(30, 30)
    wrong = photo.copy()
    wrong[:2] = 0
    assert measure(wrong, photo, 2).psnr_rgb == math.inf
    assert measure(wrong, photo, 1).psnr_rgb < 40
    with pytest.raises(ValueError, match="cannot be measured"):
        measure(wrong[1:], photo, 2)


def test_folder_of_photos_is_reduced_by_us(photos: Path) -> None:
    """References are cropped to the scale, and bicubic enlargement gains nothing over itself."""
    pairs = list(read_pairs(photos, 4, 3, None))
    assert [(pair.name, pair.reference.shape, pair.reduced.shape) for pair in pairs] == [
        ("a", (48, 40, 3), (12, 10, 3)),
        ("b", (32, 64, 3), (8, 16, 3)),
    ]
    evaluation = evaluate_folder(Enlarger(2), photos)
    assert [image.name for image in evaluation.images] == ["a", "b"]
    assert evaluation.upscaled == evaluation.baseline
    assert tabulate(evaluation).splitlines()[-1].endswith("| +0.00 | +0.00 |")


def test_restoration_is_measured_on_jpeg(photos: Path) -> None:
    """Scale 1 compares with the JPEG itself; quality 40 unless another is requested; gray stays gray."""
    plain = evaluate_folder(Enlarger(1), photos)
    assert plain == evaluate_folder(Enlarger(1), photos, quality=40)
    assert evaluate_folder(Enlarger(1), photos, quality=10).upscaled.psnr_rgb < plain.upscaled.psnr_rgb - 1
    gray = evaluate_folder(Enlarger(1, channels=1), photos, quality=40).upscaled
    assert gray.psnr_y == gray.psnr_rgb


def test_given_inputs_are_used_and_missed(photos: Path, tmp_path: Path) -> None:
    """A benchmark's own low-resolution images are read; one that is missing is named; so is an empty folder."""
    (tmp_path / "HR").mkdir()
    given_inputs = tmp_path / "LR_bicubic" / "X2"
    given_inputs.mkdir(parents=True)
    (photos / "a.png").rename(tmp_path / "HR" / "a.png")
    with pytest.raises(ValueError, match=r"ax2\.png"):
        list(read_pairs(tmp_path, 2, 3, None))
    Image.fromarray(np.full((25, 20, 3), 9, np.uint8)).save(given_inputs / "ax2.png")
    (pair,) = read_pairs(tmp_path, 2, 3, None)
    assert pair.reference.shape == (50, 40, 3)
    assert np.all(pair.reduced == 9)
    with pytest.raises(ValueError, match="no images"):
        evaluate_folder(Enlarger(2), given_inputs.parent)


def test_command_prints_the_table(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m model.evaluate`` measures an embedded variant."""
    weights = Path(__file__).parents[1] / "model" / "weights" / "small-x2.safetensors"
    assert main([str(weights), str(photos), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["image", "---", "a", "b", "mean"]


def png_without_its_end(photos: Path) -> bytes:
    """A PNG that ends too soon."""
    return (photos / "a.png").read_bytes()[:-400]


def png_with_wrong_bits(photos: Path) -> bytes:
    """A PNG whose header contradicts its checksum."""
    whole = bytearray((photos / "a.png").read_bytes())
    whole[20] ^= 255
    return bytes(whole)


@pytest.mark.parametrize("spoil", [png_without_its_end, png_with_wrong_bits, lambda _: b"nonsense", lambda _: b""])
def test_photo_that_cannot_be_read_is_named(
    photos: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], bytes]
) -> None:
    """A file that is broken, cut off, empty or no image at all is an error with its name, also of the command."""
    (photos / "broken.png").write_bytes(spoil(photos))
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image: ."):
        evaluate_folder(Enlarger(2), photos)
    weights = Path(__file__).parents[1] / "model" / "weights" / "small-x2.safetensors"
    assert main([str(weights), str(photos), "--device", "cpu"]) == 1
    assert "broken.png cannot be read" in capsys.readouterr().err

"""The odd files of ``../shared/images``, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from app import codec
from app.codec import exif

pytestmark = pytest.mark.shared

FILES = {  # name: planes, deep, alpha, profile, EXIF
    "0014.jpg": (3, False, False, False, False),
    "DJI-FC6310-16bit_709_v4_krita.png": (3, True, False, True, False),
    "Google-Pixel2XL-16bit_srgb8_v4_krita.png": (3, False, False, True, False),
    "Nikon-D300-12bit_2020_g1_dt.png": (3, True, False, True, True),
    "ccwn3p08.png": (3, False, False, False, False),
    "chip.png": (3, False, False, False, False),
    "cvo9xd_keong_macan_grayscale.png": (1, False, False, False, True),
    "exif2c08.png": (3, False, False, False, True),
    "g10n3p04.png": (3, False, False, False, False),
    "seoul.jpg": (3, False, False, False, False),
    "tmshre_riaphotographs_alpha.png": (3, False, True, True, False),
    "u76c0g_bliznaca_srgb8.png": (3, False, False, True, True),
    "vagabond.jpg": (3, False, False, False, False),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_as_what_it_is(shared, name):
    """Planes, depth, alpha, profile and EXIF; and in 8 bits, the pixels that Pillow reads."""
    planes, deep, alpha, profile, block = FILES[name]
    file = shared / "images" / name
    image = codec.decode(file.read_bytes(), codec.DecodeLimits())
    found = image.metadata
    assert (image.pixels.shape[2], image.deep, image.alpha is not None) == (planes, deep, alpha)
    assert (found.icc is not None, found.exif is not None) == (profile, block)
    assert image.notices == ()
    with Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert({1: "L", 3: "RGB"}[planes]))
    seen = image.pixels >> 8 if deep else image.pixels
    assert np.array_equal(seen.squeeze(), expected)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("format_", ["png", "tiff"])
def test_every_file_survives_lossless_formats_whole(shared, name, format_):
    """Pixels, alpha, profile and EXIF are the same after one way and back; so is the description of colours in PNG."""
    before = codec.decode((shared / "images" / name).read_bytes(), codec.DecodeLimits())
    after = codec.decode(codec.encode(before, codec.EncodeOptions(format_)).body, codec.DecodeLimits())
    assert np.array_equal(after.pixels, before.pixels)
    assert (after.alpha is None) == (before.alpha is None)
    assert before.alpha is None or np.array_equal(after.alpha, before.alpha)
    if before.metadata.icc is not None:
        assert after.metadata.icc == before.metadata.icc
    if format_ == "png":
        assert after.metadata.png_color == before.metadata.png_color
        assert after.metadata.texts == before.metadata.texts
        if before.metadata.exif is not None:
            size = (before.width, before.height)
            assert after.metadata.exif == exif.resize(before.metadata.exif, *size)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("format_", codec.WRITABLE)
@pytest.mark.parametrize("metadata", ["keep", "strip"])
def test_every_file_can_be_written_in_every_format(shared, name, format_, metadata):
    """The answer opens, has the size, and looks the same: 35 dB or more from what was flattened and reduced to it."""
    before = codec.decode((shared / "images" / name).read_bytes(), codec.DecodeLimits())
    options = codec.EncodeOptions(format_, quality=100, metadata=metadata)
    after = codec.decode(codec.encode(before, options).body, codec.DecodeLimits())
    stripped = codec.decode(
        codec.encode(before, codec.EncodeOptions("png", metadata=metadata)).body, codec.DecodeLimits()
    )
    assert (after.width, after.height) == (before.width, before.height)
    wanted = eight_bits_on_white(stripped)
    seen = eight_bits_on_white(after)
    error = np.mean((wanted - seen) ** 2)
    assert error == 0 or 10 * np.log10(255**2 / error) > 35


def eight_bits_on_white(image):
    """Three planes in 0 to 255."""
    scale = 257 if image.deep else 1
    pixels = image.pixels / scale
    if image.alpha is not None:
        cover = image.alpha[:, :, None] / (255 * scale)
        pixels = pixels * cover + 255 * (1 - cover)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

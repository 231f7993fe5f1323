"""JPEG XL, with the extra: pixels, depth, alpha, profile, EXIF and XMP; and without it, the way out."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from app import codec
from tests.pictures import LIMITS, ORIENTED_EXIF, adobe_rgb, image, photograph, samples, written

pylibjxl = pytest.importorskip("pylibjxl", reason="the extra [jxl] is not installed")


@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_jxl_keeps_pixels_and_packets(alpha):
    """Quality 100 keeps every sample, the profile, EXIF and XMP."""
    block = b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x04\0\0\0GAS\0\0\0\0\0"
    metadata = codec.Metadata(icc=adobe_rgb(), exif=block, xmp=b"<x/>")
    before = image(alpha=alpha, metadata=metadata)
    after = codec.decode(written(before, "jxl", quality=100), LIMITS)
    assert np.array_equal(after.pixels, before.pixels)
    assert (after.alpha is None) == (not alpha)
    assert after.alpha is None or np.array_equal(after.alpha, before.alpha)
    assert (after.metadata.icc, after.metadata.exif, after.metadata.xmp) == (adobe_rgb(), metadata.exif, b"<x/>")


def test_lossy_jxl_is_near_and_smaller():
    """Quality bounds size and error."""
    picture = codec.Image(np.asarray(photograph().resize((256, 256))))
    high, low = (written(picture, "jxl", quality=quality) for quality in (95, 40))
    assert len(low) < len(high) < len(written(picture, "jxl", quality=100))
    assert np.abs(codec.decode(high, LIMITS).pixels.astype(int) - picture.pixels).mean() < 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_jxl_of_sixteen_bits_is_read_whole(channels):
    """Nothing is rounded to 8 bits."""
    planes = samples(channels=channels, dtype=np.uint16)
    body = imagecodecs.jpegxl_encode(planes.squeeze(), lossless=True)
    header = codec.read_header(body, LIMITS)
    decoded = codec.decode(body, LIMITS)
    colors = channels - (channels in (2, 4))
    assert (header.bits, header.channels, header.alpha) == (16, colors, channels != colors)
    assert np.array_equal(decoded.pixels, planes[:, :, :colors])
    assert decoded.alpha is None if channels == colors else np.array_equal(decoded.alpha, planes[:, :, colors])


def test_a_cut_jxl_is_refused_wherever_it_ends():
    """Never the part that came."""
    body = written(image(), "jxl", quality=60)
    for end in (20, len(body) // 3, len(body) // 2, len(body) - 30):
        with pytest.raises(codec.BrokenImage):
            codec.decode(body[:end], LIMITS)


def test_the_orientation_of_a_jxl_is_not_applied_twice():
    """EXIF's orientation does not count in JPEG XL, and is not in the answer."""
    body = pylibjxl.encode(samples(channels=3), lossless=True, exif=ORIENTED_EXIF)
    decoded = codec.decode(body, LIMITS)
    assert decoded.pixels.shape == (40, 56, 3)
    assert codec.read_header(written(decoded), LIMITS).orientation == 1


def test_without_the_extra_jxl_is_refused_with_the_way_out(monkeypatch):
    """Reading is unsupported, writing is an impossible option, and the advice does not name the format."""
    body = written(image(), "jxl")
    monkeypatch.setattr("app.codec.formats.find_spec", lambda _name: None)
    with pytest.raises(codec.UnsupportedImage, match=r"\[jxl\]"):
        codec.decode(body, LIMITS)
    with pytest.raises(codec.InvalidEncodeOption, match=r"\[jxl\]"):
        codec.encode(image(), codec.EncodeOptions("jxl"))
    with pytest.raises(codec.UnsupportedImage) as caught:
        codec.decode(b"hello", LIMITS)
    assert "jxl" not in caught.value.facts["supported"]

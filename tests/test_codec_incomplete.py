"""Files in which pixel data is missing are refused in every format; files that miss nothing but an end are read."""

from __future__ import annotations

import re
import struct
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from app import codec
from tests.boxes import coded, container, grid, photo
from tests.pictures import LIMITS, photograph, saved

JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "4:4:4": {"subsampling": 0, "quality": 95},
}
EOI = b"\xff\xd9"
ARITHMETIC = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTgy"
    "PC4zNDL/yQALCAAQABABAREA/8wABgAQEAX/2gAIAQEAAD8A0qRxJj5eaqdw6WjhJPtH9k/76NOdb2ZfmvIb2yDrjzf3NNBkv/UyhWH0qFD4fP/Z"
)
"""A gray picture of 16x16, coded arithmetically by libjpeg-turbo's cjpeg."""


def jpeg(**options):
    """A JPEG whose corner is not gray, which is what libjpeg shows where data is missing."""
    return saved(photograph().resize((200, 144)), "JPEG", **options)


@pytest.mark.parametrize("kind", JPEGS)
def test_a_complete_jpeg_without_its_end_marker_is_read(kind):
    """EOI says nothing about pixels, and half of it is no other data."""
    body = jpeg(**JPEGS[kind])
    for cut in (1, 2):
        decoded = codec.decode(body[:-cut], LIMITS)
        assert np.array_equal(decoded.pixels, codec.decode(body, LIMITS).pixels)
        assert decoded.notices == ()


def test_an_arithmetic_jpeg_is_complete_only_with_its_end_marker():
    """Such a scan lacks its last zero bytes, so a cut one looks like a complete one."""
    whole = codec.decode(ARITHMETIC, LIMITS)
    assert whole.pixels.std() > 20
    for end in range(3, len(ARITHMETIC)):
        with pytest.raises(codec.BrokenImage):
            codec.decode(ARITHMETIC[:end], LIMITS)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("end", [0.3, 0.7, 0.99, -3, -4])
def test_a_cut_jpeg_is_refused_with_and_without_an_end_marker(kind, end):
    """From a single missing byte on; an end marker behind the cut, which some programs write, changes nothing."""
    body = jpeg(**JPEGS[kind])
    cut = body[: int(len(body) * end)] if end > 0 else body[:end]
    for broken in (cut, cut + EOI):
        with pytest.raises(codec.BrokenImage, match="truncated"):
            codec.decode(broken, LIMITS)


def test_a_progressive_jpeg_with_missing_scans_is_refused():
    """However many of its scans it has, but all; libjpeg shows such files blurred, and says nothing."""
    body = jpeg(progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", body)]
    assert len(scans) > 5
    for at in scans[1:]:
        with pytest.raises(codec.BrokenImage):
            codec.decode(body[:at] + EOI, LIMITS)


def test_a_jpeg_that_lacks_a_component_is_refused():
    """A sequential file whose components come in scans of their own, the last of which is missing."""
    gray = saved(photograph("L").resize((64, 64)), "JPEG")
    frame = gray.index(b"\xff\xc0")
    colors = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, 64, 64, 3) + bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    body = gray[:frame] + colors + gray[frame + 13 :]
    scan = body[body.index(b"\xff\xda") : -2]
    others = b"".join(scan[:5] + bytes((number,)) + scan[6:] for number in (2, 3))
    assert codec.decode(body[:-2] + others + EOI, LIMITS).pixels.shape == (64, 64, 3)
    with pytest.raises(codec.BrokenImage):
        codec.decode(body, LIMITS)


def test_a_jpeg_that_lacks_a_restart_interval_is_refused():
    """Pixels in its middle are missing, though its end is there."""
    body = jpeg(restart_marker_rows=1)
    third, fourth = body.index(b"\xff\xd2"), body.index(b"\xff\xd3")
    with pytest.raises(codec.BrokenImage):
        codec.decode(body[:third] + body[fourth:], LIMITS)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_promise_27_a_cut_grid_is_refused_wherever_it_ends(kind):
    """Tiles that are missing are never shown as one colour."""
    body = grid(photo(256, 192), 3, 4, kind)
    whole = codec.decode(body, LIMITS)
    assert np.abs(whole.pixels.astype(int) - np.asarray(photo(256, 192))).mean() < 8
    for end in (0.99, 0.9, 0.6, 0.3, 0.15):
        with pytest.raises(codec.BrokenImage):
            codec.decode(body[: int(len(body) * end)], LIMITS)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_file_cut_behind_its_picture_is_read(kind):
    """A thumbnail that is missing is no pixel that is missing."""
    thumbnail = coded(photo(64, 64), kind) | {"references": {"thmb": [1]}}
    body = container([coded(photo(), kind), thumbnail], b"avif" if kind == "AVIF" else b"heic")
    whole = codec.decode(body, LIMITS)
    if kind == "AVIF":  # libheif checks more than the picture
        assert np.array_equal(codec.decode(body[:-9], LIMITS).pixels, whole.pixels)
    with pytest.raises(codec.BrokenImage):
        codec.decode(body[: -len(thumbnail["data"]) - 9], LIMITS)


def test_a_cut_alpha_plane_is_refused():
    """Of an AVIF whose picture itself is whole."""
    body = saved(Image.merge("RGBA", (*photo().split(), photo().split()[0])), "AVIF")
    with pytest.raises(codec.BrokenImage):
        codec.decode(body[:-5], LIMITS)

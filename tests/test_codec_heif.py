"""AVIF and HEIF: depth, tiles, crops, auxiliary pictures."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pi_heif
import pillow_heif
import pytest
from PIL import Image

from app import codec
from tests.boxes import box, coded, container, photo
from tests.pictures import LIMITS, adobe_rgb, photograph

DEPTH = {"AVIF": b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth", "HEIF": b"urn:mpeg:hevc:2015:auxid:2"}
GAIN_MAP = b"urn:com:apple:photo:2020:aux:hdrgainmap"


def heif_of(picture, **options):
    """A HEIF of one picture."""
    stream = BytesIO()
    picture.save(stream, **options)
    return stream.getvalue()


def test_heif_is_read_with_its_profile_by_one_thread():
    """Lossless colours are unchanged; ``same`` is a PNG; a file that ends too early is broken."""
    lossless = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    body = heif_of(pillow_heif.from_pillow(photograph()), icc_profile=adobe_rgb(), **lossless)
    decoded = codec.decode(body, LIMITS)
    assert np.array_equal(decoded.pixels, np.asarray(photograph()))
    assert decoded.metadata.icc == adobe_rgb()
    assert codec.encode(decoded, codec.EncodeOptions("same")).media_type == "image/png"
    assert pi_heif.options.DECODE_THREADS == 1
    with pytest.raises(codec.BrokenImage):
        codec.decode(body[:-50], LIMITS)


def test_heif_of_ten_bits_is_read_as_sixteen_and_white_is_white():
    """Not at the top of sixteen with zeros below, as the library gives it."""
    white = np.full((40, 56, 3), 65535, np.uint16)
    picture = pillow_heif.from_bytes(mode="RGB;16", size=(56, 40), data=white.tobytes())
    body = heif_of(picture, quality=-1, chroma=444, matrix_coefficients=0)
    assert codec.read_header(body, LIMITS).bits in (10, 12)
    decoded = codec.decode(body, LIMITS)
    assert decoded.deep
    assert (decoded.pixels == 65535).all()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_clean_aperture_is_what_is_shown(kind):
    """A crop in the container, off the middle, is applied; the header states its size."""
    picture = Image.new("RGB", (64, 64), "blue")
    picture.paste("red", (16, 8, 48, 32))
    # Width 32, height 24; the centre lies at (31.5, 19.5) - (31.5, 31.5) from the picture's.
    clap = struct.pack(">IIIIiIiI", 32, 1, 24, 1, 0, 1, -12, 1)
    each = coded(picture, kind)
    each["properties"] = [*each["properties"], (b"clap", clap)]
    body = container([each], b"avif" if kind == "AVIF" else b"heic")
    header = codec.read_header(body, LIMITS)
    assert (header.width, header.height) == (32, 24)
    pixels = codec.decode(body, LIMITS).pixels
    assert pixels.shape == (24, 32, 3)
    assert pixels[3:-3, 3:-3, 0].min() > 150
    assert pixels[3:-3, 3:-3, 2].max() < 100


def aperture(width, height, right=0, below=0):
    """A clean aperture whose middle lies off the picture's, in pixels."""
    return b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 1, below, 1)


def turned(number):
    return b"irot", bytes((number,))


def mirrored(columns):
    return b"imir", bytes((columns,))


def cut(pixels, width, height, right=0, below=0):
    left, top = (pixels.shape[1] - width) // 2 + right, (pixels.shape[0] - height) // 2 + below
    return pixels[top : top + height, left : left + width]


SHOWN = {
    "small": ([aperture(100, 80, -20, 10)], lambda whole: cut(whole, 100, 80, -20, 10)),
    "turned": ([aperture(100, 80, -20, 10), turned(1)], lambda whole: np.rot90(cut(whole, 100, 80, -20, 10))),
    "turned before": ([turned(3), aperture(80, 100, 6, -8)], lambda whole: cut(np.rot90(whole, 3), 80, 100, 6, -8)),
    "rows": ([aperture(100, 80, 4, 10), mirrored(0)], lambda whole: cut(whole, 100, 80, 4, 10)[::-1]),
    "columns": (
        [aperture(100, 80, -20, 10), turned(2), mirrored(1)],
        lambda whole: np.rot90(cut(whole, 100, 80, -20, 10), 2)[:, ::-1],
    ),
    "invalid": ([aperture(1000, 80)], lambda whole: whole),
    "no aperture": ([turned(1), mirrored(0)], lambda whole: np.rot90(whole)[::-1]),
}


@pytest.mark.parametrize("case", SHOWN)
def test_the_transformations_of_a_heif_are_applied_in_their_order(case):
    """Crops far smaller than the picture, which libheif takes for its limit of memory; turned and mirrored."""
    properties, expected = SHOWN[case]
    each = coded(photo(256, 192), "HEIF")
    whole = codec.decode(container([each], b"heic"), LIMITS).pixels
    body = container([each | {"properties": [*each["properties"], *properties]}], b"heic")
    header = codec.read_header(body, LIMITS)
    assert np.array_equal(codec.decode(body, LIMITS, header).pixels, expected(whole))
    assert (header.height, header.width) == expected(whole).shape[:2]


@pytest.mark.parametrize("kind", [b"jpeg", b"avc1", b"unci", b"vvc1"])
def test_a_heif_of_another_coding_is_refused_by_name(kind):
    """It is valid, and unsupported."""
    body = container([coded(photo(64, 64), "HEIF") | {"kind": kind}], b"mif1")
    with pytest.raises(codec.UnsupportedImage, match=kind.decode()):
        codec.decode(body, LIMITS)


def test_an_image_sequence_without_a_picture_is_refused_by_name():
    """It has tracks and no items."""
    body = box(b"ftyp", b"msf1", bytes(4), b"hevc", b"msf1") + box(b"moov", box(b"mvhd", bytes(100)))
    with pytest.raises(codec.UnsupportedImage, match="sequence"):
        codec.decode(body, LIMITS)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
@pytest.mark.parametrize("plane", ["depth", "gain map"])
def test_maps_that_are_left_out_are_named(kind, plane):
    """Depth and gain maps of either format, as JPEG's are."""
    urn = DEPTH[kind] if plane == "depth" else GAIN_MAP
    auxiliary = coded(photo(64, 64), kind) | {"references": {"auxl": [1]}}
    auxiliary["properties"] = [*auxiliary["properties"], (b"auxC", bytes(4) + urn + b"\0")]
    body = container([coded(photo(), kind), auxiliary], b"avif" if kind == "AVIF" else b"heic")
    decoded = codec.decode(body, LIMITS)
    assert decoded.alpha is None
    assert [notice for notice in decoded.notices if plane in notice]
    assert codec.encode(decoded, codec.EncodeOptions()).notices == decoded.notices


@pytest.mark.parametrize("start", range(8, 300, 7))
def test_boxes_of_any_content_are_refused_or_read(start):
    """Bytes of the boxes changed one by one never crash the parser."""
    body = bytearray(container([coded(photo(64, 64))]))
    for value in (0, 1, 127, 255):
        changed = bytes(body[:start]) + bytes((value,)) + bytes(body[start + 1 :])
        try:
            codec.decode(changed, LIMITS)
        except codec.CodecError:
            continue

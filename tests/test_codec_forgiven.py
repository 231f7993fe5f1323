"""What browsers forgive is forgiven: stray bytes, cut ends, wrong checksums, broken EXIF."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from app import codec
from app.codec.png_chunks import SIGNATURE, assemble, read_chunks
from tests.pictures import LIMITS, adobe_rgb, chunk, image, photograph, saved, written

TURN = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
MAKER = struct.pack("<HHI4s", 0x10F, 2, 4, b"Cam\0")
HEAD = b"Exif\0\0II*\0\x08\0\0\0"


def segment(data, marker=0xE1):
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


@pytest.mark.parametrize("junk", [b"junk", b"\xff\xe5\0\1", b"\xff\xe0\0\4JF", b"\xff\xff\xff", b"\0", b"\xff\0"])
def test_stray_bytes_between_the_segments_of_a_jpeg_are_skipped(junk):
    """And so are segments whose length is too short to be one."""
    body = saved(photograph(), "JPEG")
    at = 4 + int.from_bytes(body[4:6])
    assert np.array_equal(codec.decode(body[:at] + junk + body[at:], LIMITS).pixels, codec.decode(body, LIMITS).pixels)


@pytest.mark.parametrize(
    "blocks",
    [
        [HEAD + b"\x01\0" + TURN],
        [HEAD + b"\x02\0" + TURN + MAKER[:7]],
        [HEAD + b"\x09\0" + TURN + MAKER],
        [b"Exif\0\0garbage", HEAD + b"\x01\0" + TURN + bytes(4)],
        [b"Exif\0\0", HEAD + b"\x01\0" + TURN + bytes(4)],
        [HEAD + b"\x01\0" + TURN + bytes(4), b"Exif\0\0garbage"],
    ],
)
def test_orientation_counts_wherever_it_can_be_read(blocks):
    """A directory without its end or with its last entries cut, and broken blocks before and behind a good one."""
    body = saved(photograph(), "JPEG")
    body = body[:2] + b"".join(segment(block) for block in blocks) + body[2:]
    assert codec.read_header(body, LIMITS).orientation == 6
    assert codec.decode(body, LIMITS).pixels.shape == (56, 40, 3)


def test_what_a_cut_directory_still_holds_is_kept():
    """The maker before the cut is in the answer, and the orientation is not."""
    body = saved(photograph(), "JPEG")
    block = HEAD + b"\x03\0" + TURN + MAKER + MAKER[:5]
    decoded = codec.decode(body[:2] + segment(block) + body[2:], LIMITS)
    after = codec.decode(written(decoded, "jpeg"), LIMITS)
    assert after.pixels.shape == (56, 40, 3)
    assert MAKER in after.metadata.exif
    assert TURN not in after.metadata.exif


PNGS = {
    "colors": lambda: written(image()),
    "deep": lambda: written(image(dtype=np.uint16, alpha=True)),
    "palette": lambda: saved(photograph().quantize(32), "PNG"),
    "bits": lambda: saved(photograph("1"), "PNG"),
}


def with_pixels(body, change):
    """A PNG whose compressed pixel data was changed."""
    chunks, _ = read_chunks(body)
    packed = b"".join(bytes(content) for kind, content in chunks if kind == b"IDAT")
    others = [each for each in chunks if each[0] not in (b"IDAT", b"IEND")]
    return assemble([*others, (b"IDAT", change(packed)), (b"IEND", b"")])


@pytest.mark.parametrize("kind", PNGS)
def test_a_png_is_read_without_its_end_and_without_checksums_of_its_pixels(kind):
    """A cut IEND, none at all, an adler32 that is wrong or missing: all pixels are there."""
    body = PNGS[kind]()
    whole = codec.decode(body, LIMITS)
    for broken in (
        *(body[:-count] for count in (1, 2, 4, 8, 11, 12)),
        with_pixels(body, lambda packed: packed[:-4] + bytes(4)),
        with_pixels(body, lambda packed: packed[:-4]),
    ):
        decoded = codec.decode(broken, LIMITS)
        assert np.array_equal(decoded.pixels, whole.pixels)
        assert decoded.alpha is None or np.array_equal(decoded.alpha, whole.alpha)


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("missing", [1, 300])
def test_a_png_that_lacks_pixels_is_refused_though_its_chunks_are_whole(kind, missing):
    """A byte of the last row, and whole rows at the end, which Pillow would show as black."""
    body = with_pixels(PNGS[kind](), lambda packed: zlib.compress(zlib.decompress(packed)[:-missing]))
    with pytest.raises(codec.BrokenImage, match="missing"):
        codec.decode(body, LIMITS)


def test_an_ancillary_chunk_with_a_wrong_checksum_is_left_out_with_a_notice():
    """As in Chromium: the picture is shown without its profile."""
    body = written(image())
    profile = bytearray(chunk(b"iCCP", b"x\0\0" + zlib.compress(adobe_rgb())))
    profile[-1] ^= 1
    decoded = codec.decode(body[:33] + bytes(profile) + body[33:], LIMITS)
    assert decoded.metadata.icc is None
    assert decoded.notices == ("chunks with a wrong checksum were left out: iCCP",)


def test_apples_variant_of_png_is_named():
    """It is valid in its way, and unsupported."""
    body = written(image())
    with pytest.raises(codec.UnsupportedImage, match="CgBI"):
        codec.decode(SIGNATURE + chunk(b"CgBI", b"\x50\0\x20\2") + body[8:], LIMITS)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_gif_without_its_trailer_is_read(cut):
    """All pixels are there; with a byte of them less it is refused."""
    body = saved(photograph().quantize(64), "GIF")
    assert np.array_equal(codec.decode(body[:-cut], LIMITS).pixels, codec.decode(body, LIMITS).pixels)
    with pytest.raises(codec.BrokenImage):
        codec.decode(body[:-6], LIMITS)


@pytest.mark.parametrize("before", [True, False])
def test_stray_bytes_between_the_blocks_of_a_gif_are_forgiven(before):
    """Skipped before the picture, and the end of the file behind it."""
    body = saved(photograph().quantize(64), "GIF")
    at = body.index(b"\x2c\0\0\0\0", 13) if before else len(body) - 1
    read = codec.decode(body[:at] + b"\0\1\2" + body[at:], LIMITS)
    assert np.array_equal(read.pixels, codec.decode(body, LIMITS).pixels)


def test_metadata_that_may_be_missing_behind_the_pixels_of_a_png_is_named():
    """The file ends where a text begins."""
    body = written(image())
    cut = body[:-12] + chunk(b"tEXt", b"Title\0picture")[:-6]
    for end in (0, 4, 12):
        notices = codec.decode(cut[: len(body) - 12 + end], LIMITS).notices
        assert notices == ("the file has no end: metadata behind its pixels may be missing",)


def gif_on_screen(width, height, left, top):
    """A red frame of 40x30 somewhere on a larger screen."""
    body = bytearray(saved(photograph().quantize(8).resize((40, 30)), "GIF"))
    body[6:10] = struct.pack("<HH", width, height)
    at = body.index(b"\x2c\0\0\0\0", 13)
    body[at + 1 : at + 5] = struct.pack("<HH", left, top)
    return bytes(body)


def test_a_gif_is_transparent_where_its_frame_does_not_cover_the_screen():
    """As in every browser; JPEG shows white there."""
    body = gif_on_screen(96, 64, 20, 10)
    header = codec.read_header(body, LIMITS)
    decoded = codec.decode(body, LIMITS, header)
    assert header.alpha
    expected = np.zeros((64, 96), np.uint8)
    expected[10:40, 20:60] = 255
    assert np.array_equal(decoded.alpha, expected)
    flat = codec.decode(written(decoded, "jpeg"), LIMITS)
    assert flat.pixels[:5, :5].min() > 240

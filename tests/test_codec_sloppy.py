"""Files with small mistakes that Pillow and browsers read: they are read as they are meant."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app import codec
from tests.pictures import LIMITS, photograph, saved

PHOTO = photograph()
PIXELS = np.asarray(PHOTO)


def decoded(body):
    return codec.decode(body, LIMITS)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(body, kind, content, before):
    """A PNG with one more chunk."""
    at = body.index(before) - 4
    return body[:at] + chunk(kind, content) + body[at:]


@pytest.mark.parametrize("frames", [0, 2**31, 2**31 + 1, 2**32 - 1])
def test_an_animation_without_a_valid_number_of_frames_is_a_still_picture(frames):
    """The pixels of IDAT are the picture."""
    body = with_chunk(saved(PHOTO, "PNG"), b"acTL", struct.pack(">II", frames, 0), b"IDAT")
    assert np.array_equal(decoded(body).pixels, PIXELS)


def test_an_animation_that_begins_behind_the_pixels_is_a_still_picture():
    """As the specification and browsers have it."""
    body = with_chunk(saved(PHOTO, "PNG"), b"acTL", struct.pack(">II", 3, 0), b"IEND")
    assert np.array_equal(decoded(body).pixels, PIXELS)


def test_an_animation_is_refused():
    """The two cases above do not let a real one through."""
    body = with_chunk(saved(PHOTO, "PNG"), b"acTL", struct.pack(">II", 3, 0), b"IDAT")
    with pytest.raises(codec.UnsupportedImage, match="3 frames"):
        decoded(body)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_an_empty_text_is_no_text(kind):
    """Nothing is lost when it is left out."""
    assert decoded(with_chunk(saved(PHOTO, "PNG"), kind, b"", b"IDAT")).metadata.texts == ()


@pytest.mark.parametrize("colors", [256, 16])
def test_a_bmp_whose_offset_leaves_out_the_palette_is_read(colors):
    """The pixels begin behind the palette."""
    picture = PHOTO.quantize(colors)
    file = BytesIO()
    picture.save(file, "BMP")
    body = bytearray(file.getvalue())
    wanted = np.asarray(picture.convert("RGB"))
    assert np.array_equal(decoded(bytes(body)).pixels, wanted)
    assert struct.unpack_from("<I", body, 10)[0] > 54
    for offset in (0, 54):
        struct.pack_into("<I", body, 10, offset)
        assert np.array_equal(decoded(bytes(body)).pixels, wanted)


def tiff_of(entries, data):
    """A little-endian TIFF: data first, then values, then the directory."""
    body = bytearray(b"II*\0\0\0\0\0" + data)
    fields = []
    for tag, kind, values in sorted(entries):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack("<I", len(body))
            body += packed
        else:
            place = packed.ljust(4, b"\0")
        fields.append(struct.pack("<HHI", tag, kind, len(values)) + place)
    struct.pack_into("<I", body, 4, len(body))
    return bytes(body + struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4))


def rgb_entries(**changed):
    height, width, _ = PIXELS.shape
    entries = {256: (width,), 257: (height,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), 278: (height,)}
    entries |= {int(tag[1:]): values for tag, values in changed.items()}
    shorts = [(tag, 3, values) for tag, values in entries.items() if values is not None]
    return [*shorts, (273, 4, (8,)), (279, 4, (PIXELS.nbytes,))]


@pytest.mark.parametrize(
    "changed",
    [{}, {"_258": (8, 8, 8, 1)}, {"_258": (8, 8, 8, 16, 32)}],
    ids=["plain", "a depth too many", "two depths too many"],
)
def test_a_tiff_with_depths_for_more_samples_is_read(changed):
    """The first depths count."""
    body = tiff_of(rgb_entries(**changed), PIXELS.tobytes())
    assert np.array_equal(decoded(body).pixels, PIXELS)


def test_a_tiff_of_several_depths_is_refused():
    """Where samples that count differ."""
    with pytest.raises(codec.UnsupportedImage, match="several depths"):
        decoded(tiff_of(rgb_entries(_258=(8, 8, 16)), PIXELS.tobytes()))


def test_an_old_jpeg_tiff_without_a_number_of_samples_is_read():
    """The JPEG stream stands whole in the strip, as fax servers write it."""
    jpeg = saved(PHOTO, "JPEG", quality=90)
    entries = [entry for entry in rgb_entries(_259=(6,), _262=(6,), _277=None) if entry[0] != 279]
    body = tiff_of([*entries, (279, 4, (len(jpeg),)), (513, 4, (8,)), (514, 4, (len(jpeg),))], jpeg)
    wanted = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB"), np.int16)
    assert np.abs(decoded(body).pixels - wanted).max() <= 4  # another upsampling of chroma


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
@pytest.mark.parametrize("place", ["JPEG", "TIFF"])
def test_an_orientation_of_any_type_of_whole_number_counts(kind, place):
    """Cameras and editors write it signed and with 32 bits too."""
    value = struct.pack("<" + {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}[kind], 6)
    entry = struct.pack("<HHI", 0x0112, kind, 1) + value.ljust(4, b"\0")
    if place == "JPEG":
        body = saved(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4))
    else:
        body = bytearray(tiff_of([*rgb_entries(), (0x0112, 3, (1,))], PIXELS.tobytes()))
        at = body.index(struct.pack("<HHI", 0x0112, 3, 1))
        body[at : at + 12] = entry
        body = bytes(body)
    assert decoded(body).pixels.shape[:2] == PIXELS.shape[1::-1]


def test_a_negative_orientation_is_none():
    """The picture stays as it is stored."""
    entry = struct.pack("<HHIi", 0x0112, 9, 1, -6)
    body = saved(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4))
    assert decoded(body).pixels.shape[:2] == PIXELS.shape[:2]


@pytest.mark.parametrize("format_", list(codec.WRITABLE))
def test_a_single_gray_pixel_is_written(format_):
    """Cut out of three equal channels, as decoders do."""
    pixel = np.full((1, 1, 3), 77, np.uint8)[:, :, :1]
    body = codec.encode(codec.Image(pixel), codec.EncodeOptions(format=format_)).body
    assert np.abs(decoded(body).pixels.astype(int) - 77).max() <= 3

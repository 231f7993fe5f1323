"""Files that are broken, hostile, too large, or not images at all."""

from __future__ import annotations

import gc
import random
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import codec
from app.codec.errors import BrokenImage, InvalidEncodeOption, TooLarge, TooLargeForFormat, UnsupportedImage
from tests.pictures import (
    LIMITS,
    ORIENTED_EXIF,
    adobe_rgb,
    chunk,
    image,
    photograph,
    png_with,
    samples,
    saved,
    tiff,
    written,
)

THREADS = Path("/proc/self/task")

FILES = {
    "png": lambda: written(image()),
    "png palette": lambda: saved(photograph().quantize(32), "PNG"),
    "png bits": lambda: saved(photograph("1"), "PNG"),
    "png alpha": lambda: written(image(1, alpha=True)),
    "png deep": lambda: written(image(dtype=np.uint16)),
    "png deep gray": lambda: written(image(1, np.uint16)),
    "png deep alpha": lambda: written(image(dtype=np.uint16, alpha=True)),
    "png deep gray alpha": lambda: written(image(1, np.uint16, alpha=True)),
    "jpeg": lambda: saved(photograph(), "JPEG"),
    "jpeg progressive": lambda: saved(photograph(), "JPEG", progressive=True),
    "jpeg restarts": lambda: saved(photograph(), "JPEG", restart_marker_rows=1),
    "jpeg cmyk": lambda: saved(photograph("CMYK"), "JPEG"),
    "webp": lambda: saved(photograph(), "WEBP"),
    "webp lossless": lambda: saved(photograph("RGBA"), "WEBP", lossless=True, exif=ORIENTED_EXIF),
    "tiff": lambda: saved(photograph(), "TIFF"),
    "tiff lzw": lambda: saved(photograph("RGBA"), "TIFF", compression="tiff_lzw"),
    "tiff fax": lambda: saved(photograph("1"), "TIFF", compression="group4"),
    "tiff deep": lambda: written(image(dtype=np.uint16), "tiff"),
    "tiff deep tiles": lambda: tiff(samples(channels=3, dtype=np.uint16), compression=5, tile=16, separate=True),
    "tiff big": lambda: tiff(samples(channels=3), compression=8, big=True),
    "avif": lambda: saved(photograph(), "AVIF"),
    "avif alpha": lambda: saved(photograph("RGBA"), "AVIF"),
    "bmp": lambda: saved(photograph(), "BMP"),
    "gif": lambda: saved(photograph(), "GIF"),
}


ENDS = {"tiff": 4, "png": 24}
"""Bytes at the end of a file that say nothing about pixels: a TIFF's offset of a next directory, a PNG's IEND, and the
checksums before it."""


@pytest.mark.parametrize("kind", FILES)
def test_a_truncated_file_is_refused_wherever_it_ends(kind):
    """No end but the last bytes, which hold no pixels, gives an image; none gives a wrong one or another error."""
    body = FILES[kind]()
    whole = codec.decode(body, LIMITS)
    ends = {
        *range(min(len(body), 200)),
        *range(0, len(body), max(1, len(body) // 150)),
        *range(len(body) - 40, len(body)),
    }
    for end in sorted(ends):
        try:
            decoded = codec.decode(body[:end], LIMITS)
        except BrokenImage:
            continue
        except UnsupportedImage:
            assert end < 32, "a file is known by its first bytes"
        else:
            assert end >= len(body) - ENDS.get(kind.partition(" ")[0], 2) * (2 if kind == "tiff big" else 1)
            assert np.array_equal(decoded.pixels, whole.pixels)


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files_are_read_or_refused_and_never_crash(kind):
    """Bytes changed, removed and inserted lead to an image or to an error of the caller's."""
    chance = random.Random(kind)
    body = FILES[kind]()
    for _ in range(150):
        mutated = bytearray(body)
        for _ in range(chance.choice([1, 1, 2, 8, 30])):
            at = chance.randrange(min(len(mutated), chance.choice([60, 200, len(mutated)])))
            match chance.randrange(4):
                case 0:
                    del mutated[at : at + chance.randrange(1, 9)]
                case 1:
                    mutated[at:at] = chance.randbytes(chance.randrange(1, 9))
                case _:
                    mutated[at] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        try:
            decoded = codec.decode(bytes(mutated), LIMITS)
        except (BrokenImage, UnsupportedImage, TooLarge):
            continue
        for name in ("png", "tiff", "jpeg"):
            assert codec.encode(decoded, codec.EncodeOptions(name)).body


@pytest.mark.parametrize("kind", FILES)
def test_a_broken_file_releases_nothing_that_python_holds(kind):
    """A decoder that releases None once too often ends Python after some thousands of broken files."""
    body = FILES[kind]()
    gc.disable()  # the garbage of other tests may hold it, too
    try:
        before = sys.getrefcount(None)
        for _ in range(40):
            for end in (len(body) // 3, len(body) * 2 // 3):
                with suppress(codec.CodecError):
                    codec.decode(body[:end], LIMITS)
        assert sys.getrefcount(None) > before - 40
    finally:
        gc.enable()


def test_nothing_is_not_an_image():
    """Zero bytes are a broken image."""
    with pytest.raises(BrokenImage, match="empty"):
        codec.decode(b"", LIMITS)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"P6 1 1 255 abc", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "known format"),
        (b"\x89PNG\n\x1a\n", "known format"),
        (b"hello", "known format"),
    ],
)
def test_other_formats_are_refused_by_name(body, name):
    """Nothing but the listed formats is opened, though Pillow knows dozens; the answer lists them."""
    with pytest.raises(UnsupportedImage, match=name) as caught:
        codec.decode(body, LIMITS)
    assert caught.value.facts["supported"] == list(codec.READABLE)


def test_formats_are_known_by_their_bytes_alone():
    """One format's body behind another's signature is broken, not read as what it is."""
    with pytest.raises(BrokenImage):
        codec.decode(b"\x89PNG\r\n\x1a\n" + saved(photograph(), "JPEG"), LIMITS)
    with pytest.raises(BrokenImage):
        codec.decode(b"\xff\xd8\xff" + written(image()), LIMITS)
    with pytest.raises(BrokenImage):
        codec.decode(b"II*\0" + saved(photograph(), "GIF"), LIMITS)


def test_bytes_after_a_picture_are_neither_read_nor_kept():
    """A ZIP archive behind a PNG or a JPEG, and a script in a text, do not reach the answer's end."""
    for body in (written(image()), saved(photograph(), "JPEG")):
        decoded = codec.decode(body + b"PK\x03\x04 secret", LIMITS)
        assert np.array_equal(decoded.pixels, codec.decode(body, LIMITS).pixels)
        assert b"secret" not in written(decoded)


def header_of(name, width, height):
    """A file with nothing but a header of a size."""
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    match name:
        case "png":
            pixels = zlib.compress(bytes(2**20))
            return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        case "jpeg":
            frame = struct.pack(">BBHBHHB", 0xFF, 0xC0, 11, 8, height, width, 1) + bytes((1, 0x11, 0))
            return b"\xff\xd8" + frame + b"\xff\xda\0\x08\1\1\0\0\x3f\0"
        case "webp":
            size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
            return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
        case "gif":
            return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + bytes(9) + b"\2\0;"
        case "bmp":
            return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        case _:
            return tiff(samples(8, 8, 3), t256=(width,), t257=(height,))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_a_billion_pixels_are_refused_on_their_header_and_cost_no_memory(name):
    """Before any decoding, with the limit and the actual number in the answer."""
    body = header_of(name, 40_000, 25_000)
    for work in (codec.read_header, codec.decode):
        tracemalloc.start()
        with pytest.raises(TooLarge) as caught:
            work(body, codec.DecodeLimits())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.value.facts == {"limit": 50_000_000, "actual": 10**9}
        assert peak < 2**21


def test_the_limit_is_exact():
    """One pixel more than the limit is one too many."""
    body = written(image())
    assert codec.read_header(body, codec.DecodeLimits(max_pixels=40 * 56)) == codec.Header("png", 56, 40)
    with pytest.raises(TooLarge):
        codec.read_header(body, codec.DecodeLimits(max_pixels=40 * 56 - 1))


@pytest.mark.slow
def test_more_pixels_than_pillow_likes_are_read_where_the_limit_allows_them():
    """The only limit is ours: Pillow's warning for 90 million pixels and its error for 179 do not exist here."""
    body = saved(Image.new("1", (20_000, 9_000)), "PNG")
    assert codec.decode(body, codec.DecodeLimits(max_pixels=180_000_000)).pixels.shape == (9_000, 20_000, 1)
    deep = tiff(np.zeros((1000, 30_000, 3), np.uint16), compression=8)
    assert codec.decode(deep, codec.DecodeLimits()).pixels.shape == (1000, 30_000, 3)


def test_a_tile_far_larger_than_its_picture_is_refused():
    """A TIFF of one pixel with a tile of four gigapixels is no picture."""
    body = tiff(samples(8, 8, 1), tile=16, t322=(65_536,), t323=(65_536,), t324=(8,), t325=(64,))
    with pytest.raises(BrokenImage):
        codec.decode(body, LIMITS)


@pytest.mark.parametrize("kind", [b"iCCP", b"iTXt", b"zTXt"])
def test_a_bomb_in_a_chunk_is_left_out(kind):
    """A gigabyte of zeros that a PNG's profile or text inflates to is never inflated."""
    squeeze = zlib.compressobj()
    bomb = b"".join(squeeze.compress(bytes(2**20)) for _ in range(64)) + squeeze.flush()
    head = {
        b"iCCP": b"x\0\0",
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0",
        b"zTXt": b"Raw profile type exif\0\0",
    }[kind]
    tracemalloc.start()
    decoded = codec.decode(png_with(written(image()), (kind, head + bomb)), codec.DecodeLimits(max_profile_bytes=2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded.metadata == codec.Metadata()
    [notice] = decoded.notices
    assert "too large" in notice
    assert peak < 2**23


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    """A decoder goes over all pixels for each scan, so 23 bytes more would cost what the picture costs."""
    body = saved(photograph(), "JPEG", progressive=True)
    at = body.index(b"\xff\xda")
    end = body.index(b"\xff\xc4", at)
    first = body[at:end]
    assert codec.decode(body[:end] + first * 80 + body[end:], LIMITS).pixels.shape == (40, 56, 3)
    with pytest.raises(UnsupportedImage, match="scans"):
        codec.read_header(body[:end] + first * 100 + body[end:], LIMITS)
    behind = codec.decode(body + first * 100, LIMITS)
    assert np.array_equal(behind.pixels, codec.decode(body, LIMITS).pixels), "what follows the picture is not a scan"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "before", "piece"),
    [
        ("png", b"\0\0\0\0IEND", chunk(b"teSt", b"")),
        ("jpeg progressive", b"\xff\xc2", b"\xff\xef\0\2"),
        ("jpeg progressive", b"\xff\xd9", b"\xff\xef\0\2"),
        ("gif", b",\0\0\0\0", b"!\xfe\0"),
        ("webp", b"", b"JUNK\0\0\0\0"),
    ],
)
def test_a_file_of_nothing_but_tiny_pieces_is_refused(kind, before, piece):
    """A million empty chunks, segments or comments would take a hundred times their bytes."""
    body = FILES[kind]()
    at = body.rindex(before)

    def with_pieces(count):
        longer = body[:at] + piece * count + body[at:]
        return longer[:4] + struct.pack("<I", len(longer) - 8) + longer[8:] if kind == "webp" else longer

    assert codec.read_header(with_pieces(5000), LIMITS).width == 56
    longer = with_pieces(200_000)
    tracemalloc.start()
    with pytest.raises((BrokenImage, UnsupportedImage)):
        codec.read_header(longer, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def test_a_gif_of_a_million_parts_is_refused():
    """Two bytes each, in one comment."""
    body = FILES["gif"]()
    at = body.index(b",\0\0\0\0")
    with pytest.raises(BrokenImage, match="blocks"):
        codec.read_header(body[:at] + b"!\xfe" + b"\1x" * 2**20 + b"\0" + body[at:], LIMITS)


def entries_of_one_place(count, size, at):
    """Entries of a directory that all point to the same ``size`` bytes."""
    return b"".join(struct.pack("<HHII", 0x9000 + number, 7, size, at) for number in range(count))


def test_exif_with_overlapping_values_is_not_expanded():
    """Twelve bytes of an entry would be a megabyte each, in a TIFF's own and in one that becomes part of a TIFF."""
    count, size = 500, 2**20
    table = struct.pack("<H", count) + entries_of_one_place(count, size, 14 + 12 * count) + bytes(4)
    png = png_with(written(image()), (b"eXIf", b"II*\0\x08\0\0\0" + table + bytes(size)))
    plain = tiff(samples(channels=1))
    start = struct.unpack_from("<I", plain, 4)[0]
    own = struct.unpack_from("<H", plain, start)[0]
    table = plain[start + 2 : start + 2 + 12 * own] + entries_of_one_place(count, size, 8)
    directory = struct.pack("<H", own + count) + table + bytes(4)
    picture = plain[:4] + struct.pack("<I", len(plain) + size) + plain[8:] + bytes(size) + directory
    tracemalloc.start()
    for body in (png, picture):
        assert written(codec.decode(body, LIMITS), "tiff")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * size


def animated(name):
    """Two frames of other colours, or two pages."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return saved(frames[0], name, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_animations_and_pages_are_refused_by_name(name):
    """Never the first frame in silence."""
    with pytest.raises(UnsupportedImage, match="2 frames") as caught:
        codec.read_header(animated(name), LIMITS)
    assert caught.value.facts["frames"] == 2


def test_one_frame_is_no_animation():
    """A GIF and a WebP that could be animated and are not."""
    for name in ("GIF", "WEBP", "PNG"):
        body = saved(Image.new("RGB", (8, 8), "red"), name, save_all=True)
        assert codec.read_header(body, LIMITS).frames == 1


@pytest.mark.parametrize(
    "body",
    [
        tiff(samples(channels=1, dtype=np.uint16), t339=(3,)),
        tiff(samples(channels=3, dtype=np.uint16), t262=(8,)),
        tiff(samples(channels=1), t262=(8,)),
        tiff(samples(channels=1), t259=(32809,)),
        header_of("jpeg", 8, 8).replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc0\0\x0b\x0c"),
        header_of("jpeg", 8, 8).replace(b"\xff\xc0", b"\xff\xc5"),
    ],
)
def test_samples_that_cannot_be_kept_are_refused_by_name(body):
    """Floats, Lab, ThunderScan in TIFF and hierarchical JPEG are unsupported, and not broken."""
    with pytest.raises(UnsupportedImage, match=r"bits|[Ss]amples|process|compression"):
        codec.decode(body, LIMITS)


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_broken_exif_in_an_avif_is_left_out_whatever_warnings_do(action):
    """The picture is read, and a notice says what is missing; how Python treats warnings makes no difference."""
    body = saved(photograph(), "AVIF", exif=ORIENTED_EXIF[:-8] + bytes(8))
    at = body.index(b"II*\0")
    broken = body[: at + 8] + b"\xff\xff" + body[at + 10 :]
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        decoded = codec.decode(broken, LIMITS)
    assert decoded.metadata.exif is None
    assert decoded.notices == ("EXIF was broken and was left out",)


@pytest.mark.skipif(not THREADS.is_dir(), reason="threads are counted in /proc")
def test_an_avif_is_decoded_by_the_thread_that_asks():
    """Other cores belong to the network; the usual way starts a thread for each."""
    body = saved(photograph().resize((1024, 1024)), "AVIF")
    before = most = len(list(THREADS.iterdir()))
    decoder = threading.Thread(target=codec.decode, args=(body, codec.DecodeLimits()))
    decoder.start()
    while decoder.is_alive():
        most = max(most, len(list(THREADS.iterdir())))
    assert most == before + 1


def test_an_unexpected_exception_is_not_reported_as_a_broken_file(monkeypatch):
    """A TypeError between decoders is a bug, and must not look like a broken image."""

    def mistake(*_):
        raise TypeError("ours")

    body = written(image())
    for place in ("app.codec.png_chunks.read_metadata", "app.codec.png_chunks.read_header", "app.codec.planes.split"):
        with monkeypatch.context() as patch:
            patch.setattr(place, mistake)
            with pytest.raises(TypeError, match="ours"):
                codec.decode(body, LIMITS)


def tagged_with(name, content):
    """A file whose profile, EXIF or XMP is this, and larger than the limit of the test."""
    if name == "png":
        return png_with(written(image()), (b"iCCP", b"x\0\0" + zlib.compress(content)))
    if name == "tiff":
        return saved(photograph(), "TIFF", icc_profile=content)
    return saved(photograph(), name.upper(), icc_profile=content)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff", "avif"])
def test_a_profile_that_is_too_large_is_missed_with_a_notice(name):
    """In every format."""
    body = tagged_with(name, adobe_rgb() + bytes(3000))
    decoded = codec.decode(body, codec.DecodeLimits(max_profile_bytes=3000))
    assert decoded.metadata.icc is None
    [notice] = decoded.notices
    assert "ICC profile" in notice
    assert "left out" in notice
    assert codec.decode(body, LIMITS).metadata.icc is not None


def test_more_of_photoshop_than_the_limit_is_missed_with_a_notice():
    """A JPEG can hold any number of its segments; the answer's PNG would spell each byte with two."""
    body = saved(photograph(), "JPEG")
    block = b"Photoshop 3.0\0" + bytes(40_000)
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    limits = codec.DecodeLimits(max_profile_bytes=100_000)
    assert len(codec.decode(body[:2] + segment * 2 + body[2:], limits).metadata.photoshop) == 80_000
    decoded = codec.decode(body[:2] + segment * 3 + body[2:], limits)
    assert decoded.metadata.photoshop is None
    assert decoded.notices == ("IPTC of more than 100000 bytes was left out",)


def test_a_damaged_checksum_is_a_broken_image():
    """One wrong byte in a PNG's palette, which zlib would not notice, is noticed."""
    body = bytearray(FILES["png palette"]())
    at = body.index(b"PLTE") + 6
    body[at] ^= 1
    with pytest.raises(BrokenImage, match="checksum"):
        codec.decode(bytes(body), LIMITS)


@pytest.mark.parametrize(
    ("name", "side"),
    [("jpeg", 65_500), ("webp", 16_383), ("avif", 32_768), ("png", 10**6), ("tiff", 2**29 - 2**24)],
)
def test_the_largest_side_of_each_format(name, side):
    """A side that fits passes; one more is refused with both numbers."""
    codec.check_output(name, side, 1)
    with pytest.raises(TooLargeForFormat) as caught:
        codec.check_output(name, 1, side + 1)
    assert caught.value.facts == {"limit": side, "actual": side + 1}


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif", "png"])
def test_the_largest_side_can_be_written_and_read(name):
    """The table is true: a strip of that length survives."""
    side = min(codec.WRITABLE[name].max_side, 100_000)
    strip = codec.Image(np.zeros((1, side, 1), np.uint8))
    assert codec.decode(written(strip, name), LIMITS).width == side


def test_the_area_of_each_format_is_checked():
    """TIFF's 32-bit offsets and AV1's largest level bound the product of the sides."""
    for name, width, height in (("tiff", 2**15, 2**14 - 2**9), ("avif", 2**12, 8704)):
        codec.check_output(name, width, height)
        with pytest.raises(TooLargeForFormat, match=name) as caught:
            codec.check_output(name, width, height + 1)
        assert caught.value.facts == {"limit": width * height, "actual": width * (height + 1)}


@pytest.mark.parametrize(
    "options", [{"quality": 0}, {"quality": 101}, {"metadata": "some"}, {"png_level": 10}, {"format": "gif"}]
)
def test_impossible_options_are_refused(options):
    """With the caller's own mistake as the error."""
    with pytest.raises(InvalidEncodeOption):
        codec.encode(image(), codec.EncodeOptions(**options))

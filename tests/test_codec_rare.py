"""Valid files of rare kinds: read as other programs read them, or refused with the reason."""

from __future__ import annotations

import struct
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from app import codec
from tests.pictures import LIMITS, photograph, samples, saved, tiff

COLOR = (136, 85, 170)
WIDTH, HEIGHT = 48, 32


def decoded(body):
    return codec.decode(body, LIMITS)


def bmp(bits, masks, values, *, compression=3, header=108):
    """BITFIELDS of (H,W) values; masks are in the header, or after one of 40 bytes."""
    rows = b"".join(row.tobytes() + bytes(-row.nbytes % 4) for row in values[::-1])
    head = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, bits, compression, len(rows), 0, 0, 0, 0)
    head += struct.pack(f"<{len(masks)}I", *masks)
    head = head.ljust(header, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF00, 0xF0, 0xF)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0xE000, 0x1C00, 0x300)),
        (32, (0xFF0, 0xFF000, 0xFF00000)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
    ],
)
@pytest.mark.parametrize("header", [40, 108])
def test_bmp_is_read_with_any_masks(bits, masks, header):
    """Each sample is scaled so that its mask's largest value is white."""
    chance = np.random.default_rng(0)
    values, expected = np.zeros((HEIGHT, WIDTH), f"<u{bits // 8}"), []
    for mask in masks:
        low, most = (mask & -mask).bit_length() - 1, mask >> ((mask & -mask).bit_length() - 1)
        part = chance.integers(0, most + 1, (HEIGHT, WIDTH))
        values |= (part << low).astype(values.dtype)
        expected.append(np.rint(part * 255 / most))
    image = decoded(bmp(bits, masks, values, header=header))
    assert np.abs(image.pixels - np.stack(expected, axis=2)).max() <= 0.5
    assert image.alpha is None


def test_bmp_of_ten_bits_a_sample_is_read_as_sixteen():
    """Nothing is rounded to 8 bits."""
    values = np.full((HEIGHT, WIDTH), 1023 << 20 | 512 << 10 | 1, "<u4")
    image = decoded(bmp(32, (1023 << 20, 1023 << 10, 1023), values))
    assert image.deep
    assert image.pixels[0, 0].tolist() == [65535, round(512 * 65535 / 1023), round(65535 / 1023)]


def test_bmp_keeps_alpha():
    """An alpha mask of one bit; where all of it is 0 the picture is transparent, as in Chromium and Pillow."""
    row = np.arange(WIDTH) % 2
    values = np.broadcast_to(0x1234 & 0x7FFF | row << 15, (HEIGHT, WIDTH)).astype("<u2")
    image = decoded(bmp(16, (0x7C00, 0x3E0, 0x1F, 0x8000), values))
    assert np.array_equal(image.alpha, np.broadcast_to(row * 255, (HEIGHT, WIDTH)))
    empty = decoded(bmp(16, (0x7C00, 0x3E0, 0x1F, 0x8000), values & 0x7FFF))
    assert not empty.alpha.any()


def test_bmp_with_masks_beyond_its_pixels_is_broken():
    """The 17th bit of 16."""
    values = np.zeros((HEIGHT, WIDTH), "<u2")
    with pytest.raises(codec.BrokenImage, match="masks"):
        decoded(bmp(16, (0x1F800, 0x7E0, 0x1F), values))


def test_bmp_with_gaps_in_its_masks_or_other_contents_is_refused_by_name():
    """JPEG inside, CMYK, masks that are no run of bits."""
    values = np.zeros((HEIGHT, WIDTH), "<u4")
    for body, reason in (
        (bmp(32, (0xF0F, 0xF0, 0xF000), values), "masks"),
        (bmp(32, (1, 2, 4), values, compression=4), "JPEG"),
        (bmp(32, (1, 2, 4), values, compression=11), "CMYK"),
        (bmp(32, (1, 2, 4), values, header=64), "Huffman"),
    ):
        with pytest.raises(codec.UnsupportedImage, match=reason):
            decoded(body)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp_of_every_plain_kind_is_read_as_pillow_reads_it(mode):
    """Palettes, gray and colours, upside down or not."""
    picture = photograph().quantize(9) if mode == "P" else photograph(mode)
    body = bytearray(saved(picture, "BMP"))
    for turned in (False, True):
        if turned:
            body[22:26] = struct.pack("<i", -40)
        with Image.open(BytesIO(bytes(body))) as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert np.array_equal(np.broadcast_to(decoded(bytes(body)).pixels, expected.shape), expected)


def rle(bits, data, size=40, compression=None):
    """A run-length encoded BMP with a palette of two colours."""
    compression = {8: 1, 4: 2, 24: 4}[bits] if compression is None else compression
    colors = 0 if bits == 24 else 2
    head = struct.pack("<IiiHHIIiiII", size, 4, 2, 1, bits, compression, len(data), 0, 0, colors, 0).ljust(size, b"\0")
    palette = bytes((0, 0, 255, 0, 255, 0, 0, 0))[: 4 * colors]
    start = 14 + size + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + head + palette + data


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    "body",
    [
        rle(8, b"\x04\0\0\0\0\x04\0\1\0\1\0\1"),
        rle(8, b"\x04\0\0\0\2\0\2\1\0\1"),
        rle(4, b"\x04\0\0\0\4\1\0\1"),
        rle(24, b"\4\0\0\xff\0\0\2\xff\0\0\2\0\0\xff\0\1", size=64),
    ],
)
def test_run_length_encoded_bmp_is_read(body):
    """Runs and pixels one by one, in 4, 8 and 24 bits; the first row of the file is the lowest."""
    image = decoded(body)
    assert image.pixels[1].tolist() == [list(RED)] * 4
    assert tuple(image.pixels[0, 0].tolist()) in (RED, BLUE)
    for end in range(1, 4):
        with pytest.raises(codec.BrokenImage):
            decoded(body[: -end - 4])


def test_what_run_length_encoding_skips_is_transparent():
    """As in browsers."""
    image = decoded(rle(8, b"\2\0\0\2\0\1\2\1\0\1"))
    assert image.alpha.tolist() == [[0, 0, 255, 255], [255, 255, 0, 0]]


def ycbcr(color=COLOR):
    """Y, Cb and Cr of the full range."""
    red, green, blue = color
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128


def strip_of(data, tags):
    entries = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 6, 273: 8, 277: 3, 278: HEIGHT, 279: len(data)} | tags
    values = b""
    at = 8 + len(data) + len(data) % 2
    table = b""
    for tag, value in sorted(entries.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        if tag == 258:
            numbers = (8, 8, 8)
        kind, form = (5, "I") if tag == 532 else (4, "I")
        raw = struct.pack(f"<{len(numbers)}{form}", *numbers)
        count = len(numbers) // 2 if kind == 5 else len(numbers)
        if len(raw) > 4:
            values, raw = values + raw, struct.pack("<I", at + len(values))
        table += struct.pack("<HHI", tag, kind, count) + raw.ljust(4, b"\0")
    head = struct.pack("<2sHI", b"II", 42, at + len(values))
    return head + data + bytes(len(data) % 2) + values + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "studio", "planar"])
def test_tiff_of_ycbcr_has_the_right_colours(kind):
    """Subsampled, with reference black and white, and in planes; within 2 levels."""
    y, cb, cr = (round(value) for value in ycbcr())
    count = WIDTH * HEIGHT
    match kind:
        case "4:2:0":
            body = strip_of(bytes((y, y, y, y, cb, cr)) * (count // 4), {530: (2, 2)})
        case "4:4:4":
            body = strip_of(bytes((y, cb, cr)) * count, {530: (1, 1)})
        case "studio":
            luma, blue, red = ycbcr()
            values = (round(16 + luma * 219 / 255), *(round(128 + (v - 128) * 224 / 255) for v in (blue, red)))
            reference = (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)
            body = strip_of(bytes(values) * count, {530: (1, 1), 532: reference})
        case _:
            planes = bytes((y,)) * count + bytes((cb,)) * count + bytes((cr,)) * count
            places = {273: (8, 8 + count, 8 + 2 * count), 279: (count,) * 3, 284: 2, 530: (1, 1)}
            body = strip_of(planes, places)
    pixels = decoded(body).pixels
    assert np.abs(pixels.astype(int) - COLOR).max() <= 2
    cut = body[: 8 + count // 2]
    with pytest.raises(codec.BrokenImage):
        decoded(cut)


def test_tiff_of_an_old_style_jpeg_is_read_and_refused_when_cut():
    """A whole JPEG under JPEGInterchangeFormat."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), COLOR)
    stream = saved(picture, "JPEG", quality=95)
    tags = {259: 6, 513: 8, 514: len(stream), 530: (2, 2)}
    assert np.abs(decoded(strip_of(stream, tags)).pixels.astype(int) - COLOR).max() <= 3
    short = stream[: len(stream) - 30]
    with pytest.raises(codec.BrokenImage):
        decoded(strip_of(short, tags | {514: len(short)}))


def test_tiles_under_the_tags_of_strips_are_read():
    """As libtiff does."""
    planes = samples(channels=3)
    body = tiff(planes, tile=16)
    for tile, strip in ((324, 273), (325, 279)):
        assert body.count(struct.pack("<HH", tile, 4)) == 1
        body = body.replace(struct.pack("<HH", tile, 4), struct.pack("<HH", strip, 4))
    assert np.array_equal(decoded(body).pixels, planes)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("ink", [False, True])
def test_reversed_bits_are_read(channels, ink):
    """FillOrder 2 in gray, colours with alpha, and CMYK."""
    planes = samples(channels=channels)
    kind = {262: (5,)} if ink and channels == 4 else {}
    order = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]
    tags = {f"t{tag}": value for tag, value in kind.items()} | ({"t338": (0,)} if kind else {})
    plain = decoded(tiff(planes, **tags))
    turned = decoded(tiff(order[planes], t266=(2,), **tags))
    assert np.array_equal(turned.pixels, plain.pixels)


def test_a_colour_map_of_eight_bits_is_scaled():
    """Not black."""
    picture = photograph().quantize(16)
    body = saved(picture, "TIFF")
    at = body.index(struct.pack("<HHI", 320, 3, 768)) + 8
    place = struct.unpack_from("<I", body, at)[0]
    table = np.frombuffer(body, "<u2", 768, place) >> 8
    body = body[:place] + table.astype("<u2").tobytes() + body[place + 1536 :]
    assert np.array_equal(decoded(body).pixels, np.asarray(picture.convert("RGB")))


def test_strips_without_a_length_are_read_where_it_can_be_known():
    """Uncompressed ones, and a single compressed one; otherwise the file is broken."""
    planes = samples(channels=3)
    body = tiff(planes)
    assert body.count(struct.pack("<HH", 279, 4)) == 1
    without = body.replace(struct.pack("<HH", 279, 4), struct.pack("<HH", 60_000, 4))
    assert np.array_equal(decoded(without).pixels, planes)
    packed = tiff(planes, compression=8)
    with pytest.raises(codec.BrokenImage):
        decoded(packed.replace(struct.pack("<HH", 279, 4), struct.pack("<HH", 60_000, 4)))


@pytest.mark.parametrize("bits", [2, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_rare_depths_is_read_as_tifffile_reads_it(bits, channels):
    """Samples packed into bytes; the largest is white."""
    chance = np.random.default_rng(1)
    values = chance.integers(0, 2**bits, (HEIGHT, WIDTH, channels), np.uint8 if bits < 8 else np.uint16)
    file = BytesIO()
    tifffile.imwrite(
        file, values, photometric="rgb" if channels == 3 else "minisblack", bitspersample=bits, rowsperstrip=HEIGHT
    )
    image = decoded(file.getvalue())
    full = 255 if bits < 8 else 65535
    assert np.array_equal(image.pixels, np.rint(values * (full / (2**bits - 1.0))).astype(image.pixels.dtype))


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "lzma"])
def test_tiff_of_rare_compressions_is_read(compression):
    """Those of tifffile, without loss."""
    planes = samples(64, 64, 3)
    file = BytesIO()
    options = {"webp": {"lossless": True}, "jpeg2000": {"level": 0}}.get(compression, {})
    tifffile.imwrite(file, planes, photometric="rgb", compression=compression, compressionargs=options)
    assert np.array_equal(decoded(file.getvalue()).pixels, planes)
    with pytest.raises(codec.CodecError):
        decoded(file.getvalue()[:-200])


def test_tiff_of_png_is_refused_by_name():
    """Its decoder releases a reference to None with each broken file."""
    file = BytesIO()
    tifffile.imwrite(file, samples(64, 64, 3), photometric="rgb", compression="png")
    with pytest.raises(codec.UnsupportedImage, match="34933"):
        decoded(file.getvalue())


@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_tiff_of_eight_bits_in_separate_planes_keeps_its_alpha(channels, tile, compression):
    """Gray and colours; alpha that was multiplied in is divided out again."""
    planes = samples(channels=channels)
    plain, multiplied = (
        decoded(tiff(planes, compression=compression, tile=tile, separate=True, t338=(kind,))) for kind in (2, 1)
    )
    assert np.array_equal(plain.pixels, planes[:, :, :-1])
    assert np.array_equal(plain.alpha, planes[:, :, -1])
    full = np.minimum(255, np.rint(planes[:, :, :-1] * 255.0 / np.maximum(planes[:, :, -1:], 1)))
    assert np.abs(multiplied.pixels - full).max() <= 1
    assert np.array_equal(multiplied.alpha, plain.alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_sample_of_rgb_that_no_tag_names_is_alpha(dtype):
    """As Pillow and libtiff have it; one that is named as something else is left out with a notice."""
    planes = samples(channels=4, dtype=dtype)
    named, unnamed = decoded(tiff(planes, t338=(0,))), decoded(tiff(planes, t338=()))
    assert np.array_equal(unnamed.pixels, planes[:, :, :3])
    assert np.array_equal(unnamed.alpha, planes[:, :, 3])
    assert named.alpha is None
    assert "channels" in named.notices[0]


@pytest.mark.parametrize("compression", [1, 5])
def test_tiff_of_a_palette_keeps_its_alpha(compression):
    """Behind each index, of eight bits."""
    planes = samples(channels=2)
    table = np.random.default_rng(1).integers(0, 65536, (3, 256))
    body = tiff(planes, compression=compression, t262=(3,), t320=tuple(table.reshape(-1).tolist()))
    image = decoded(body)
    assert np.array_equal(image.pixels, (table.T[planes[:, :, 0]] >> 8).astype(np.uint8))
    assert np.array_equal(image.alpha, planes[:, :, 1])


@pytest.mark.parametrize("kind", ["gray", "palette"])
def test_tiff_of_four_bits_keeps_its_alpha(kind):
    """Two samples in a byte."""
    planes = np.random.default_rng(1).integers(0, 16, (HEIGHT, WIDTH, 2), np.uint8)
    packed = planes[:, :, :1] << 4 | planes[:, :, 1:]
    table = {"t320": tuple(value * 4369 for value in (*range(16), *range(16), *range(16)))} if kind == "palette" else {}
    body = tiff(packed, t258=(4, 4), t277=(2,), t262=({"gray": 1, "palette": 3}[kind],), t338=(2,), **table)
    image = decoded(body)
    assert np.array_equal(image.pixels[:, :, 0], planes[:, :, 0] * 17)
    assert np.array_equal(image.alpha, planes[:, :, 1] * 17)


@pytest.mark.parametrize("tag", [258, 262, 277, 338])
def test_tiff_with_a_tag_of_an_impossible_type_is_broken(tag):
    """A text instead of a number."""
    body = tiff(samples(channels=4))
    at = body.rindex(struct.pack("<HH", tag, 4))
    with pytest.raises(codec.BrokenImage):
        codec.read_header(body[: at + 2] + b"\2" + body[at + 3 :], LIMITS)


@pytest.mark.parametrize("kind", ["float", "signed", "lab"])
def test_tiff_of_samples_without_a_range_is_refused_by_name(kind):
    """415 with the reason."""
    file = BytesIO()
    planes = samples(16, 16, 3)
    if kind == "lab":
        file.write(tiff(planes, t262=(8,)))
    else:
        tifffile.imwrite(file, planes.astype({"float": np.float32, "signed": np.int16}[kind]), photometric="rgb")
    with pytest.raises(codec.UnsupportedImage, match={"float": "floating", "signed": "signed", "lab": "kind 8"}[kind]):
        decoded(file.getvalue())


def test_lossless_jpeg_of_gray_is_read():
    """As Pillow reads it; cut, it is refused."""
    planes = samples(64, 64, 1)
    body = imagecodecs.ljpeg_encode(planes[:, :, 0])
    assert np.array_equal(decoded(body).pixels, planes)
    with pytest.raises(codec.BrokenImage):
        decoded(body[: len(body) // 2])


def test_jpeg_ls_is_refused_by_name():
    """It begins like a JPEG."""
    with pytest.raises(codec.UnsupportedImage, match="JPEG-LS"):
        decoded(imagecodecs.jpegls_encode(samples(channels=3)))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_a_fax_that_lacks_rows_is_refused(compression):
    """Libtiff would fill them with white."""
    body = saved(photograph("1").resize((200, 100)), "TIFF", compression=compression)
    assert decoded(body).pixels.shape == (100, 200, 1)
    at = body.index(struct.pack("<HH", 279, 4))
    count = struct.unpack_from("<I", body, at + 8)[0]
    for part in (0.5, 0.9, 0.97):
        with pytest.raises(codec.BrokenImage):
            decoded(body[: at + 8] + struct.pack("<I", int(count * part)) + body[at + 12 :])


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_a_jpeg_strip_that_is_cut_is_refused(part):
    """Libjpeg would fill it with gray."""
    body = saved(photograph().resize((200, 100)), "TIFF", compression="jpeg")
    at = body.index(struct.pack("<HH", 279, 4))
    count = struct.unpack_from("<I", body, at + 8)[0]
    with pytest.raises(codec.BrokenImage):
        decoded(body[: at + 8] + struct.pack("<I", int(count * part)) + body[at + 12 :])


def test_jpeg_strips_of_gray_with_alpha_are_read():
    """Two components are no JPEG file, and are fine inside a TIFF."""
    image = decoded(saved(photograph("LA").resize((64, 48)), "TIFF", compression="jpeg"))
    assert image.pixels.shape == (48, 64, 1)
    assert image.alpha is not None

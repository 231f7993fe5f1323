"""Every mode, depth, profile, orientation and format, in and out again."""

from __future__ import annotations

import itertools
import struct
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from app import codec
from tests.pictures import (
    COMPRESSIONS,
    LIMITS,
    adobe_rgb,
    chunk,
    gray_profile,
    image,
    photograph,
    png_with,
    samples,
    saved,
    tiff,
    written,
)

MODES = [(1, False), (1, True), (3, False), (3, True)]


def levels(pixels, like):
    """Pixels in the depth and number of planes of others."""
    if like.dtype == np.uint8 and pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    return pixels.repeat(3, axis=2) if like.shape[2] > pixels.shape[2] else pixels


@pytest.mark.parametrize("name", codec.WRITABLE)
@pytest.mark.parametrize(("channels", "alpha"), MODES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("profile", [None, "own"])
def test_every_image_survives_every_format(name, channels, alpha, dtype, profile):
    """What a format can hold is kept: exactly if it is lossless, otherwise closely; the rest has a notice."""
    icc = None if profile is None else gray_profile(2.2) if channels == 1 else adobe_rgb()
    before = image(channels, dtype, alpha=alpha, metadata=codec.Metadata(icc=icc))
    encoded = codec.encode(before, codec.EncodeOptions(name, quality=100))
    after = codec.decode(encoded.body, LIMITS)
    format_ = codec.WRITABLE[name]
    one_plane = format_.gray and (not alpha or format_.gray_alpha or not format_.alpha)
    assert after.format == name
    assert after.deep == (before.deep and format_.deep)
    assert after.gray == (before.gray and one_plane)
    assert (after.alpha is not None) == (alpha and format_.alpha)
    converted = icc is not None and channels == 1 and not one_plane
    assert after.metadata.icc == (None if converted else icc)
    given_up = [before.deep and not format_.deep, alpha and not format_.alpha, converted]
    assert len(encoded.notices) == sum(given_up)
    if format_.alpha and not converted:
        tolerance = {"avif": 5}.get(name, 0)
        assert np.abs(levels(before.pixels, after.pixels).astype(int) - after.pixels).max() <= tolerance
    if alpha and format_.alpha:
        assert np.abs(
            levels(before.alpha[:, :, None], after.pixels[:, :, :1])[:, :, 0].astype(int) - after.alpha
        ).max() <= (1 if name == "avif" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_as_pillow_does_and_its_tag_is_gone(name, orientation):
    """All eight orientations of EXIF, in every format that has it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    body = saved(photograph(), name, exif=exif, **({"quality": 95} if name != "TIFF" else {}))
    with Image.open(BytesIO(body)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    upright = codec.decode(body, LIMITS)
    assert np.array_equal(upright.pixels, expected)
    with Image.open(BytesIO(written(upright, "jpeg"))) as answer:
        assert answer.getexif().get(0x0112, 1) == 1
        assert answer.getexif()[0x010F] == "Maker"


def test_resolution_turns_with_the_image():
    """A picture that lay on its side swaps the resolutions of its axes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    body = saved(photograph(), "PNG", exif=exif, dpi=(100, 200))
    resolution = codec.decode(body, LIMITS).metadata.resolution
    assert [round(value) for value in resolution.in_inches] == [200, 100]


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [("1", 1, False), ("L", 1, False), ("LA", 1, True), ("P", 3, False), ("RGB", 3, False), ("RGBA", 3, True)],
)
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_every_mode_of_pillow_is_read_as_pillow_reads_it(name, mode, channels, alpha):
    """Bits, gray, palettes and colours have the planes one expects, with the same values."""
    picture = photograph("RGB").quantize(40) if mode == "P" else photograph(mode)
    decoded = codec.decode(saved(picture, name), LIMITS)
    expected = np.asarray(picture.convert({"1": "L", "P": "RGB"}.get(mode, mode)))
    planes = expected if expected.ndim == 3 else expected[:, :, None]
    assert decoded.pixels.shape[2] == channels
    assert np.array_equal(decoded.pixels, planes[:, :, :channels])
    assert (decoded.alpha is not None) == alpha
    if alpha:
        assert np.array_equal(decoded.alpha, planes[:, :, channels])


@pytest.mark.parametrize("name", ["BMP", "GIF"])
def test_flat_formats_are_read_and_answered_as_png(name):
    """BMP and GIF are read; ``same`` writes PNG for them."""
    picture = photograph("RGB").quantize(64) if name == "GIF" else photograph("RGB")
    decoded = codec.decode(saved(picture, name), LIMITS)
    assert np.array_equal(decoded.pixels, np.asarray(picture.convert("RGB")))
    assert codec.encode(decoded, codec.EncodeOptions("same")).media_type == "image/png"


@pytest.mark.parametrize("name", codec.WRITABLE)
def test_same_writes_the_format_that_came(name):
    """``same`` is the upload's format where it can be written."""
    decoded = codec.decode(written(image(), name), LIMITS)
    assert codec.encode(decoded, codec.EncodeOptions("same")).media_type == codec.WRITABLE[name].media_type


def test_transparent_palettes_and_keys_become_alpha():
    """Transparency (tRNS) of a palette, gray and colours, in 8, 16 and fewer bits, and GIF's transparent index."""
    palette = photograph("RGB").quantize(16)
    body = saved(palette, "PNG", transparency=bytes(range(0, 160, 10)))
    indices = np.asarray(palette)
    assert np.array_equal(codec.decode(body, LIMITS).alpha, indices * 10)
    gif = codec.decode(saved(palette, "GIF", transparency=3), LIMITS)
    assert set(np.unique(gif.alpha)) == {0, 255}
    for dtype, channels in itertools.product((np.uint8, np.uint16), (1, 3)):
        picture = image(channels, dtype)
        key = picture.pixels[5, 6]
        keyed = codec.decode(png_with(written(picture), (b"tRNS", key.astype(">u2").tobytes())), LIMITS)
        expected = np.where((picture.pixels == key).all(axis=2), 0, np.iinfo(dtype).max)
        assert np.array_equal(keyed.alpha, expected)
    bits = saved(photograph("1"), "PNG")
    assert np.array_equal(
        codec.decode(png_with(bits, (b"tRNS", b"\0\1")), LIMITS).alpha,
        255 - np.asarray(photograph("1")) * np.uint8(255),
    )


def test_gray_palettes_stay_gray_unless_their_profile_is_of_colors():
    """A palette of grays is one plane, which three planes of equal values are not."""
    body = saved(photograph("L").convert("P"), "PNG")
    assert codec.decode(body, LIMITS).gray
    tagged = saved(photograph("L").convert("P"), "PNG", icc_profile=adobe_rgb())
    assert not codec.decode(tagged, LIMITS).gray


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": "4:1:1"}, {"subsampling": 2}, {"quality": 5}]
)
def test_every_kind_of_jpeg_is_read_as_pillow_reads_it(options):
    """Progressive scans, chroma at any resolution, coarse tables."""
    if options.get("subsampling") == "4:1:1":
        options = {"subsampling": 1}
    body = saved(photograph(), "JPEG", **options)
    with Image.open(BytesIO(body)) as opened:
        assert np.array_equal(codec.decode(body, LIMITS).pixels, np.asarray(opened))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("layout", ["strips", "tiles", "separate", "separate tiles", "big"])
def test_deep_tiffs_of_every_make_are_read_exactly(compression, order, channels, predictor, layout):
    """16 bits survive every compression, byte order, arrangement and predictor."""
    planes = samples(channels=channels, dtype=np.uint16)
    body = tiff(
        planes,
        order=order,
        compression=compression,
        predictor=predictor,
        tile=16 if "tiles" in layout else None,
        separate="separate" in layout,
        big=layout == "big",
    )
    decoded = codec.decode(body, LIMITS)
    colors = channels - (channels in (2, 4))
    assert decoded.pixels.dtype == np.uint16
    assert np.array_equal(decoded.pixels, planes[:, :, :colors])
    assert decoded.alpha is None if colors == channels else np.array_equal(decoded.alpha, planes[:, :, colors])


def test_deep_tiffs_with_white_at_zero_and_with_multiplied_alpha_are_understood():
    """What TIFF stores the other way round is turned."""
    planes = samples(channels=1, dtype=np.uint16)
    assert np.array_equal(codec.decode(tiff(planes, t262=(0,)), LIMITS).pixels, 65535 - planes)
    colors = samples(channels=4, dtype=np.uint16)
    alpha = colors[:, :, 3:].astype(np.float64) / 65535
    stored = colors.copy()
    stored[:, :, :3] = np.rint(colors[:, :, :3] * alpha)
    decoded = codec.decode(tiff(stored, t338=(1,)), LIMITS)
    assert np.abs(decoded.pixels.astype(int) - colors[:, :, :3]).max() <= np.ceil(0.5 / alpha.min()) + 1


@pytest.mark.parametrize("name", ["png", "tiff"])
@pytest.mark.parametrize(("channels", "alpha"), [(1, False), (3, False), (3, True)])
def test_another_reader_sees_the_upper_eight_bits_of_our_deep_files(name, channels, alpha):
    """Pillow, which keeps the upper byte of deep colours and all of deep gray, agrees with what was written."""
    before = image(channels, np.uint16, alpha=alpha)
    with Image.open(BytesIO(written(before, name))) as opened:
        seen = np.asarray(opened)
    if channels == 1 and not alpha:
        assert np.array_equal(seen, before.pixels[:, :, 0])
        return
    assert np.array_equal(seen[:, :, :3], before.pixels >> 8)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_avif_of_more_than_eight_bits_is_read_as_sixteen(bits, channels):
    """Nothing is rounded to 8 bits, and white is white."""
    planes = samples(channels=channels, dtype=np.uint16)
    planes[:20] = 65535
    stored = (planes >> (16 - bits)).squeeze()
    decoded = codec.decode(imagecodecs.avif_encode(stored, 100, bitspersample=bits, numthreads=1), LIMITS)
    assert decoded.deep
    assert decoded.notices == ()
    assert decoded.pixels.shape[2] == min(channels, 3)
    assert (decoded.alpha is not None) == (channels == 4)
    assert (decoded.pixels[5:15] == 65535).all()
    step = 65535 / (2**bits - 1)
    assert np.abs(decoded.pixels[24:] - planes[24:, :, : decoded.pixels.shape[2]].astype(float)).max() <= 8 * step
    assert len(np.unique(decoded.pixels)) > 256


def test_channels_that_are_neither_color_nor_alpha_are_missed_with_a_notice():
    """A mask or a spot colour behind the colours, with transparency and without, in 8 and 16 bits."""
    for dtype, (count, extra) in itertools.product((np.uint8, np.uint16), ((4, (0,)), (5, (2, 0)))):
        planes = samples(channels=4, dtype=dtype)
        planes = np.concatenate((planes, planes[:, :, :1]), axis=2)[:, :, :count]
        decoded = codec.decode(tiff(planes, t338=extra), LIMITS)
        assert np.array_equal(decoded.pixels, planes[:, :, :3])
        assert decoded.notices == ("channels that are neither colour nor alpha were left out",)
        assert (decoded.alpha is not None) == (count == 5)


def test_chroma_is_kept_whole_from_quality_90():
    """4:4:4 at 90 and over, 4:2:0 below, in JPEG."""
    for quality, sampling in ((89, (2, 2)), (90, (1, 1))):
        with Image.open(BytesIO(written(image(), "jpeg", quality=quality))) as opened:
            assert opened.layer[0][1:3] == sampling


def test_the_level_of_png_is_the_callers():
    """More effort makes smaller files of the same pixels."""
    fast, small = (written(image(), png_level=level) for level in (0, 9))
    assert len(small) < len(fast)
    assert np.array_equal(codec.decode(small, LIMITS).pixels, image().pixels)


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "kind"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_interlaced_pngs_are_read_exactly(dtype, channels, kind):
    """Adam7's seven passes come together in every kind and depth, also where some passes are empty."""
    for height, width in ((41, 53), (3, 1)):
        planes = samples(height, width, channels, dtype)
        rows = b"".join(
            b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes()
            for top, left, down, across in ADAM7
            for row in planes[top::down, left::across]
            if len(row)
        )
        header = struct.pack(">IIBBBBB", width, height, planes.itemsize * 8, kind, 0, 0, 1)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        decoded = codec.decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks), LIMITS)
        colors = channels - (channels in (2, 4))
        assert np.array_equal(decoded.pixels, planes[:, :, :colors])
        assert decoded.alpha is None if colors == channels else np.array_equal(decoded.alpha, planes[:, :, colors])

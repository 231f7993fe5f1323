"""Profiles applied, described in other ways, and kept; ink made light; transparency filled and flattened."""

from __future__ import annotations

import struct
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from app import codec
from app.codec import color, planes
from tests.pictures import LIMITS, adobe_rgb, gray_profile, image, photograph, png_with, samples, saved, tiff, written

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def strip(before, name="png"):
    """The image as ``metadata=strip`` writes it."""
    return codec.decode(written(before, name, metadata="strip"), LIMITS)


def by_pillow(pixels, profile):
    """8-bit pixels moved to sRGB by Pillow's own binding of Little CMS."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(pixels), source, SRGB, intent, flags=flags))


def test_strip_moves_colors_to_srgb():
    """Adobe RGB becomes the sRGB that a second binding of Little CMS computes."""
    before = image(metadata=codec.Metadata(icc=adobe_rgb()))
    after = strip(before)
    assert after.metadata == codec.Metadata()
    assert np.abs(after.pixels.astype(int) - by_pillow(before.pixels, adobe_rgb())).max() <= 1
    assert np.abs(after.pixels.astype(int) - before.pixels).max() > 5


def test_strip_moves_deep_colors_without_going_through_eight_bits():
    """Sixteen bits agree with eight, and most samples are no multiple of 257."""
    deep = image(dtype=np.uint16, metadata=codec.Metadata(icc=adobe_rgb()))
    after = strip(deep)
    expected = by_pillow(planes.to_eight_bits(deep.pixels), adobe_rgb())
    assert np.abs(after.pixels / 257 - expected).mean() < 0.5
    assert np.abs(after.pixels / 257 - expected).max() < 5, "dark samples rounded to 8 bits before differ most"
    assert len(np.unique(after.pixels % 257)) > 200


def test_strip_leaves_srgb_alone():
    """A profile that is sRGB under another name changes no sample; neither does its absence."""
    for icc in (SRGB.tobytes(), bytes(imagecodecs.cms_profile("srgb")), None):
        before = image(metadata=codec.Metadata(icc=icc))
        assert np.array_equal(strip(before).pixels, before.pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("gamma", [200_000, 100_000, 55_556])
def test_strip_converts_dark_grays_as_exactly_as_colors(gamma, dtype):
    """Every level, to within rounding; a coarse table would be ten levels off near black."""
    full = np.iinfo(dtype).max
    levels = np.linspace(0, full, 256).astype(dtype)
    described = codec.Metadata(png_color=((b"gAMA", struct.pack(">I", gamma)),))
    light = (levels / full) ** (100_000 / gamma)
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    image = codec.Image(levels[None, :, None], metadata=described)
    stripped = codec.decode(written(image, metadata="strip"), LIMITS).pixels[0, :, 0] * (255 / full)
    assert np.abs(stripped - expected).max() <= 0.51


def test_strip_keeps_gray_gray():
    """A linear gray becomes sRGB's gray: one plane, brighter in the middle."""
    gray = np.full((8, 8, 1), 55, np.uint8)
    for pixels in (gray, gray.astype(np.uint16) * 257):
        after = strip(codec.Image(pixels, metadata=codec.Metadata(icc=gray_profile())))
        assert after.gray
        assert after.pixels.dtype == pixels.dtype
        assert after.pixels[0, 0, 0] / (257 if after.deep else 1) == pytest.approx(srgb_of(55 / 255), abs=1)
    as_colors = strip(codec.Image(gray, metadata=codec.Metadata(icc=bytes(imagecodecs.cms_profile("rgb", gamma=1.0)))))
    assert as_colors.gray


def srgb_of(linear):
    """The curve of IEC 61966-2-1, 8 bits."""
    return round(255 * (1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ((b"gAMA", struct.pack(">I", 100_000)), srgb_of(100 / 255)),
        ((b"gAMA", struct.pack(">I", 45_455)), 100),
        ((b"cICP", bytes((1, 8, 0, 1))), srgb_of(100 / 255)),
        ((b"cICP", bytes((1, 13, 0, 1))), 100),
        ((b"sRGB", b"\0"), 100),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_png_says_of_its_colors_is_kept_in_png_applied_by_strip_and_a_profile_elsewhere(chunk, expected, channels):
    """Chunks gAMA, cICP and sRGB: the same bytes in a PNG, and the same colour in all."""
    flat = codec.Image(np.full((8, 8, channels), 100, np.uint8))
    decoded = codec.decode(png_with(written(flat), chunk), LIMITS)
    assert np.array_equal(decoded.pixels, flat.pixels)
    assert codec.decode(written(decoded), LIMITS).metadata.png_color == (chunk,)
    assert abs(int(strip(decoded).pixels[0, 0, 0]) - expected) <= 1
    other = codec.decode(written(decoded, "tiff"), LIMITS)
    assert np.array_equal(other.pixels, flat.pixels)
    assert (other.metadata.icc is None) == (expected == 100)
    assert abs(int(strip(other).pixels[0, 0, 0]) - expected) <= 1


def test_primaries_of_cicp_are_display_p3s():
    """P3's red leaves sRGB's gamut: its green and blue are clipped to zero."""
    red = codec.Image(
        np.full((4, 4, 3), (200, 60, 60), np.uint8),
        metadata=codec.Metadata(png_color=((b"cICP", bytes((12, 13, 0, 1))),)),
    )
    r, g, b = strip(red).pixels[0, 0].tolist()
    # From the matrices of Display P3 and sRGB, computed by hand.
    linear = np.array([((v / 255 + 0.055) / 1.055) ** 2.4 for v in (200, 60, 60)])
    to_srgb = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    assert np.abs(np.array([srgb_of(v) for v in to_srgb @ linear]) - (r, g, b)).max() <= 2


def test_the_primaries_that_an_avif_states_beside_no_profile_are_kept():
    """AVIF's own description of its colours, Display P3 here, becomes cICP in PNG and a profile elsewhere."""
    body = saved(photograph(), "AVIF", quality=100)
    assert body.count(b"nclx\0\1\0\x0d") == 1
    decoded = codec.decode(body.replace(b"nclx\0\1\0\x0d", b"nclx\0\x0c\0\x0d"), LIMITS)
    assert decoded.metadata.png_color == ((b"cICP", bytes((12, 13, 0, 1))),)
    assert codec.decode(body, LIMITS).metadata.png_color == ()
    assert codec.decode(written(decoded, "jpeg"), LIMITS).metadata.icc is not None


def test_high_dynamic_range_is_kept_in_png_and_missed_elsewhere():
    """Profiles cannot express PQ, so there is a notice."""
    decoded = codec.decode(png_with(written(image()), (b"cICP", bytes((9, 16, 0, 1)))), LIMITS)
    assert codec.encode(decoded, codec.EncodeOptions()).notices == ()
    assert codec.encode(decoded, codec.EncodeOptions("webp")).notices == (
        "webp cannot express that the colours are PQ (cICP 9/16)",
    )


def test_high_dynamic_range_is_not_called_srgb_in_silence():
    """``strip`` cannot convert PQ, and says so."""
    decoded = codec.decode(png_with(written(image()), (b"cICP", bytes((9, 16, 0, 1)))), LIMITS)
    encoded = codec.encode(decoded, codec.EncodeOptions(metadata="strip"))
    assert encoded.notices == ("the colours are PQ (cICP 9/16), and were not converted to sRGB",)
    assert np.array_equal(codec.decode(encoded.body, LIMITS).pixels, decoded.pixels)


def test_the_profile_inside_a_bmp_is_kept():
    """The fifth version of its header says where it stands; cut short, it is left out with a notice."""
    body = bmp_with(adobe_rgb())
    decoded = codec.decode(body, LIMITS)
    assert decoded.metadata.icc == adobe_rgb()
    assert np.array_equal(decoded.pixels, samples(channels=3))
    short = codec.decode(body[:-600], LIMITS)
    assert short.metadata.icc is None
    assert len(short.notices) == 1


def bmp_with(profile):
    """24 bits, and a profile behind the pixels."""
    pixels = samples(channels=3)
    rows = pixels[::-1, :, ::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII16x4s48xIIII", 124, 56, 40, 1, 24, 0, len(rows), 0, 0, 0, 0, b"DEBM", 4, 0, 0, 0)
    head = head[:-12] + struct.pack("<III", 124 + len(rows), len(profile), 0)
    return b"BM" + struct.pack("<IHHI", 138 + len(rows), 0, 0, 138) + head + rows + profile


def cmyk_profile():
    """A profile of inks that print nothing but their complement, as a table of two steps each."""
    grid = np.array(np.meshgrid(*[[0, 1]] * 4, indexing="ij")).reshape(4, -1).T
    light = (1 - grid[:, :3]) * (1 - grid[:, 3:])
    to_xyz = np.array([[0.436, 0.385, 0.143], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    f = np.cbrt(light @ to_xyz.T / np.array([0.9642, 1.0, 0.8249]))
    lab = np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), axis=1)
    lab = np.clip(np.rint((lab + np.array([0, 128, 128])) * np.array([652.8, 256, 256])), 0, 65535).astype(">u2")
    curve = struct.pack(">HH", 0, 65535)
    matrix = [65536 * row for row in (1, 0, 0, 0, 1, 0, 0, 0, 1)]
    table = struct.pack(">4sIBBBx9iHH", b"mft2", 0, 4, 3, 2, *matrix, 2, 2)
    table += curve * 4 + lab.tobytes() + curve * 3
    white = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    tags = [(b"A2B0", table), (b"A2B1", table), (b"wtpt", white)]
    at = 128 + 4 + 12 * len(tags)
    directory, content = struct.pack(">I", len(tags)), b""
    for name, value in tags:
        directory += name + struct.pack(">II", at + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = at + len(content)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ").ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + directory + content


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
@pytest.mark.parametrize("profile", [None, "inks"])
def test_ink_becomes_light_and_says_so(name, profile):
    """CMYK goes to sRGB, through its profile as Pillow's binding does it, or else without one; the profile is gone."""
    icc = cmyk_profile() if profile else None
    picture = photograph("CMYK")
    body = saved(picture, name, icc_profile=icc, **({"quality": 100} if name == "JPEG" else {}))
    decoded = codec.decode(body, LIMITS)
    with Image.open(BytesIO(body)) as opened:
        ink = np.asarray(opened)
    if icc is None:
        expected = np.rint((255 - ink[:, :, :3].astype(float)) * (255 - ink[:, :, 3:]) / 255)
    else:
        source = ImageCms.ImageCmsProfile(BytesIO(icc))
        with Image.open(BytesIO(body)) as opened:
            expected = np.asarray(
                ImageCms.profileToProfile(
                    opened, source, SRGB, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
                    flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )
            )  # fmt: skip
    assert np.abs(decoded.pixels - expected.astype(float)).max() <= 1
    assert decoded.metadata.icc is None
    assert decoded.notices == (f"CMYK was converted to sRGB {'through its' if profile else 'without a'} profile",)


@pytest.mark.parametrize(("dtype", "alpha"), [(np.uint8, True), (np.uint16, False), (np.uint16, True)])
def test_ink_with_alpha_becomes_light_with_alpha_in_its_depth(dtype, alpha):
    """CMYK of 8 and 16 bits gives colours of as many, beside the same transparency."""
    full = np.iinfo(dtype).max
    ink = samples(channels=4 + alpha, dtype=dtype)
    decoded = codec.decode(tiff(ink, predictor=2, t262=(5,), t338=(2 if alpha else 0,)), LIMITS)
    expected = (full - ink[:, :, :3].astype(float)) * (full - ink[:, :, 3:4]) / full
    assert decoded.pixels.dtype == dtype
    assert np.abs(decoded.pixels - expected).max() <= 1
    assert np.array_equal(decoded.alpha, ink[:, :, 4]) if alpha else decoded.alpha is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_flattened_on_white(dtype):
    """Nothing is white, half is half way there, everything is the colour; JPEG says that it did so."""
    full = np.iinfo(dtype).max
    pixels = np.full((1, 3, 3), full // 4, dtype)
    alpha = np.array([[0, full // 2, full]], dtype)
    flat = planes.flatten(pixels, alpha)
    assert flat[0, 0, 0] == full
    assert flat[0, 2, 0] == full // 4
    assert abs(int(flat[0, 1, 0]) - (full + full // 4) / 2) <= full / 250
    assert "flattened on white" in codec.encode(codec.Image(pixels, alpha), codec.EncodeOptions("jpeg")).notices[0]


def test_colors_under_transparency_come_from_beside_it():
    """Black under a transparent half becomes what is next to it; what is visible does not change."""
    pixels = np.zeros((33, 47, 3), np.uint8)
    pixels[:, :20] = (200, 100, 50)
    alpha = np.zeros((33, 47), np.uint8)
    alpha[:, :20] = 255
    filled = codec.fill_transparent(pixels, alpha)
    assert np.array_equal(filled, np.broadcast_to(np.array((200, 100, 50), np.uint8), filled.shape))
    assert not pixels[:, 20:].any(), "the input is left alone"


@given(st.integers(1, 19), st.integers(1, 19), st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16]))
def test_filling_never_touches_what_is_visible_and_stays_within_its_range(height, width, seed, dtype):
    """For any mask: visible samples are the same, others lie between the least and the greatest visible ones."""
    chance = np.random.default_rng(seed)
    pixels = chance.integers(0, np.iinfo(dtype).max, (height, width, 1), dtype=dtype, endpoint=True)
    alpha = (chance.random((height, width)) < 0.3).astype(dtype)
    filled = codec.fill_transparent(pixels, alpha)
    assert np.array_equal(filled[alpha > 0], pixels[alpha > 0])
    if alpha.any():
        seen = pixels[alpha > 0]
        assert filled.min() >= seen.min()
        assert filled.max() <= seen.max()


def test_sixteen_bits_round_to_the_nearest_eight():
    """And eight bits times 257 are returned."""
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(planes.to_eight_bits(values), np.rint(values / 257).astype(np.uint8))


def test_a_profile_that_cannot_be_applied_is_left_out_with_a_notice():
    """Strip does not fail over a profile that Little CMS opens and cannot use."""
    broken = bytearray(adobe_rgb())
    broken[132:136] = b"zzzz"
    for at in range(128, 260):
        broken[at] = 0
    assert color.profile_space(bytes(broken)) == "RGB"
    encoded = codec.encode(image(metadata=codec.Metadata(icc=bytes(broken))), codec.EncodeOptions(metadata="strip"))
    assert encoded.notices == ("the colour profile could not be applied and was left out",)

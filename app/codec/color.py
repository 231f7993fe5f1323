"""Colour spaces: reads, creates and applies profiles with Little CMS, in 8 and in 16 bits."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from app.codec.image import Image, Metadata, Pixels

_RELATIVE_COLORIMETRIC, _BLACK_POINT_COMPENSATION, _NO_OPTIMIZATION = 1, 0x2000, 0x100
_CURVE_POINTS = 1024
_DATE = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
_D65 = (0.3127, 0.3290)
_SRGB_GAMMA, _SRGB_CHROMATICITIES = 45_455, (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)

# ITU-T H.273, table 2: white, red, green, blue.
_PRIMARIES: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
        2: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # unspecified: as in browsers
        4: (0.310, 0.316, 0.670, 0.330, 0.210, 0.710, 0.140, 0.080),
        5: (*_D65, 0.640, 0.330, 0.290, 0.600, 0.150, 0.060),
        6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
        7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
        8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
        9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
        11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
        12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
        22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
    }
)
_BT709_LIKE, _SRGB_LIKE, _SMPTE_240M, _LOGARITHMIC = (1, 6, 11, 12, 14, 15), (2, 13), 7, {9: 2.0, 10: 2.5}
_HDR = MappingProxyType({16: "PQ", 18: "HLG"})
_FULL_RANGE = 1
_GAMMAS = MappingProxyType({4: 2.2, 5: 2.8, 8: 1.0})


def usable_profile(icc: bytes) -> bool:
    """Whether a profile is complete, and Little CMS can read it."""
    whole = 132 <= int.from_bytes(icc[:4]) <= len(icc)
    return whole and icc[36:40] == b"acsp" and imagecodecs.cms_check(icc) is not False


def fits(icc: bytes, *, gray: bool) -> bool:
    """Whether a profile can describe an image; gray images with a profile of RGB are common."""
    return usable_profile(icc) and profile_space(icc) in (("GRAY", "RGB") if gray else ("RGB",))


def profile_space(icc: bytes) -> str:
    """The space of a profile's pixels: ``GRAY``, ``RGB``, ``CMYK``, ..."""
    return icc[16:20].decode("ascii", "replace").strip()


def described_profile(metadata: Metadata, *, gray: bool) -> bytes | None:
    """The profile that the pixels are in, from cICP, ICC, or gAMA and cHRM in PNG's order; None for sRGB."""
    chunks = dict(metadata.png_color)
    if b"cICP" in chunks:
        profile = _profile_of_cicp(chunks[b"cICP"], gray=gray)
        if profile is not None:
            return profile
    if metadata.icc is not None:
        return metadata.icc
    if b"cICP" in chunks or b"sRGB" in chunks or b"gAMA" not in chunks:
        return None
    return _profile_of_gamma(chunks[b"gAMA"], chunks.get(b"cHRM"), gray=gray)


def lost_color(metadata: Metadata, *, gray: bool) -> str | None:
    """The part of cICP that our profiles cannot express, such as PQ; None if a profile expresses all of it."""
    content = cicp(metadata)
    if content is None or _is_srgb(content) or _profile_of_cicp(content, gray=gray) is not None:
        return None
    name = _HDR.get(content[1], "of a rare kind")
    return f"the colours are {name} (cICP {content[0]}/{content[1]}{'' if content[3] else ', narrow range'})"


def is_rare(content: bytes) -> bool:
    """Whether few programs support a cICP's primaries or transfer."""
    return content[0] in (4, 7, 8, 22) or content[1] == _SMPTE_240M or content[1] in _LOGARITHMIC


def cicp(metadata: Metadata) -> bytes | None:
    """The four bytes of cICP, if the image has it."""
    content = dict(metadata.png_color).get(b"cICP", b"")
    return content if len(content) == 4 else None


def _is_srgb(content: bytes) -> bool:
    return content[0] in (1, 2) and content[1] in _SRGB_LIKE and content[3] == _FULL_RANGE


def _profile_of_cicp(content: bytes, *, gray: bool) -> bytes | None:
    if len(content) != 4 or content[0] not in _PRIMARIES or content[3] != _FULL_RANGE or _is_srgb(content):
        return None
    primaries, transfer = _PRIMARIES[content[0]], content[1]
    if transfer in _GAMMAS:
        return _make_profile(primaries, gray=gray, gamma=_GAMMAS[transfer])
    curve = _curve(transfer)
    return None if curve is None else _make_profile(primaries, gray=gray, curve=curve)


def _curve(transfer: int) -> NDArray[np.float64] | None:
    """Light of each signal (ITU-T H.273, table 3), for those that a profile can express."""
    signal = np.linspace(0, 1, _CURVE_POINTS)
    if transfer in _SRGB_LIKE:
        return _srgb_curve()
    if transfer in _BT709_LIKE:
        return np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45))
    if transfer == _SMPTE_240M:
        return np.where(signal < 0.0912, signal / 4, ((signal + 0.1115) / 1.1115) ** (1 / 0.45))
    if transfer in _LOGARITHMIC:
        return np.where(signal == 0, 0, 10 ** (_LOGARITHMIC[transfer] * (signal - 1)))
    return None


def _profile_of_gamma(gamma: bytes, chromaticities: bytes | None, *, gray: bool) -> bytes | None:
    exponent = int.from_bytes(gamma)
    points = struct.unpack(">8I", chromaticities) if chromaticities and len(chromaticities) == 32 else None
    if not 1_000 <= exponent <= 1_000_000:
        return None
    near = points is None or max(abs(a - b) for a, b in zip(points, _SRGB_CHROMATICITIES, strict=True)) <= 100
    if abs(exponent - _SRGB_GAMMA) <= 100 and (near or gray):
        return None
    primaries = tuple(value / 100_000 for value in points or _SRGB_CHROMATICITIES)
    return _make_profile(primaries, gray=gray, gamma=100_000 / exponent)


def _srgb_curve() -> NDArray[np.float64]:
    signal = np.linspace(0, 1, _CURVE_POINTS)
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _make_profile(
    primaries: tuple[float, ...],
    *,
    gray: bool,
    gamma: float | None = None,
    curve: NDArray[np.float64] | None = None,
) -> bytes | None:
    white, *colors = (primaries[at : at + 2] for at in range(0, 8, 2))
    try:
        profile = imagecodecs.cms_profile(
            "gray" if gray else "rgb",
            whitepoint=(*white, 1.0),
            primaries=None if gray else [value for point in colors for value in (*point, 1.0)],
            transferfunction=None if curve is None else curve.astype(np.float32),
            gamma=gamma,
        )
    except (imagecodecs.CmsError, ValueError):
        return None
    # Little CMS writes the time into the header. Without it, the same image always gives the same file.
    return bytes(profile[:24]) + _DATE + bytes(profile[36:])


@cache
def _srgb(*, gray: bool) -> bytes:
    if not gray:
        return bytes(imagecodecs.cms_profile("srgb"))
    profile = _make_profile(_PRIMARIES[1], gray=True, curve=_srgb_curve())
    assert profile is not None, "Little CMS makes a gray profile of a curve"
    return profile


def convert(pixels: Pixels, source: bytes, target: bytes) -> Pixels:
    """Convert pixels from one profile to another: relative colorimetric, with black point compensation.

    Args:
        pixels: (H,W,C) in the space of ``source``: C is 1, 3, or 4 for CMYK (0 is no ink).
        source, target: profiles of gray, RGB or CMYK.

    Raises:
        ValueError: if a profile cannot be used, or does not fit the pixels.
    """
    if pixels.shape[2] > 1:
        return _transform(np.ascontiguousarray(pixels), source, target, 0)
    # Little CMS would approximate a curve of gray with 33 points, so each level is converted by itself.
    levels = np.arange(np.iinfo(pixels.dtype).max + 1).astype(pixels.dtype)[None, :]
    return cast("Pixels", _transform(levels, source, target, _NO_OPTIMIZATION)[0][pixels[:, :, 0]])


def _transform(samples: NDArray[Any], source: bytes, target: bytes, flags: int) -> Pixels:
    try:
        converted = imagecodecs.cms_transform(
            samples,
            source,
            target,
            colorspace=profile_space(source).lower(),
            outcolorspace=profile_space(target).lower(),
            intent=_RELATIVE_COLORIMETRIC,
            flags=_BLACK_POINT_COMPENSATION | flags,
        )
    except imagecodecs.CmsError as error:
        raise ValueError("the profile cannot be used") from error
    return cast("Pixels", converted if converted.ndim == 3 else converted[:, :, None])


def to_srgb(image: Image) -> Image:
    """Convert an image to sRGB and remove its colour description. Alpha and the number of planes stay the same.

    A profile that cannot be applied is left out, with a notice.
    """
    bare = replace(image, metadata=replace(image.metadata, icc=None, png_color=()))
    lost = lost_color(image.metadata, gray=image.gray)
    if lost is not None:
        bare = replace(bare, notices=(*image.notices, f"{lost}, and were not converted to sRGB"))
    profile = described_profile(image.metadata, gray=image.gray)
    if profile is None:
        return bare
    try:
        return replace(bare, pixels=_convert_planes(image.pixels, profile))
    except ValueError:
        return replace(bare, notices=(*bare.notices, "the colour profile could not be applied and was left out"))


def _convert_planes(pixels: Pixels, profile: bytes) -> Pixels:
    if profile_space(profile) == ("GRAY" if pixels.shape[2] == 1 else "RGB"):
        target = _srgb(gray=pixels.shape[2] == 1)
        return pixels if _same(profile, target) else convert(pixels, profile, target)
    if pixels.shape[2] == 1 and profile_space(profile) == "RGB":
        target = _srgb(gray=False)
        return pixels if _same(profile, target) else convert(pixels.repeat(3, axis=2), profile, target)[:, :, 1:2]
    raise ValueError("the profile does not fit the pixels")


def _same(source: bytes, target: bytes) -> bool:
    """Whether the conversion changes no sample of a coarse grid by more than one level, which is rounding."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    planes = 1 if profile_space(source) == "GRAY" else 3
    grid = np.stack(np.meshgrid(*[steps] * planes, indexing="ij"), axis=-1).reshape(len(steps), -1, planes)
    return int(np.abs(convert(grid, source, target).astype(np.int16) - grid).max()) <= 1


def cmyk_to_srgb(pixels: Pixels, icc: bytes | None) -> tuple[Pixels, str]:
    """Convert CMYK to sRGB, and return a notice on the profile that was used.

    Args:
        pixels: (H,W,4), 0 is no ink.
        icc: the profile of a printing process; without one, inks are taken to be perfect.
    """
    if icc is not None and usable_profile(icc) and profile_space(icc) == "CMYK":
        try:
            return convert(pixels, icc, _srgb(gray=False)), "CMYK was converted to sRGB through its profile"
        except ValueError:
            pass
    full = int(np.iinfo(pixels.dtype).max)
    light = (full - pixels.astype(np.uint32)) * (full - pixels[:, :, 3:].astype(np.uint32))
    return cast("Pixels", ((light[:, :, :3] + full // 2) // full).astype(pixels.dtype)), (
        "CMYK was converted to sRGB without a profile"
    )

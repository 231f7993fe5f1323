"""Bytes to upright pixels: the header is checked first, and a decoder sees nothing of a file but its picture."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from types import MappingProxyType

import imagecodecs
import numpy as np
import PIL.Image
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from app.codec import colour, containers, exif, gif, heif, jpeg, planes, png, tiff, xmp
from app.codec.decoders import blaming_the_file, load, read_avif_container
from app.codec.formats import sniff
from app.codec.image import Header, Image, Limits, Metadata, Pixels, Resolution, bounded
from app.errors import ImageTooLarge, InvalidImage, UnsupportedFormat

Read = tuple[Pixels, Pixels | None, Metadata, int, tuple[str, ...]]
"""Planes as stored, metadata with its EXIF untouched, orientation, notices."""


def read_header(body: bytes, limits: Limits) -> Header:
    """Format and size of a file, without decoding it.

    Raises:
        InvalidImage: if the file is empty, broken, or ends too early.
        UnsupportedFormat: if the format is none of ``formats.READABLE``, or if the file is animated or has pages.
        ImageTooLarge: if it has more than ``limits.max_pixels`` pixels; with ``limit`` and ``actual``.
    """
    name = sniff(body)
    width, height, frames = _HEADERS[name](body)
    if width < 1 or height < 1:
        raise InvalidImage(f"The {name} file holds no pixels.")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"The image has {width}x{height} pixels; at most {limits.max_pixels} are accepted.",
            limit=limits.max_pixels,
            actual=width * height,
        )
    if frames > 1:
        raise UnsupportedFormat(
            f"The {name} file has {frames} frames or pages; send one picture at a time.", frames=frames
        )
    return Header(name, width, height, frames)


def decode(body: bytes, limits: Limits) -> Image:
    """An upright image with everything that travels beside its pixels.

    Raises:
        InvalidImage: if the file is empty, broken, or truncated.
        UnsupportedFormat: if the format is none of ``formats.READABLE``, or if the file is animated or has pages.
        ImageTooLarge: if it has more than ``limits.max_pixels`` pixels; nothing was decoded.
    """
    header = read_header(body, limits)
    pixels, alpha, metadata, orientation, notices = _READERS[header.format](body, limits)
    if pixels.shape[0] * pixels.shape[1] > limits.max_pixels:
        raise InvalidImage(f"The {header.format} file has another size than its header says.")
    metadata, more = _upright_metadata(metadata, orientation, gray=pixels.shape[2] == 1)
    return Image(
        planes.upright(pixels, orientation),
        None if alpha is None else planes.upright(alpha, orientation),
        header.format,
        metadata,
        (*notices, *more),
    )


def _upright_metadata(metadata: Metadata, orientation: int, *, gray: bool) -> tuple[Metadata, tuple[str, ...]]:
    notices = []
    if metadata.exif is not None:
        if not exif.readable(metadata.exif):
            notices.append("EXIF was broken and was left out")
        metadata = replace(metadata, exif=exif.remove_orientation(metadata.exif))
    if metadata.icc is not None and not colour.fits(metadata.icc, gray=gray):
        notices.append("the ICC profile was broken, or of another kind of image, and was left out")
        metadata = replace(metadata, icc=None)
    if metadata.xmp is not None:
        metadata = replace(metadata, xmp=xmp.reset_orientation(metadata.xmp))
    resolution = metadata.resolution
    if orientation >= 5 and resolution is not None:
        metadata = replace(metadata, resolution=replace(resolution, x=resolution.y, y=resolution.x))
    return metadata, tuple(notices)


def _orientation(metadata: Metadata) -> int:
    return exif.read_orientation(metadata.exif) if metadata.exif is not None else 1


def _planes(picture: PIL.Image.Image, metadata: Metadata) -> tuple[Pixels, Pixels | None, Metadata, tuple[str, ...]]:
    """Planes of a loaded picture; CMYK becomes sRGB."""
    if picture.mode == "CMYK":
        pixels, notice = colour.cmyk_to_srgb(np.asarray(picture), metadata.icc)
        return pixels, None, replace(metadata, icc=None), (notice,)
    of_rgb = metadata.icc is not None and colour.profile_space(metadata.icc) == "RGB"
    return *planes.from_pillow(picture, palette_may_be_gray=not of_rgb), metadata, ()


def _read_png(body: bytes, limits: Limits) -> Read:
    chunks = png.read_chunks(body)
    header = png.read_header(chunks)
    metadata, notices = png.read_metadata(chunks, limits)
    key = next((bytes(content) for kind, content in chunks if kind == b"tRNS"), None)
    if header.kind == 3 or header.bits < 8:
        picture = load(PngImagePlugin.PngImageFile, png.picture_only(chunks, palette=header.kind == 3), "png")
        pixels, alpha, metadata, _ = _planes(picture, metadata)
    else:
        with blaming_the_file("png"):
            samples = imagecodecs.png_decode(png.picture_only(chunks, palette=False))
        pixels, alpha = planes.split(samples)
    if key is not None and header.kind in (0, 2) and len(key) == 2 * pixels.shape[2]:
        full = 2**header.bits - 1
        step = max(255 // full, 1)
        values = struct.unpack(f">{len(key) // 2}H", key)
        alpha = planes.key_alpha(pixels, tuple((value & full) * step for value in values))
    return pixels, alpha, metadata, _orientation(metadata), notices


def _read_jpeg(body: bytes, limits: Limits) -> Read:
    segments = jpeg.read_segments(body)
    metadata, notices = jpeg.read_metadata(segments, limits)
    picture = load(JpegImagePlugin.JpegImageFile, jpeg.picture_only(segments), "jpeg")
    pixels, alpha, metadata, more = _planes(picture, metadata)
    return pixels, alpha, metadata, _orientation(metadata), (*notices, *more)


def _read_tiff(body: bytes, limits: Limits) -> Read:
    picture = tiff.read_picture(body)
    metadata, orientation, left_out = tiff.read_metadata(picture, limits)
    samples, colours = tiff.decode(picture, limits)
    if picture.further_samples:
        left_out = (*left_out, "channels that are neither colour nor alpha were left out")
    if isinstance(samples, PIL.Image.Image):
        pixels, alpha, metadata, notices = _planes(samples, metadata)
        return pixels, alpha, metadata, orientation, (*left_out, *notices)
    if colours == 4:
        pixels, notice = colour.cmyk_to_srgb(samples[:, :, :4], metadata.icc)
        alpha = samples[:, :, 4] if samples.shape[2] == 5 else None
        return pixels, alpha, replace(metadata, icc=None), orientation, (*left_out, notice)
    return *planes.split(samples), metadata, orientation, left_out


def _read_webp(body: bytes, limits: Limits) -> Read:
    picture = load(WebPImagePlugin.WebPImageFile, body, "webp")
    metadata, left_out = exif.read_packets(picture.info, limits)
    pixels, alpha, metadata, notices = _planes(picture, metadata)
    return pixels, alpha, metadata, _orientation(metadata), (*left_out, *notices)


def _read_avif(body: bytes, limits: Limits) -> Read:
    container = read_avif_container(body)
    metadata, notices = exif.read_packets(container.packets, limits)
    description = containers.colour_description(body)
    if description is not None and metadata.icc is None:
        metadata = replace(metadata, png_colour=((b"cICP", description),))
    with blaming_the_file("avif"):  # not by Pillow, which makes 8 bits of 10 and 12
        samples = imagecodecs.avif_decode(body, numthreads=1)
    samples = planes.widen(samples, containers.bits_per_sample(body))
    return *planes.split(samples), metadata, container.orientation, notices


def _read_bmp(body: bytes, limits: Limits) -> Read:
    picture = load(BmpImagePlugin.BmpImageFile, body, "bmp")
    notices: list[str] = []
    icc = bounded(containers.bmp_profile(body), "an ICC profile", limits, notices)
    dpi = picture.info.get("dpi")
    resolution = Resolution(dpi[0] / 0.0254, dpi[1] / 0.0254) if dpi and min(dpi) > 0 else None
    pixels, alpha, metadata, _ = _planes(picture, Metadata(icc, resolution=resolution))
    return pixels, alpha, metadata, 1, tuple(notices)


def _read_gif(body: bytes, limits: Limits) -> Read:
    metadata, notices = gif.read_metadata(body, limits)
    pixels, alpha, metadata, _ = _planes(load(GifImagePlugin.GifImageFile, body, "gif"), metadata)
    return pixels, alpha, metadata, 1, notices


def _png_header(body: bytes) -> tuple[int, int, int]:
    header = png.read_header(png.read_chunks(body))
    return header.width, header.height, header.frames


def _jpeg_header(body: bytes) -> tuple[int, int, int]:
    segments = jpeg.read_segments(body)
    return segments.width, segments.height, 1


def _tiff_header(body: bytes) -> tuple[int, int, int]:
    picture = tiff.read_picture(body)
    return *picture.size, picture.frames


def _avif_header(body: bytes) -> tuple[int, int, int]:
    container = read_avif_container(body)
    return container.width, container.height, container.frames


def _bmp_header(body: bytes) -> tuple[int, int, int]:
    with blaming_the_file("bmp"):
        return *BmpImagePlugin.BmpImageFile(BytesIO(body)).size, 1


_HEADERS: Mapping[str, Callable[[bytes], tuple[int, int, int]]] = MappingProxyType(
    {
        "png": _png_header,
        "jpeg": _jpeg_header,
        "webp": containers.webp_header,
        "tiff": _tiff_header,
        "avif": _avif_header,
        "bmp": _bmp_header,
        "gif": gif.read_header,
        "heif": heif.read_header,
    }
)

_READERS: Mapping[str, Callable[[bytes, Limits], Read]] = MappingProxyType(
    {
        "png": _read_png,
        "jpeg": _read_jpeg,
        "webp": _read_webp,
        "tiff": _read_tiff,
        "avif": _read_avif,
        "bmp": _read_bmp,
        "gif": _read_gif,
        "heif": heif.read,
    }
)

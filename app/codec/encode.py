"""Encodes images, with notices on what a format could not hold."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from types import MappingProxyType

import PIL.Image

from app.codec import color, exif, jpeg_segments, jxl, planes, png_chunks, png_writer, tiff_writer, xmp
from app.codec.errors import InvalidEncodeOption
from app.codec.formats import WRITABLE, Format, check_output, output_format
from app.codec.image import Encoded, EncodeOptions, Image, Metadata
from app.codec.texts import comment_of

_FULL_CHROMA_QUALITY = 90
_WITHOUT_IPTC = ("webp", "avif", "jxl")
"""Formats that hold EXIF and XMP, but neither IPTC nor a resolution."""
_LOSSLESS_WEBP = MappingProxyType({"method": 1, "quality": 20})
"""Effort, not quality: on an upscaled photo as small as the most thorough setting, in a fifth of its time."""
_AVIF_SPEED = 9
"""A fifth of the time of Pillow's default, 6, with an eighth more bytes of the same PSNR."""

Written = tuple[bytes, tuple[str, ...]]


def encode(image: Image, options: EncodeOptions) -> Encoded:
    """Write a file, with a notice on everything that the format could not hold.

    Raises:
        InvalidEncodeOption: if an option has an invalid value.
        TooLargeForFormat: if the format cannot hold the size.
    """
    _check(options)
    format_ = WRITABLE[output_format(options.format, image.format)]
    check_output(format_.name, image.width, image.height)
    if options.metadata == "strip":
        image = replace(color.to_srgb(image), metadata=Metadata())
    image, notices = _fit(_sized(image), format_)
    body, more = _WRITERS[format_.name](image, options)
    return Encoded(body, format_.media_type, format_.extension, tuple(dict.fromkeys((*notices, *more))))


def _check(options: EncodeOptions) -> None:
    if not 1 <= options.quality <= 100:
        raise InvalidEncodeOption("quality has to be 1 to 100.")
    if options.metadata not in ("keep", "strip"):
        raise InvalidEncodeOption("metadata has to be keep or strip.")
    if not 0 <= options.png_level <= 9:
        raise InvalidEncodeOption("The PNG level has to be 0 to 9.")


def _sized(image: Image) -> Image:
    """The image with its size in EXIF and XMP updated."""
    block, packet = image.metadata.exif, image.metadata.xmp
    if block is not None:
        block = exif.resize(block, image.width, image.height)
    if packet is not None:
        packet = xmp.resize(packet, image.width, image.height)
    return replace(image, metadata=replace(image.metadata, exif=block, xmp=packet))


def _fit(image: Image, format_: Format) -> tuple[Image, tuple[str, ...]]:
    """The image as the format can hold it, and notices on what was lost."""
    notices = list(image.notices)
    if image.alpha is not None and not format_.alpha:
        notices.append(f"{format_.name} has no transparency: it was flattened on white")
        image = replace(image, pixels=planes.flatten(image.pixels, image.alpha), alpha=None)
    gray = image.gray and (format_.gray if image.alpha is None else format_.gray_alpha)
    if format_.name != "png":
        image, more = _without_chunks(image, format_, gray=gray)
        notices.extend(more)
    profile = image.metadata.icc
    if profile is not None and image.gray and gray != (color.profile_space(profile) == "GRAY"):
        image = color.to_srgb(image)
        notices.append(f"{format_.name} cannot hold gray with such a profile: it was converted to sRGB")
    if image.deep and not format_.deep:
        notices.append(f"{format_.name} has 8 bits: 16 were reduced to 8")
        alpha = None if image.alpha is None else planes.to_eight_bits(image.alpha)
        image = replace(image, pixels=planes.to_eight_bits(image.pixels), alpha=alpha)
    return image, tuple(notices)


def _without_chunks(image: Image, format_: Format, *, gray: bool) -> tuple[Image, tuple[str, ...]]:
    """Convert metadata in PNG's own chunks to the forms of other formats."""
    metadata = image.metadata
    notices = []
    texts = tuple(text for text in metadata.texts if format_.name == "jpeg" and comment_of(text) is not None)
    if texts != metadata.texts:
        notices.append(f"{format_.name} cannot hold texts and comments: they were left out")
    lost = color.lost_color(metadata, gray=gray)
    description = color.cicp(metadata) or b""
    profile: bytes | None
    kept: tuple[tuple[bytes, bytes], ...]
    if lost is not None and format_.cicp and description[3]:
        profile, kept = None, ((b"cICP", description),)
    else:
        profile, kept = color.described_profile(metadata, gray=gray), ()
        if lost is not None:
            notices.append(f"{format_.name} cannot express that {lost}")
        elif description and profile is not None and color.is_rare(description):
            notices.append(f"the colours' description (cICP {description[0]}/{description[1]}) became an ICC profile")
    if {b"mDCV", b"cLLI"} & dict(metadata.png_color).keys():
        notices.append(f"{format_.name} cannot hold light levels (mDCV, cLLI): they were left out")
    image = replace(image, metadata=replace(metadata, icc=profile, png_color=kept, texts=texts))
    if metadata.photoshop is not None and format_.name in _WITHOUT_IPTC:
        notices.append(f"{format_.name} cannot hold IPTC: it was left out")
    if metadata.resolution is not None and format_.name in _WITHOUT_IPTC:
        if metadata.exif is None:
            image = replace(image, metadata=replace(image.metadata, exif=exif.resolution_block(metadata.resolution)))
        elif exif.read_resolution(metadata.exif) is None:
            notices.append(f"{format_.name} cannot hold a resolution that EXIF does not state: it was left out")
    return image, tuple(notices)


def _write_png(image: Image, options: EncodeOptions) -> Written:
    body = png_writer.encode(planes.join(image.pixels, image.alpha), options.png_level)
    return png_chunks.insert(body, png_chunks.metadata_chunks(image.metadata)), ()


def _write_tiff(image: Image, _options: EncodeOptions) -> Written:
    samples = planes.join(image.pixels, image.alpha)
    return tiff_writer.encode(samples, image.metadata, alpha=image.alpha is not None), ()


def _write_jpeg(image: Image, options: EncodeOptions) -> Written:
    full = options.quality >= _FULL_CHROMA_QUALITY
    body = _save(image, "JPEG", quality=options.quality, subsampling="4:4:4" if full else "4:2:0")
    return jpeg_segments.insert(body, image.metadata)


def _write_webp(image: Image, options: EncodeOptions) -> Written:
    mode: dict[str, object] = {"quality": options.quality}
    if options.quality == 100:
        mode = {"lossless": True, **_LOSSLESS_WEBP}
    return _save(image, "WEBP", exact=True, **mode, **_packets(image.metadata)), ()


def _write_avif(image: Image, options: EncodeOptions) -> Written:
    gray = image.gray and image.alpha is None
    chroma = "4:0:0" if gray else "4:4:4" if options.quality >= _FULL_CHROMA_QUALITY else "4:2:0"
    mode = {"quality": options.quality, "subsampling": chroma, "speed": _AVIF_SPEED, "max_threads": 1}
    body = _save(image, "AVIF", **mode, **_packets(image.metadata))
    description = color.cicp(image.metadata)
    return (body if description is None else _with_description(body, description)), ()


def _with_description(body: bytes, description: bytes) -> bytes:
    """An AVIF with the primaries and transfer of cICP in place of those that Pillow writes."""
    at = body.index(b"colrnclx") + 8
    return body[:at] + struct.pack(">HH", description[0], description[1]) + body[at + 4 :]


def _write_jxl(image: Image, options: EncodeOptions) -> Written:
    pixels = image.pixels.repeat(3, axis=2) if image.gray else image.pixels
    return jxl.encode(planes.join(pixels, image.alpha), image.metadata, options.quality), ()


def _packets(metadata: Metadata) -> dict[str, bytes]:
    packets = {"icc_profile": metadata.icc, "exif": metadata.exif, "xmp": metadata.xmp}
    return {name: packet for name, packet in packets.items() if packet is not None}


def _save(image: Image, name: str, **options: object) -> bytes:
    samples = planes.join(image.pixels, image.alpha)
    stream = BytesIO()
    PIL.Image.fromarray(samples).save(stream, name, **options)
    return stream.getvalue()


_WRITERS: Mapping[str, Callable[[Image, EncodeOptions], Written]] = MappingProxyType(
    {
        "png": _write_png,
        "jpeg": _write_jpeg,
        "webp": _write_webp,
        "tiff": _write_tiff,
        "avif": _write_avif,
        "jxl": _write_jxl,
    }
)

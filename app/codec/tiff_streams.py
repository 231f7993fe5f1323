"""Decodes TIFF's strips and tiles.

Decoders get a new directory that contains only known, checked tags, appended to the file, instead of the file's own.
Pillow's libtiff decodes grays of 1 to 4 bits and palettes. It would reduce 16 bits to 8, and knows few kinds of planes,
so samples of whole bytes are shown to it as gray of 8 bits: the compressions do not know the difference, and the
predictor is undone here. YCbCr and old-style JPEG go through libtiff's conversion to RGB, and rare depths and
compressions through tifffile.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, cast

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from app.codec import jpeg, tiff_samples
from app.codec import tiff_tags as tags
from app.codec.decoders import blaming_the_file
from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.ifd import (
    DirectoryError,
    Layout,
    Value,
    copied_value,
    integer_value,
    pack_directory,
    pack_header,
)
from app.codec.image import DecodeLimits
from app.codec.jpeg_scans import FILLER
from app.codec.tiff_picture import TiffPicture

_MAX_SAMPLES = 16
_MAX_PIXEL_BYTES = 10
"""Of the largest pixel there is: CMYK and alpha in 16 bits."""
_BROKEN = "The TIFF is broken or truncated; send the whole file."

Samples = tuple[PIL.Image.Image | NDArray[Any], int]
"""A picture loaded by Pillow and 0, or (H,W,C) and how many of C are colours."""


def decode(picture: TiffPicture, limits: DecodeLimits) -> Samples:
    """The samples of a picture.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
        UnsupportedImage: if its samples are floats, or of a kind or a compression that is not read.
    """
    try:
        _check_kind(picture)
        if picture.number(tags.COMPRESSION, 1) == tags.OLD_JPEG:
            return _decode_old_jpeg(picture, limits)
        _check_extent(picture, limits)
        return _decoder_of(picture)(picture)
    except DirectoryError as error:
        raise BrokenImage(_BROKEN) from error


def _check_kind(picture: TiffPicture) -> None:
    if picture.directory.broken & tags.PICTURE:
        raise DirectoryError("values outside the file")
    compression, photometric = picture.number(tags.COMPRESSION, 1), picture.photometric
    if compression not in tags.BY_LIBTIFF | tags.BY_TIFFFILE | {tags.OLD_JPEG}:
        raise UnsupportedImage(f"This TIFF has the compression {compression}, which is not supported.")
    formats = set(picture.numbers(tags.SAMPLE_FORMAT, (1,)))
    if formats - {1, 4}:
        kind = "floating-point" if 3 in formats else "signed"
        raise UnsupportedImage(
            f"This TIFF has {kind} samples, which are not supported; send whole numbers of 8 or 16 bits."
        )
    if not picture.colors:
        raise UnsupportedImage(
            f"This TIFF has samples of the kind {photometric}, which is not supported; send gray, RGB or CMYK."
        )
    samples = picture.samples
    if not picture.colors <= samples <= _MAX_SAMPLES:
        raise UnsupportedImage(f"This TIFF has {samples} samples a pixel, which is not supported.")
    if len(set(picture.depths)) > 1:
        raise UnsupportedImage("This TIFF has samples of several depths (bits), which is not supported.")


def _check_extent(picture: TiffPicture, limits: DecodeLimits) -> None:
    width, height = picture.size
    offsets, counts = picture.streams
    rows, columns = picture.tile
    area = -(-width // columns) * columns * -(-height // rows) * rows
    if area > 4 * limits.max_pixels + 2**22:
        raise DirectoryError("tiles far larger than the picture")
    bits = picture.samples * picture.bits
    if area * bits > 8 * (_MAX_PIXEL_BYTES * limits.max_pixels + 2**22):
        raise DirectoryError("more samples than any real picture")
    if any(offset + count > len(picture.body) for offset, count in zip(offsets, counts, strict=True)):
        raise DirectoryError("strips or tiles outside the file")


def _decoder_of(picture: TiffPicture) -> Any:  # noqa: ANN401 - one of the functions below
    compression, bits = picture.number(tags.COMPRESSION, 1), picture.bits
    by_bytes = compression in tags.BYTE_STREAMS and picture.number(tags.PREDICTOR, 1) <= 2
    if picture.photometric == tags.YCBCR and compression != tags.JPEG:
        return _decode_as_rgb
    if compression == tags.JPEG and bits == 8 and picture.photometric != tags.PALETTE:
        return _decode_jpeg
    if by_bytes and picture.photometric != tags.PALETTE and bits in (8, 16):
        return _decode_bytes
    if compression in tags.FAX:
        return _decode_fax
    if by_bytes and bits in (1, 2, 4, 8) and picture.samples == 1:
        return _decode_by_pillow
    if compression in tags.BY_TIFFFILE:
        return _decode_rare
    raise UnsupportedImage(
        "This TIFF has samples of a kind that is not supported; send 8 or 16 bits of gray, RGB or CMYK."
    )


def _structure(picture: TiffPicture) -> dict[int, Value]:
    """The tags that decoders need, corrected: tiles under their own tags, and colour maps of 16 bits."""
    offsets, counts = picture.streams
    found = {tag for tag in picture.directory.entries if tag in tags.PICTURE}
    found -= {tags.OFFSETS, tags.COUNTS, tags.TILE_OFFSETS, tags.TILE_COUNTS}
    values = {tag: _value(picture, tag) for tag in found}
    places = (tags.TILE_OFFSETS, tags.TILE_COUNTS) if picture.tiled else (tags.OFFSETS, tags.COUNTS)
    for tag, numbers in zip(places, (offsets, counts), strict=True):
        values[tag] = integer_value(picture.layout, tag, numbers)
    return values


def _value(picture: TiffPicture, tag: int) -> Value:
    if tag in tags.COPIED:
        return copied_value(picture.body, picture.directory.entries[tag])
    numbers = picture.numbers(tag, (0,))
    if tag == tags.COLOR_MAP and max(numbers) < 256:  # written with 8 bits; libtiff's tools scale it too
        numbers = tuple(number * 257 for number in numbers)
    return integer_value(picture.layout, tag, numbers if tag in tags.LISTS else numbers[:1])


def _file(picture: TiffPicture, values: Mapping[int, Value], streams: bytes = b"") -> bytes:
    """The file with a new directory, and further streams before it; BigTIFF becomes classic."""
    layout = Layout(picture.layout.order)
    end = len(picture.body) + len(streams)
    packed, position = pack_directory(layout, values.values(), end + end % 2)
    header = pack_header(layout, position)
    return b"".join((header, memoryview(picture.body)[len(header) :], streams, bytes(end % 2), packed))


def _load(body: bytes) -> TiffImagePlugin.TiffImageFile:
    with blaming_the_file("tiff"):
        try:
            loaded = TiffImagePlugin.TiffImageFile(BytesIO(body))
        except SyntaxError as error:
            raise UnsupportedImage(f"This TIFF's samples or fill order are not supported ({error}).") from error
        loaded.load()
    return loaded


def _decode_by_pillow(picture: TiffPicture) -> Samples:
    return _load(_file(picture, _structure(picture))), 0


def _decode_fax(picture: TiffPicture) -> Samples:
    """Decode fax strips, also with filler after them, because libtiff fills missing rows with white."""
    values = _structure(picture)
    loaded = _load(_file(picture, values))
    offsets, counts = picture.streams
    streams, places = bytearray(), []
    for offset, count in zip(offsets, counts, strict=True):
        places.append(len(picture.body) + len(streams))
        streams += picture.body[offset : offset + count] + FILLER
    layout = Layout(picture.layout.order)
    longer = tuple(count + len(FILLER) for count in counts)
    tagged = (tags.TILE_OFFSETS, tags.TILE_COUNTS) if picture.tiled else (tags.OFFSETS, tags.COUNTS)
    for tag, numbers in zip(tagged, (tuple(places), longer), strict=True):
        values[tag] = integer_value(layout, tag, numbers)
    if not np.array_equal(np.asarray(loaded), np.asarray(_load(_file(picture, values, bytes(streams))))):
        raise BrokenImage(_BROKEN)
    return loaded, 0


def _decode_jpeg(picture: TiffPicture) -> Samples:
    """JPEG strips or tiles, each checked for missing data, as libjpeg only warns."""
    shared = picture.packet(tags.JPEG_TABLES) or b""
    for offset, count in zip(*picture.streams, strict=True):
        stream = picture.body[offset : offset + count]
        jpeg.check_complete(stream[:2] + shared[2:-2] + stream[2:])
    return _decode_by_pillow(picture)


def _decode_as_rgb(picture: TiffPicture) -> Samples:
    """YCbCr through libtiff's conversion, which applies subsampling, coefficients and reference black and white."""
    if picture.bits != 8 or picture.samples != 3:
        raise UnsupportedImage("This TIFF has YCbCr of other than 3 samples of 8 bits, which is not supported.")
    subsampled = picture.numbers(tags.SUBSAMPLING, (2, 2)) != (1, 1)
    if subsampled and picture.separate:
        raise UnsupportedImage("This TIFF has subsampled YCbCr in separate planes, which is not supported.")
    if picture.number(tags.COMPRESSION, 1) == tags.NONE:
        _check_raw_ycbcr(picture)
    return _by_libtiff(picture, _structure(picture)), 3


def _check_raw_ycbcr(picture: TiffPicture) -> None:
    """Whether uncompressed strips or tiles are as long as their pixels need."""
    across, down = picture.numbers(tags.SUBSAMPLING, (2, 2))[:2]
    if not across or not down:
        raise DirectoryError("impossible subsampling")
    _, height = picture.size
    rows, columns = picture.tile
    if picture.separate:
        return
    offsets, _ = picture.streams
    for number, offset in enumerate(offsets):
        lines = rows if picture.tiled else min(rows, height - number * rows)
        need = -(-columns // across) * -(-lines // down) * (across * down + 2)
        if offset + need > len(picture.body):
            raise DirectoryError("strips or tiles outside the file")


def _decode_old_jpeg(picture: TiffPicture, limits: DecodeLimits) -> Samples:
    """Decode JPEG as in TIFF 6.0, which libtiff assembles from a whole file or from tables and scans."""
    width, height = picture.size
    values = {
        tag: _value(picture, tag)
        for tag in picture.directory.entries
        if tag in tags.PICTURE | tags.OLD_JPEG_TAGS and tag not in picture.directory.broken
    }
    start, length = picture.number(tags.OLD_JPEG_START), picture.number(tags.OLD_JPEG_LENGTH)
    if start and length:
        if start + length > len(picture.body):
            raise DirectoryError("a JPEG outside the file")
        stream = picture.body[start : start + length]
        if stream[:2] == b"\xff\xd8" and b"\xff\xda" in stream:
            jpeg.check_complete(stream)
    if tags.OFFSETS in values or tags.TILE_OFFSETS in values:
        _check_extent(picture, limits)
    elif not start:
        raise DirectoryError("no strips")
    if width * height > limits.max_pixels:
        raise DirectoryError("another size than the header's")
    return _by_libtiff(picture, values), 3


def _by_libtiff(picture: TiffPicture, values: Mapping[int, Value]) -> NDArray[Any]:
    """(H,W,3) of 8 bits."""
    with blaming_the_file("tiff"):
        rgba = imagecodecs.tiff_decode(_file(picture, values), asrgb=True)
    return np.ascontiguousarray(rgba[:, :, :3])


def _decode_bytes(picture: TiffPicture) -> Samples:
    """Samples of 8 or 16 bits, (H,W,C), each interleaved or in planes of their own."""
    samples = picture.samples
    offsets, counts = picture.streams
    if picture.separate:
        size = len(offsets) // samples
        slices = [slice(number * size, (number + 1) * size) for number in range(samples)]
        stored = np.concatenate([_read_streams(picture, offsets[s], counts[s], 1) for s in slices], axis=2)
    else:
        stored = _read_streams(picture, offsets, counts, samples)
    return tiff_samples.channels(picture, stored)


def _read_streams(
    picture: TiffPicture, offsets: tuple[int, ...], counts: tuple[int, ...], samples: int
) -> NDArray[Any]:
    """(H,W,samples) of interleaved samples of whole bytes, which libtiff takes for rows of bytes."""
    width, height = picture.size
    sample = np.dtype(f"{picture.layout.order}u{picture.bits // 8}")
    rows, columns = picture.tile
    across = -(-width // columns)
    stored = -(-height // rows) * rows if picture.tiled else height
    numbers: dict[int, tuple[int, ...]] = {
        tags.WIDTH: (across * columns * samples * sample.itemsize,),
        tags.HEIGHT: (stored,),
        tags.BITS: (8,),
        tags.COMPRESSION: (picture.number(tags.COMPRESSION, 1),),
        tags.PHOTOMETRIC: (tags.BLACK_IS_ZERO,),
        tags.SAMPLES: (1,),
        tags.FILL_ORDER: (picture.number(tags.FILL_ORDER, 1),),
    }
    if picture.tiled:
        numbers |= {tags.TILE_OFFSETS: offsets, tags.TILE_COUNTS: counts}
        numbers |= {tags.TILE_WIDTH: (columns * samples * sample.itemsize,), tags.TILE_HEIGHT: (rows,)}
    else:
        numbers |= {tags.OFFSETS: offsets, tags.COUNTS: counts, tags.ROWS: (rows,)}
    values = {tag: integer_value(picture.layout, tag, each) for tag, each in numbers.items()}
    stream = np.asarray(_load(_file(picture, values))).view(sample).astype(sample.newbyteorder("="))
    tiles = stream.reshape(stored, across, columns, samples)
    if picture.number(tags.PREDICTOR, 1) == 2:
        tiles = np.add.accumulate(tiles, axis=2, dtype=tiles.dtype)
    return np.ascontiguousarray(tiles.reshape(stored, across * columns, samples)[:height, :width])


def _decode_rare(picture: TiffPicture) -> Samples:
    """Decode depths and compressions that libtiff does not support, with tifffile: (H,W,C) of 8 or 16 bits."""
    bits, (width, height) = picture.bits, picture.size
    values = _structure(picture)
    with blaming_the_file("tiff"), tifffile.TiffFile(BytesIO(_file(picture, values))) as file:
        page = cast("tifffile.TiffPage", file.pages[0])
        if page.dtype is None or page.dtype.kind != "u":
            raise UnsupportedImage("This TIFF has samples of a kind that is not supported; send 8 or 16 bits.")
        stored = np.asarray(page.asarray(maxworkers=1))
    samples = picture.samples
    if stored.size != width * height * samples:
        raise BrokenImage(_BROKEN)
    shape = (samples, height, width) if picture.separate else (height, width, samples)
    stored = stored.reshape(shape)
    stored = stored.transpose(1, 2, 0) if picture.separate else stored
    if picture.photometric == tags.PALETTE:
        return tiff_samples.with_palette(picture, stored), 3
    return tiff_samples.channels(picture, np.ascontiguousarray(tiff_samples.widened(stored, bits)))

"""TIFF: read strictly and handed to libtiff in a form that it cannot misread; written with EXIF as it came.

Pillow reads 16-bit colour as 8-bit, libvips 8.18 returns wrong pixels for a truncated or an unknown stream, and
tifffile fails in ways that no caller can name. So the directory is read here, and libtiff (through Pillow) sees a new
one of nothing but known, checked tags. Samples of 16 bits are shown to it as twice as many of 8: the compressions do
not know the difference, and the predictor is undone here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from app.codec import planes
from app.codec.decoders import blaming_the_file
from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.exif import ORIENTATION, directory_resolution, extract
from app.codec.ifd import (
    Directory,
    DirectoryError,
    Layout,
    Value,
    copied_value,
    directories,
    integer_value,
    integers,
    pack_directory,
    pack_header,
    read_layout,
)
from app.codec.image import DecodeLimits, Metadata, bounded

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SUBFILE, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR, _PREDICTOR = 254, 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
_XMP, _PHOTOSHOP, _ICC = 700, 34377, 34675
_PICTURE = frozenset(
    (
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR, _PREDICTOR),
        *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _SAMPLE_FORMAT),
        *(266, 292, 293, 320, 332, 347, 529, 530, 531, 532),
    )
)
_COPIED = frozenset((347, 529, 532))
_SCALARS = _PICTURE - {_BITS, _OFFSETS, _COUNTS, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _SAMPLE_FORMAT, 320, 530}
_BYTE_STREAMS = frozenset((1, 5, 8, 32946, 32773, 34925, 50000))
_COMPRESSIONS = _BYTE_STREAMS | {2, 3, 4, 6, 7}
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples that are not alpha, by the kind of picture."""
_MAX_PAGES = 256
_MAX_SAMPLES = 16
_MAX_PIXEL_BYTES = 10
"""Of the largest pixel there is: CMYK and alpha in 16 bits."""
_SEPARATE, _CMYK = 2, 5
_REDUCED_OR_MASK = 0b101
_LOSES_DEPTH = "samples of a kind that is not read here; send 8 or 16 bits of gray, RGB or CMYK"


@dataclass(frozen=True)
class TiffPicture:
    """The one picture of a file, checked: its strips or tiles lie within the file."""

    body: bytes
    layout: Layout
    directory: Directory
    frames: int

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of a tag."""
        entry = self.directory.entries.get(tag)
        return default if entry is None or not entry.count else integers(self.body, self.layout, entry)

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return self.numbers(tag, (default,))[0]

    def packet(self, tag: int) -> bytes | None:
        """The bytes of a tag, if there are any."""
        entry = self.directory.entries.get(tag)
        return None if entry is None else self.body[entry.start : entry.start + entry.size] or None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.number(_WIDTH), self.number(_HEIGHT)

    @property
    def photometric(self) -> int:
        """TIFF's number of the kind of picture, 1 (black is zero) where it is missing or impossible."""
        return self._number_or(_PHOTOMETRIC, 1)

    @property
    def bits(self) -> int:
        """Bits of the deepest sample, 1 where it is missing or impossible."""
        return self._number_or(_BITS, 1)

    def _number_or(self, tag: int, default: int) -> int:
        try:
            return max(self.numbers(tag, (default,)))
        except DirectoryError:
            return default

    @property
    def colors(self) -> int:
        """Samples of a pixel that are colours; 0 for kinds that are not known here."""
        return _COLORS.get(self.number(_PHOTOMETRIC, 1), 0)

    @property
    def has_alpha(self) -> bool:
        """Whether the sample behind the colours is transparency."""
        return self.number(_SAMPLES, 1) > self.colors and self.number(_EXTRA) in (1, 2)

    @property
    def further_samples(self) -> bool:
        """Whether there are samples that are neither colours nor transparency."""
        return self.number(_SAMPLES, 1) > self.colors + self.has_alpha

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile; strips are tiles as wide as the picture."""
        width, height = self.size
        if _TILE_OFFSETS in self.directory.entries:
            return self.number(_TILE_HEIGHT), self.number(_TILE_WIDTH)
        return min(self.number(_ROWS, height), height), width

    @property
    def streams(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offsets and lengths of the strips or tiles."""
        tiled = _TILE_OFFSETS in self.directory.entries
        return self.numbers(_TILE_OFFSETS if tiled else _OFFSETS), self.numbers(_TILE_COUNTS if tiled else _COUNTS)


def read_picture(body: bytes) -> TiffPicture:
    """Find the picture, and count the pages; reduced copies and masks do not count.

    Raises:
        BrokenImage: if the file is broken.
    """
    try:
        layout, first = read_layout(body)
        chosen, frames = None, 0
        for page in islice(directories(body, layout, first), _MAX_PAGES):
            picture = TiffPicture(body, layout, page, 1)
            whole = not picture.number(_SUBFILE) & _REDUCED_OR_MASK
            frames += whole
            chosen = picture if chosen is None or (whole and frames == 1) else chosen
        has_size = chosen is not None and all(chosen.size)
    except DirectoryError as error:
        raise BrokenImage("The TIFF is broken or truncated; send the whole file.") from error
    if chosen is None or not has_size:
        raise BrokenImage("The TIFF holds no picture.")
    return replace(chosen, frames=max(frames, 1))


def read_metadata(picture: TiffPicture, limits: DecodeLimits) -> tuple[Metadata, int, tuple[str, ...]]:
    """Everything kept beside the pixels, the orientation, and notices on what is too large."""
    notices: list[str] = []
    try:
        orientation = picture.number(ORIENTATION, 1)
    except DirectoryError:
        orientation = 1
    try:
        resolution = directory_resolution(picture.body, picture.layout, picture.directory)
    except DirectoryError:
        resolution = None
    try:
        block = extract(picture.body, picture.layout, picture.directory, limits.max_profile_bytes)
    except DirectoryError:
        block = None
        notices.append(f"EXIF of more than {limits.max_profile_bytes} bytes was left out")
    metadata = Metadata(
        icc=bounded(picture.packet(_ICC), "an ICC profile", limits, notices),
        exif=block,
        xmp=bounded(picture.packet(_XMP), "XMP", limits, notices),
        photoshop=bounded(picture.packet(_PHOTOSHOP), "IPTC", limits, notices),
        resolution=resolution,
    )
    return metadata, orientation if 1 <= orientation <= 8 else 1, tuple(notices)


def decode(picture: TiffPicture, limits: DecodeLimits) -> tuple[TiffImagePlugin.TiffImageFile | NDArray[Any], int]:
    """The samples: a picture loaded by Pillow where it knows the kind, else (H,W,C); and how many of C are colours.

    Raises:
        BrokenImage: if the file is broken.
        UnsupportedImage: if its samples are floats, or have a depth or a compression that is not read here.
    """
    try:
        _check(picture, limits)
        bits = set(picture.numbers(_BITS, (1,)))
        if picture.number(_COMPRESSION, 1) not in _COMPRESSIONS:
            raise UnsupportedImage(f"This TIFF has the compression {picture.number(_COMPRESSION)}, not read here.")
        if set(picture.numbers(_SAMPLE_FORMAT, (1,))) - {1, 4} or picture.number(_PREDICTOR, 1) > 2:
            raise UnsupportedImage(f"This TIFF has {_LOSES_DEPTH}.")
        if bits == {16} or (bits == {8} and picture.colors == 4 and picture.has_alpha):
            return _decode_streams(picture)
        if max(bits) > 8:
            raise UnsupportedImage(f"This TIFF has {_LOSES_DEPTH}.")
        return _load(picture, [_structure(picture, tag) for tag in picture.directory.entries if tag in _PICTURE]), 0
    except DirectoryError as error:
        raise BrokenImage("The TIFF is broken or truncated; send the whole file.") from error


def _check(picture: TiffPicture, limits: DecodeLimits) -> None:
    if picture.directory.broken & _PICTURE:
        raise DirectoryError("values outside the file")
    width, height = picture.size
    rows, columns = picture.tile
    offsets, counts = picture.streams
    if not rows or not columns:
        raise DirectoryError("empty tiles")
    across, down = -(-width // columns), -(-height // rows)
    area = across * columns * down * rows
    if area > 4 * limits.max_pixels + 2**22:
        raise DirectoryError("tiles far larger than the picture")
    bits = picture.number(_SAMPLES, 1) * max(picture.numbers(_BITS, (1,)))
    if area * bits > 8 * (_MAX_PIXEL_BYTES * limits.max_pixels + 2**22):
        raise DirectoryError("more samples than any real picture")
    each = picture.number(_SAMPLES, 1) if picture.number(_PLANAR, 1) == _SEPARATE else 1
    if not len(offsets) == len(counts) == across * down * each:
        raise DirectoryError("a wrong number of strips or tiles")
    if any(offset + count > len(picture.body) for offset, count in zip(offsets, counts, strict=True)):
        raise DirectoryError("strips or tiles outside the file")


def _structure(picture: TiffPicture, tag: int) -> Value:
    if tag in _COPIED:
        return copied_value(picture.body, picture.directory.entries[tag])
    numbers = picture.numbers(tag, (0,))
    return integer_value(picture.layout, tag, numbers[:1] if tag in _SCALARS else numbers)


def _load(picture: TiffPicture, values: list[Value]) -> TiffImagePlugin.TiffImageFile:
    """Let libtiff decode the file's streams by a directory of ours, appended to the file; BigTIFF becomes classic."""
    at = len(picture.body) + len(picture.body) % 2
    layout = Layout(picture.layout.order)
    packed, position = pack_directory(layout, values, at)
    header = pack_header(layout, position)
    body = b"".join((header, memoryview(picture.body)[len(header) :], bytes(len(picture.body) % 2), packed))
    with blaming_the_file("tiff"):
        try:
            loaded = TiffImagePlugin.TiffImageFile(BytesIO(body))
        except SyntaxError as error:
            raise UnsupportedImage(f"This TIFF has {_LOSES_DEPTH}.") from error
        loaded.load()
    return loaded


def _decode_streams(picture: TiffPicture) -> tuple[NDArray[Any], int]:
    samples, colors, kind = picture.number(_SAMPLES, 1), picture.colors, picture.number(_PHOTOMETRIC, 1)
    known = kind in (0, 1, 2, _CMYK) and picture.number(_COMPRESSION, 1) in _BYTE_STREAMS
    if not known or not colors <= samples <= _MAX_SAMPLES:
        raise UnsupportedImage(f"This TIFF has {_LOSES_DEPTH}.")
    if picture.number(_PLANAR, 1) == _SEPARATE:
        offsets, counts = picture.streams
        size = len(offsets) // samples
        slices = [slice(number * size, (number + 1) * size) for number in range(samples)]
        stored = np.concatenate([_read_streams(picture, offsets[s], counts[s], 1) for s in slices], axis=2)
    else:
        stored = _read_streams(picture, *picture.streams, samples)
    if kind == 0:
        stored[:, :, 0] = np.invert(stored[:, :, 0])
    if picture.has_alpha:
        pixels, alpha = stored[:, :, :colors], stored[:, :, colors]
        pixels = planes.without_premultiplication(pixels, alpha) if picture.number(_EXTRA) == 1 else pixels
        return np.concatenate((pixels, alpha[:, :, None]), axis=2), colors
    return stored[:, :, :colors], colors


def _read_streams(
    picture: TiffPicture, offsets: tuple[int, ...], counts: tuple[int, ...], samples: int
) -> NDArray[Any]:
    """(H,W,samples) of interleaved samples of whole bytes, which libtiff takes for rows of bytes."""
    width, height = picture.size
    sample = np.dtype(f"{picture.layout.order}u{picture.number(_BITS) // 8}")
    rows, columns = picture.tile
    tiled = _TILE_OFFSETS in picture.directory.entries
    across = -(-width // columns)
    stored = -(-height // rows) * rows if tiled else height
    tags = {
        _WIDTH: (across * columns * samples * sample.itemsize,),
        _HEIGHT: (stored,),
        _BITS: (8,),
        _COMPRESSION: (picture.number(_COMPRESSION, 1),),
        _PHOTOMETRIC: (1,),
        _SAMPLES: (1,),
        266: (picture.number(266, 1),),
        _TILE_OFFSETS if tiled else _OFFSETS: offsets,
        _TILE_COUNTS if tiled else _COUNTS: counts,
    }
    shape = {_TILE_WIDTH: (columns * samples * sample.itemsize,), _TILE_HEIGHT: (rows,)} if tiled else {_ROWS: (rows,)}
    values = [integer_value(picture.layout, tag, numbers) for tag, numbers in (tags | shape).items()]
    stream = np.asarray(_load(picture, values)).view(sample).astype(sample.newbyteorder("="))
    tiles = stream.reshape(stored, across, columns, samples)
    if picture.number(_PREDICTOR, 1) == 2:
        tiles = np.add.accumulate(tiles, axis=2, dtype=tiles.dtype)
    return np.ascontiguousarray(tiles.reshape(stored, across * columns, samples)[:height, :width])

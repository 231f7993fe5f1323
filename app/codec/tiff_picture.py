"""The picture of a TIFF file: its directory, read strictly, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from app.codec import tiff_tags as tags
from app.codec.errors import BrokenImage
from app.codec.exif import ORIENTATION, directory_resolution, extract, loses_maker_note
from app.codec.ifd import (
    Directory,
    DirectoryError,
    Layout,
    directories,
    integers,
    read_layout,
)
from app.codec.image import DecodeLimits, Metadata, bounded

_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples that are not alpha, by the kind of picture."""
_MAX_PAGES = 256
_REDUCED_OR_MASK = 0b101


@dataclass(frozen=True)
class TiffPicture:
    """The picture of a file. Its strips or tiles lie within the file. Invalid tags raise DirectoryError."""

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
        """The bytes of a tag, if the file has it."""
        entry = self.directory.entries.get(tag)
        return None if entry is None else self.body[entry.start : entry.start + entry.size] or None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.number(tags.WIDTH), self.number(tags.HEIGHT)

    @property
    def photometric(self) -> int:
        """TIFF's number of the kind of picture, 1 (black is zero) if it is missing."""
        return self.number(tags.PHOTOMETRIC, 1)

    @property
    def samples(self) -> int:
        """Samples of a pixel; if the tag is missing, as many as there are depths."""
        return self.number(tags.SAMPLES) or max(1, len(self.numbers(tags.BITS)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Bits of each sample; further values of the tag do not count."""
        return self.numbers(tags.BITS, (1,))[: self.samples]

    @property
    def bits(self) -> int:
        """Bits of the deepest sample, 1 if it is missing."""
        return max(self.depths)

    @property
    def colors(self) -> int:
        """Samples of a pixel that are colours; 0 for unknown kinds."""
        return _COLORS.get(self.photometric, 0)

    @property
    def has_alpha(self) -> bool:
        """Whether the sample behind the colours is transparency; a fourth of RGB is, if no tag names it."""
        named = self.numbers(tags.EXTRA)
        if not named:
            return self.photometric == tags.RGB and self.samples == 4
        return self.samples > self.colors and named[0] in (1, 2)

    @property
    def further_samples(self) -> bool:
        """Whether there are samples that are neither colours nor transparency."""
        return self.samples > self.colors + self.has_alpha

    @property
    def tiled(self) -> bool:
        """Whether there are tiles. Some writers put their offsets into the tags of strips."""
        sized = {tags.TILE_WIDTH, tags.TILE_HEIGHT} <= self.directory.entries.keys()
        return tags.TILE_OFFSETS in self.directory.entries or sized

    @property
    def separate(self) -> bool:
        """Whether each sample has strips or tiles of its own."""
        return self.number(tags.PLANAR, 1) == tags.SEPARATE and self.samples > 1

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile; strips are tiles as wide as the picture."""
        width, height = self.size
        if self.tiled:
            return self.number(tags.TILE_HEIGHT), self.number(tags.TILE_WIDTH)
        return min(self.number(tags.ROWS, height) or height, height), width

    @property
    def streams(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offsets and lengths of the strips or tiles; lengths that a file does not state are computed.

        Raises:
            DirectoryError: if there are too few, or their lengths cannot be known.
        """
        offsets = self.numbers(tags.TILE_OFFSETS) or self.numbers(tags.OFFSETS)
        counts = self.numbers(tags.TILE_COUNTS) or self.numbers(tags.COUNTS)
        needed = self._needed_streams()
        if len(offsets) < needed:
            raise DirectoryError("too few strips or tiles")
        offsets = offsets[:needed]
        if len(counts) < needed or not all(counts[:needed]):
            return offsets, self._computed_counts(offsets, counts)
        return offsets, counts[:needed]

    def _needed_streams(self) -> int:
        width, height = self.size
        rows, columns = self.tile
        if not rows or not columns:
            raise DirectoryError("empty tiles")
        return -(-width // columns) * -(-height // rows) * (self.samples if self.separate else 1)

    def _computed_counts(self, offsets: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
        if self.number(tags.COMPRESSION, 1) != tags.NONE:
            if len(offsets) == 1 and not any(counts):  # to the end of the file, as in libtiff
                return (len(self.body) - offsets[0],)
            raise DirectoryError("strips or tiles without a length")
        _, height = self.size
        rows, columns = self.tile
        samples = 1 if self.separate else self.samples
        line = -(-columns * samples * self.bits // 8)
        if self.tiled:
            return (line * rows,) * len(offsets)
        down = -(-height // rows)
        return tuple(line * min(rows, height - number % down * rows) for number in range(len(offsets)))


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
            whole = not picture.number(tags.SUBFILE) & _REDUCED_OR_MASK
            frames += whole
            chosen = picture if chosen is None or (whole and frames == 1) else chosen
        has_size = chosen is not None and all(chosen.size)
    except DirectoryError as error:
        raise BrokenImage("The TIFF is broken or truncated; send the whole file.") from error
    if chosen is None or not has_size:
        raise BrokenImage("The TIFF contains no image.")
    return replace(chosen, frames=max(frames, 1))


def read_metadata(picture: TiffPicture, limits: DecodeLimits) -> tuple[Metadata, int, tuple[str, ...]]:
    """The metadata, the orientation, and notices on what is too large."""
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
    if loses_maker_note(picture.body, picture.layout, picture.directory):
        notices.append("the maker note of EXIF was left out: its offsets count from the start of the TIFF")
    metadata = Metadata(
        icc=bounded(picture.packet(tags.ICC), "an ICC profile", limits, notices),
        exif=block,
        xmp=bounded(picture.packet(tags.XMP), "XMP", limits, notices),
        photoshop=bounded(picture.packet(tags.PHOTOSHOP), "IPTC", limits, notices),
        resolution=resolution,
    )
    return metadata, orientation if 1 <= orientation <= 8 else 1, tuple(notices)

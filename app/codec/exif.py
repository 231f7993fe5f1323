"""EXIF blocks, edited in place, because maker notes contain offsets and break when a block is rewritten."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from app.codec.ifd import (
    CLASSIC_TYPES,
    Directory,
    DirectoryError,
    Layout,
    TagEntry,
    Value,
    copied_value,
    integer_value,
    integers,
    pack_directory,
    pack_header,
    rationals,
    read_directory,
    read_layout,
)
from app.codec.image import DecodeLimits, Metadata, Resolution, bounded

ORIENTATION = 0x0112
_SIZES = ((0x0100, 0x0101), (0xA002, 0xA003))
_EXIF_POINTER = 0x8769
_POINTERS = (_EXIF_POINTER, 0x8825, 0xA005)
STRUCTURAL = frozenset(
    (
        *range(254, 260), 262, 263, 264, 265, 266, 273, ORIENTATION, *range(277, 282), 284, *range(288, 294), 297, 301,
        317, 320, 321, *range(322, 326), 330, 332, 333, 334, 336, *range(338, 343), 347, *range(512, 522),
        *range(529, 533), 700, 32995, 32996, 32997, 34377, 34675, 37724, 50255,
    )
)  # fmt: skip
"""Tags of a TIFF directory that describe its own pixels, or that are kept elsewhere."""
_SHORT, _LONG = 3, 4
_MAKER_NOTE = 0x927C
_MOVABLE_NOTES = (
    b"Nikon\0\2",
    b"FUJIFILM",
    b"OLYMPUS\0",
    b"OM SYSTEM\0",
    b"Apple iOS\0",
    b"PENTAX \0",
    b"SIGMA\0",
    b"GE\0",
)
"""First bytes of notes whose offsets count from their own start (ExifTool, MakerNotes.pm)."""


def strip_prefix(block: bytes) -> bytes:
    """The TIFF structure of an EXIF payload that may begin with ``Exif`` and two zeros."""
    return block[6:] if block[:4] == b"Exif" else block


def read_packets(found: Mapping[Any, Any], limits: DecodeLimits) -> tuple[Metadata, tuple[str, ...]]:
    """Profile, EXIF and XMP as Pillow names them, and notices on those that are too large."""
    notices: list[str] = []
    icc, block, packet = (
        bounded(bytes(found[key]) if found.get(key) else None, name, limits, notices)
        for key, name in (("icc_profile", "an ICC profile"), ("exif", "EXIF"), ("xmp", "XMP"))
    )
    return Metadata(icc, strip_prefix(block) if block else None, packet), tuple(notices)


def read_orientation(block: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 if it is missing or invalid."""
    try:
        layout, first = read_layout(block)
        entry = read_directory(block, layout, first, cut=True).entries.get(ORIENTATION)
        value = integers(block, layout, entry)[0] if entry and entry.count else 1
    except DirectoryError:
        return 1
    return value if 1 <= value <= 8 else 1


def first_readable(blocks: Iterable[bytes]) -> bytes | None:
    """The first valid block; if there is none, the first that is not empty, so that a notice reports its loss."""
    found = [block for block in blocks if block]
    return next((block for block in found if readable(block)), found[0] if found else None)


def orientation_of(block: bytes | None) -> int:
    """The orientation of a block that may be missing."""
    return 1 if block is None else read_orientation(block)


def read_resolution(block: bytes) -> Resolution | None:
    """The resolution that a block states, if it does."""
    try:
        layout, first = read_layout(block)
        return directory_resolution(block, layout, read_directory(block, layout, first, cut=True))
    except DirectoryError:
        return None


def readable(block: bytes) -> bool:
    """Whether this is an EXIF block."""
    try:
        layout, first = read_layout(block)
        read_directory(block, layout, first, cut=True)
    except DirectoryError:
        return False
    return not layout.big


def directory_resolution(block: bytes | memoryview, layout: Layout, directory: Directory) -> Resolution | None:
    """The resolution that a TIFF directory states.

    Raises:
        DirectoryError: if its tags have invalid types.
    """
    x, y = (directory.entries.get(tag) for tag in (0x011A, 0x011B))
    unit = directory.entries.get(0x0128)
    metres = {2: 0.0254, 3: 0.01}.get(integers(block, layout, unit)[0] if unit and unit.count else 2)
    if x is None or y is None or not x.count or not y.count:
        return None
    across, down = rationals(block, layout, x)[0], rationals(block, layout, y)[0]
    if across <= 0 or down <= 0:
        return None
    return Resolution(across / metres, down / metres) if metres else Resolution(across, down, per_metre=False)


def remove_orientation(block: bytes) -> bytes | None:
    """The block without its orientation; None if nothing else was in it, or it is not EXIF.

    A thumbnail that is not upright is removed too, and so are entries that point outside the block, because other
    readers fail on them.
    """
    try:
        layout, first = read_layout(block)
        directory = read_directory(block, layout, first, cut=True)
    except DirectoryError:
        return None
    kept = [entry.at for tag, entry in directory.entries.items() if tag != ORIENTATION]
    if layout.big or not kept:
        return None
    start = directory.at + layout.count.size
    end = directory.end
    following = layout.offset.pack(directory.next if read_orientation(block) == 1 else 0)
    table = b"".join(block[at : at + layout.stride] for at in kept) + following
    head = block[: directory.at] + layout.count.pack(len(kept))
    return head + table.ljust(end + layout.offset.size - start, b"\0") + block[end + layout.offset.size :]


def resize(block: bytes, width: int, height: int) -> bytes:
    """The block with its width and height tags, where it has them, set to the image's."""
    try:
        layout, first = read_layout(block)
        directory = read_directory(block, layout, first, cut=True)
        found = [directory]
        pointer = directory.entries.get(_EXIF_POINTER)
        if pointer is not None and pointer.count:
            found.append(read_directory(block, layout, integers(block, layout, pointer)[0], cut=True))
    except DirectoryError:
        return block
    edited = bytearray(block)
    for directory in found:
        for tags in _SIZES:
            for tag, value in zip(tags, (width, height), strict=True):
                entry = directory.entries.get(tag)
                if entry is not None and entry.count == 1 and entry.kind in (_SHORT, _LONG):
                    # A single number is stored in the entry itself, which can hold the longer type.
                    struct.pack_into(layout.order + "HHII", edited, entry.at, tag, _LONG, 1, value)
    return bytes(edited)


def extract(file: bytes, layout: Layout, directory: Directory, limit: int) -> bytes | None:
    """An EXIF block with the tags of a TIFF file, without its orientation and structure.

    Values move, so a maker's note that counts from the start of its file is left out, see ``loses_maker_note``.

    Raises:
        DirectoryError: if one of its directories has more than ``limit`` bytes of values.
    """
    kept = Layout(layout.order)
    block = bytearray(pack_header(kept, 8))
    values = _copy(file, layout, directory, kept, block, limit=limit, depth=0)
    if not values:
        return None
    packed, position = pack_directory(kept, values, len(block))
    block += packed
    struct.pack_into(kept.order + "I", block, 4, position)
    return bytes(block)


def loses_maker_note(file: bytes, layout: Layout, directory: Directory) -> bool:
    """Whether ``extract`` leaves out a maker's note, because its offsets count from the start of the file."""
    try:
        pointer = directory.entries.get(_EXIF_POINTER)
        found = [directory]
        if pointer is not None and pointer.count:
            found.append(read_directory(file, layout, integers(file, layout, pointer)[0], cut=True))
    except DirectoryError:
        return False
    notes = [each.entries[_MAKER_NOTE] for each in found if _MAKER_NOTE in each.entries]
    return any(not _moves_well(file, note) for note in notes)


def _moves_well(file: bytes, note: TagEntry) -> bool:
    """Whether a maker's note counts its offsets from itself; of unknown makers only what is too short to hold any."""
    content = bytes(file[note.start : note.start + min(note.size, 16)])
    return content.startswith(_MOVABLE_NOTES) or note.size < 14


def _copy(
    file: bytes, layout: Layout, directory: Directory, kept: Layout, block: bytearray, *, limit: int, depth: int
) -> list[Value]:
    values = []
    for entry in directory.entries.values():
        if depth == 0 and entry.tag in STRUCTURAL:
            continue
        limit -= entry.size
        if limit < 0:
            raise DirectoryError("more than any real EXIF")
        if entry.tag == _MAKER_NOTE and not _moves_well(file, entry):
            continue
        if entry.tag not in _POINTERS and entry.kind in CLASSIC_TYPES:
            values.append(copied_value(file, entry))
        elif entry.tag in _POINTERS and depth < 2 and entry.count:
            try:
                nested = read_directory(file, layout, integers(file, layout, entry)[0])
            except DirectoryError:
                continue
            inner = _copy(file, layout, nested, kept, block, limit=limit, depth=depth + 1)
            if inner:
                packed, position = pack_directory(kept, inner, len(block))
                block += packed + bytes(len(packed) % 2)
                values.append(integer_value(kept, entry.tag, (position,)))
    return values


def resolution_block(resolution: Resolution) -> bytes:
    """The smallest EXIF block with a resolution, for formats that have no other field for it."""
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value)
        for tag, kind, value in (
            (0x011A, 5, 50),
            (0x011B, 5, 58),
            (0x0128, _SHORT, 2 if resolution.per_metre else 1),
        )
    )
    values = b"".join(pack_rational("<", value) for value in resolution.in_inches)
    return b"II*\0\x08\0\0\0\x03\0" + entries + bytes(4) + values


def pack_rational(order: str, value: float) -> bytes:
    """A positive number as TIFF's fraction; whole numbers stay exact."""
    scale = next((scale for scale in (1, 100, 10_000) if abs(value * scale - round(value * scale)) < 1e-6), 10_000)
    top = min(round(value * scale), 2**32 - 1)
    return struct.pack(order + "II", max(top, 1), scale)

"""The directories of a TIFF structure, which EXIF blocks are too: read strictly and within limits."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["<", ">"]

WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value, by TIFF's number of its type."""

CLASSIC_TYPES = frozenset(range(1, 14))
"""Types that classic TIFF, and so EXIF, knows."""

_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
MAX_ENTRIES = 4096
MAX_VALUES = 2**20


class DirectoryError(ValueError):
    """A directory points outside its file, or is larger than any real one."""


@dataclass(frozen=True)
class Layout:
    """How offsets and counts are stored: byte order, and classic TIFF or BigTIFF."""

    order: ByteOrder
    big: bool = False

    @property
    def count(self) -> struct.Struct:
        """The number of entries."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, number of values; the value or its offset follows."""
        return struct.Struct(self.order + ("HHQ" if self.big else "HHI"))

    @property
    def offset(self) -> struct.Struct:
        """A position in the file."""
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def stride(self) -> int:
        """Bytes of one entry."""
        return self.entry.size + self.offset.size


@dataclass(frozen=True)
class TagEntry:
    """One tag: ``at`` is where its entry stands, ``start`` where its values stand."""

    tag: int
    kind: int
    count: int
    at: int
    start: int

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return WIDTHS[self.kind] * self.count


@dataclass(frozen=True)
class Directory:
    """Entries by tag, and the tags whose values lie outside the block, on top of each other, or are of no known type.

    ``at`` is where the directory stands, ``next`` the position of the one that follows, or 0, ``end`` where its entries
    end.
    """

    at: int
    entries: dict[int, TagEntry]
    broken: frozenset[int]
    next: int
    end: int


def read_layout(block: bytes | memoryview) -> tuple[Layout, int]:
    """Byte order and the position of the first directory.

    Raises:
        DirectoryError: if this is no TIFF structure.
    """
    head = bytes(block[:16])
    order: ByteOrder = "<" if head[:2] == b"II" else ">"
    if head[:2] not in (b"II", b"MM") or len(head) < 8:
        raise DirectoryError("no TIFF header")
    version = struct.unpack_from(order + "H", head, 2)[0]
    if version == 42:
        return Layout(order), struct.unpack_from(order + "I", head, 4)[0]
    if version == 43 and len(head) == 16 and struct.unpack_from(order + "HH", head, 4) == (8, 0):
        return Layout(order, big=True), struct.unpack_from(order + "Q", head, 8)[0]
    raise DirectoryError("no TIFF header")


def read_directory(block: bytes | memoryview, layout: Layout, at: int, *, cut: bool = False) -> Directory:
    """The directory at a position. The offset of the next one may be missing at the end of the block, and is 0 then.

    Args:
        block: the file or EXIF block.
        layout: its byte order.
        at: the position.
        cut: accept a directory whose last entries are missing.

    Raises:
        DirectoryError: if the directory itself does not lie within the block.
    """
    start = at + layout.count.size
    if at < 8 or start > len(block):
        raise DirectoryError("a directory lies outside the file")
    count = layout.count.unpack_from(block, at)[0]
    held = (len(block) - start) // layout.stride
    if not 0 < count <= MAX_ENTRIES or not held or (count > held and not cut):
        raise DirectoryError("a directory has an invalid number of entries")
    end = start + min(count, held) * layout.stride
    entries: dict[int, TagEntry] = {}
    broken = set()
    room = len(block)
    for position in range(start, end, layout.stride):
        tag, entry = _read_entry(block, layout, position)
        room -= entry.size if entry is not None else 0
        if entry is None or room < 0:  # otherwise a few bytes could describe gigabytes
            broken.add(tag)
        else:
            entries.setdefault(tag, entry)
    linked = count <= held and end + layout.offset.size <= len(block)
    return Directory(at, entries, frozenset(broken), layout.offset.unpack_from(block, end)[0] if linked else 0, end)


def _read_entry(block: bytes | memoryview, layout: Layout, at: int) -> tuple[int, TagEntry | None]:
    tag, kind, count = layout.entry.unpack_from(block, at)
    if kind not in WIDTHS:
        return tag, None
    start = at + layout.entry.size
    if WIDTHS[kind] * count > layout.offset.size:
        start = layout.offset.unpack_from(block, start)[0]
    entry = TagEntry(tag, kind, count, at, start)
    return tag, entry if start + entry.size <= len(block) else None


def directories(block: bytes | memoryview, layout: Layout, first: int) -> Iterator[Directory]:
    """Every directory of the chain, each once.

    Raises:
        DirectoryError: if one lies outside the block, or if the chain is a loop.
    """
    seen: set[int] = set()
    at = first
    while at:
        if at in seen or len(seen) >= MAX_ENTRIES:
            raise DirectoryError("the directories form a loop")
        seen.add(at)
        directory = read_directory(block, layout, at)
        yield directory
        at = directory.next


def integers(block: bytes | memoryview, layout: Layout, entry: TagEntry) -> tuple[int, ...]:
    """The values of an entry of whole numbers. Some writers use signed types for what cannot be negative.

    Raises:
        DirectoryError: if they are of another type, negative, or too many.
    """
    if entry.kind not in _INTEGERS or entry.count > MAX_VALUES:
        raise DirectoryError(f"tag {entry.tag} has an invalid type or length")
    values = struct.unpack_from(f"{layout.order}{entry.count}{_INTEGERS[entry.kind]}", block, entry.start)
    if min(values, default=0) < 0:
        raise DirectoryError(f"tag {entry.tag} is negative")
    return values


def rationals(block: bytes | memoryview, layout: Layout, entry: TagEntry) -> tuple[float, ...]:
    """The values of an entry of fractions; one over zero counts as zero.

    Raises:
        DirectoryError: if they are of another type, or too many.
    """
    if entry.kind not in (5, 10) or entry.count > 64:
        raise DirectoryError(f"tag {entry.tag} has an invalid type or length")
    terms = struct.unpack_from(f"{layout.order}{entry.count * 2}{'I' if entry.kind == 5 else 'i'}", block, entry.start)
    return tuple(top / bottom if bottom else 0.0 for top, bottom in zip(terms[::2], terms[1::2], strict=True))


@dataclass(frozen=True)
class Value:
    """One tag to be written; ``raw`` holds all values in the file's byte order."""

    tag: int
    kind: int
    count: int
    raw: bytes


def integer_value(layout: Layout, tag: int, values: tuple[int, ...]) -> Value:
    """Whole numbers as SHORT where they all fit, else as LONG.

    Raises:
        DirectoryError: if they need more than 32 bits.
    """
    if max(values) >= 2**32:
        raise DirectoryError(f"tag {tag} is too large")
    kind = 3 if max(values) < 2**16 else 4
    return Value(tag, kind, len(values), struct.pack(f"{layout.order}{len(values)}{_INTEGERS[kind]}", *values))


def copied_value(block: bytes | memoryview, entry: TagEntry) -> Value:
    """An entry as it stands; offsets among its values still count from the block it came from."""
    return Value(entry.tag, entry.kind, entry.count, bytes(block[entry.start : entry.start + entry.size]))


def pack_directory(layout: Layout, values: Iterable[Value], at: int) -> tuple[bytes, int]:
    """A directory, the last of its chain, with its values before it.

    Args:
        layout: of a classic file.
        values: at least one, each tag once.
        at: the position of the result in the file; even.

    Returns:
        The bytes, and the directory's own position.
    """
    assert at % 2 == 0, "TIFF aligns directories and values to words"
    packed = bytearray()
    entries = []
    for value in sorted(values, key=lambda value: value.tag):
        slot = value.raw
        if len(slot) > layout.offset.size:
            slot = layout.offset.pack(at + len(packed))
            packed += value.raw + bytes(len(value.raw) % 2)
        entries.append(layout.entry.pack(value.tag, value.kind, value.count) + slot.ljust(layout.offset.size, b"\0"))
    position = at + len(packed)
    packed += layout.count.pack(len(entries)) + b"".join(entries) + bytes(layout.offset.size)
    return bytes(packed), position


def pack_header(layout: Layout, first: int) -> bytes:
    """The beginning of a classic file whose first directory is at ``first``."""
    return (b"II" if layout.order == "<" else b"MM") + struct.pack(layout.order + "HI", 42, first)

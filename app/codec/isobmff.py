"""The boxes of AVIF and HEIF (ISO 14496-12, ISO 23008-12): items, what they depend on, and where their data is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.codec.errors import BrokenImage

_MAX_BOXES, _MAX_ITEMS, _MAX_EXTENTS = 4096, 65_536, 2**17
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:avc:2015:auxid:1")
_DEPTH = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth", b"urn:mpeg:hevc:2015:auxid:2", b"urn:mpeg:avc:2015:auxid:2")
DERIVED = frozenset((b"grid", b"iden", b"iovl", b"tmap"))
_IN_FILE, _IN_IDAT = 0, 1


@dataclass
class Item:
    """One item of the file: its type, the extents of its data, and its properties.

    Args:
        kind: four bytes, such as ``hvc1``, ``av01``, ``grid``, ``Exif``.
        construction: 0 if offsets count from the start of the file, 1 from the start of ``idat``.
        extents: (offset, length); a length of 0 goes to the end.
        properties: (type, content) of each property, in order.
        references: item numbers by type of reference, such as ``dimg`` and ``auxl``.
    """

    kind: bytes = b""
    construction: int = _IN_FILE
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)

    def find(self, kind: bytes) -> bytes | None:
        """The first property of a type."""
        return next((content for name, content in self.properties if name == kind), None)


@dataclass
class Container:
    """The items of a file by number, and the number of the primary one.

    Args:
        size: bytes of the file.
        primary: number of the item that is the picture.
        items: by number.
        idat: start and end of the box that holds data of small items.
        apertures: start and end of the content of each clean aperture (``clap``).
        tracks: whether the file has a film or an image sequence.
    """

    size: int
    primary: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    idat: tuple[int, int] | None = None
    apertures: list[tuple[int, int]] = field(default_factory=list)
    tracks: bool = False

    @property
    def picture(self) -> Item:
        """The primary item; an empty one if the file has none."""
        return self.items.get(self.primary, Item())

    def sources(self, number: int) -> set[int]:
        """The item and everything that it is derived from."""
        found: set[int] = set()
        waiting = [number]
        while waiting:
            at = waiting.pop()
            if at not in found and at in self.items:
                found.add(at)
                waiting.extend(self.items[at].references.get(b"dimg", ()))
        return found

    def coding(self) -> set[bytes]:
        """Types of the coded items that the picture is made of, such as ``hvc1``."""
        return {self.items[number].kind for number in self.sources(self.primary)} - DERIVED

    def auxiliaries(self) -> dict[int, bytes]:
        """Number and URN of each auxiliary picture of the primary item."""
        found = {}
        for number, item in self.items.items():
            urn = item.find(b"auxC")
            if urn is not None and self.primary in item.references.get(b"auxl", ()):
                found[number] = urn[4:].split(b"\0", 1)[0]
        return found

    def missing_data(self) -> bool:
        """Whether the file ends before the data of the picture, its tiles or its alpha plane does."""
        needed = self.sources(self.primary)
        for number, urn in self.auxiliaries().items():
            if urn in _ALPHA:
                needed |= self.sources(number)
        return any(self._is_cut(self.items[number]) for number in needed)

    def _is_cut(self, item: Item) -> bool:
        derived = bool(item.references.get(b"dimg"))
        if item.construction == _IN_IDAT:
            start, end = self.idat or (0, 0)
        elif item.construction == _IN_FILE:
            start, end = 0, self.size
        else:
            return False
        if not item.extents:
            return not derived
        return any(start + offset + max(length, 1) > end for offset, length in item.extents)

    def left_out(self) -> list[str]:
        """Notices on auxiliary and further pictures that are not read."""
        notices = []
        urns = [urn for urn in self.auxiliaries().values() if urn not in _ALPHA]
        gain = any(b"gainmap" in urn.lower() for urn in urns) or any(i.kind == b"tmap" for i in self.items.values())
        if gain:
            notices.append("a gain map (HDR) was left out")
        if any(urn in _DEPTH or b"depth" in urn.lower() or b"disparity" in urn.lower() for urn in urns):
            notices.append("a depth map was left out")
        if any(not _is_named(urn) for urn in urns):
            notices.append("further pictures in the file (auxiliary planes) were left out")
        return notices


def _is_named(urn: bytes) -> bool:
    return urn in _DEPTH or any(word in urn.lower() for word in (b"gainmap", b"depth", b"disparity"))


def read_container(body: bytes) -> Container:
    """The items of a file.

    Raises:
        BrokenImage: if the boxes are damaged.
    """
    container = Container(len(body))
    try:
        for kind, start, end in _boxes(body, 0, len(body)):
            if kind == b"meta":
                _read_meta(body, start + 4, end, container)
            elif kind == b"moov":
                container.tracks = True
    except (struct.error, IndexError) as error:
        raise BrokenImage("The file's boxes are damaged or truncated; send the whole file.") from error
    return container


def _boxes(body: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box."""
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", body, at)
        start = at + 8
        if length == 1:
            length, start = struct.unpack_from(">Q", body, at + 8)[0], at + 16
        stop = end if length == 0 else at + length
        if stop < start:
            return
        yield kind, start, min(stop, end)
        at = stop


def _read_meta(body: bytes, at: int, end: int, container: Container) -> None:
    properties: list[tuple[bytes, bytes]] = []
    associations: list[tuple[int, list[int]]] = []
    for kind, start, stop in _boxes(body, at, end):
        if kind == b"pitm":
            container.primary = struct.unpack_from(">I" if body[start] else ">H", body, start + 4)[0]
        elif kind == b"iinf":
            _read_infos(body, start, stop, container)
        elif kind == b"iloc":
            _read_locations(_Cursor(body, start, stop), container)
        elif kind == b"iref":
            _read_references(body, start, stop, container)
        elif kind == b"idat":
            container.idat = start, stop
        elif kind == b"iprp":
            for inner, first, last in _boxes(body, start, stop):
                if inner == b"ipco":
                    places = list(_boxes(body, first, last))
                    properties = [(name, body[a:b]) for name, a, b in places]
                    container.apertures = [(a, b) for name, a, b in places if name == b"clap"]
                elif inner == b"ipma":
                    associations.extend(_read_associations(_Cursor(body, first, last)))
    for number, indices in associations:
        found = [properties[index - 1] for index in indices if 0 < index <= len(properties)]
        container.items.setdefault(number, Item()).properties.extend(found)


def _read_infos(body: bytes, start: int, stop: int, container: Container) -> None:
    head = 6 if body[start] == 0 else 8
    for kind, at, _ in _boxes(body, start + head, stop):
        if kind != b"infe" or body[at] < 2:
            continue
        wide = body[at] >= 3
        number = struct.unpack_from(">I" if wide else ">H", body, at + 4)[0]
        after = at + (10 if wide else 8)
        if len(container.items) < _MAX_ITEMS:
            container.items.setdefault(number, Item()).kind = body[after : after + 4]


class _Cursor:
    """Reads whole numbers of any width, one after the other."""

    def __init__(self, body: bytes, at: int, end: int) -> None:
        self._body, self.at, self.end = body, at, end

    def take(self, width: int) -> int:
        """The next number of ``width`` bytes.

        Raises:
            IndexError: at the end.
        """
        if self.at + width > self.end:
            raise IndexError
        value = int.from_bytes(self._body[self.at : self.at + width])
        self.at += width
        return value


def _read_locations(cursor: _Cursor, container: Container) -> None:
    version = cursor.take(1)
    cursor.take(3)
    offsets, lengths = divmod(cursor.take(1), 16)
    bases, indices = divmod(cursor.take(1), 16)
    left = _MAX_EXTENTS
    for _ in range(cursor.take(2 if version < 2 else 4)):
        number = cursor.take(2 if version < 2 else 4)
        construction = cursor.take(2) & 15 if version else _IN_FILE
        cursor.take(2)
        base = cursor.take(bases)
        item = container.items.setdefault(number, Item())
        item.construction = construction
        for _ in range(cursor.take(2)):
            left -= 1
            if left < 0:
                raise BrokenImage("The file has more extents than any real one.")
            if version:
                cursor.take(indices)
            offset, length = cursor.take(offsets), cursor.take(lengths)
            item.extents.append((base + offset, length))


def _read_references(body: bytes, start: int, stop: int, container: Container) -> None:
    width = 4 if body[start] else 2
    for kind, at, end in _boxes(body, start + 4, stop):
        cursor = _Cursor(body, at, end)
        source = cursor.take(width)
        targets = [cursor.take(width) for _ in range(cursor.take(2))]
        container.items.setdefault(source, Item()).references.setdefault(kind, []).extend(targets)


def _read_associations(cursor: _Cursor) -> Iterator[tuple[int, list[int]]]:
    version, flags = cursor.take(1), cursor.take(3)
    for _ in range(cursor.take(4)):
        number = cursor.take(2 if version < 1 else 4)
        wide = flags & 1
        indices = [cursor.take(2) & 0x7FFF if wide else cursor.take(1) & 0x7F for _ in range(cursor.take(1))]
        yield number, indices


def color_description(container: Container) -> bytes | None:
    """The picture's primaries and transfer as the four bytes of cICP; None for sRGB and if it states none."""
    for kind, content in _properties(container):
        if kind == b"colr" and content[:4] == b"nclx" and len(content) >= 10:
            primaries, transfer = struct.unpack_from(">HH", content, 4)
            if (primaries in (1, 2) and transfer in (2, 13)) or max(primaries, transfer) > 255:
                return None
            # Decoded pixels are RGB of the full range, whatever matrix and range the file has.
            return bytes((primaries, transfer, 0, 1))
    return None


def bits_per_sample(container: Container) -> int:
    """Depth of the picture, 8 if it is not stated."""
    for kind, content in _properties(container):
        if kind == b"pixi" and len(content) >= 6:
            return content[5]
        if kind == b"av1C" and len(content) >= 3:
            return 12 if content[2] & 0x20 and content[1] >> 5 == 2 else 10 if content[2] & 0x40 else 8
        if kind == b"hvcC" and len(content) >= 18:
            return 8 + (content[17] & 7)
    return 8


def _properties(container: Container) -> Iterator[tuple[bytes, bytes]]:
    """Of the picture, then of what it is derived from."""
    others = sorted(container.sources(container.primary) - {container.primary})
    for number in (container.primary, *others):
        yield from container.items.get(number, Item()).properties

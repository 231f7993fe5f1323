"""JPEG's entropy-coded scans: their content, and whether any of it is missing.

libjpeg fills what is missing with gray and only warns. So three things are checked here: that every component and
coefficient is sent, that no restart interval is missing, and that no scan ends before its pixels do.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from app.codec.errors import BrokenImage, UnsupportedImage

_MAX_SCANS = 100
"""A decoder processes the whole picture for each scan. Encoders write about twenty at most."""
_MAX_SEGMENTS = 10_000
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""What ends a scan: neither a stuffed byte, nor a restart, nor padding."""
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
_PROGRESSIVE, _ARITHMETIC = frozenset((0xC2, 0xCA)), frozenset((0xC9, 0xCA))
_END, _SCAN, _INTERVAL = 0xD9, 0xDA, 0xDD
_LOSSLESS = 0xC3
FILLER = b"\xaa\x55\xd2\x4b\x95\xb6\x6d\xa9" * 16
"""Bits that a decoder reads only if a scan ends too early. They begin with 1, libjpeg's own filler is 0."""


@dataclass(frozen=True)
class Frame:
    """The frame header (SOF): its marker, the size in pixels, and the sampling factors of each component by its id."""

    marker: int
    width: int
    height: int
    sampling: Mapping[int, tuple[int, int]]

    @property
    def progressive(self) -> bool:
        """Whether coefficients are sent in several scans."""
        return self.marker in _PROGRESSIVE

    @property
    def arithmetic(self) -> bool:
        """Whether it is coded arithmetically. Such a scan may lack its last zero bytes, so only EOI shows its end."""
        return self.marker in _ARITHMETIC

    def units(self, components: Sequence[int]) -> int:
        """How many coded units (MCU) a scan of these components has."""
        own = self.sampling[components[0]]
        units = 1
        for axis, side in enumerate((self.width, self.height)):
            most = max(factors[axis] for factors in self.sampling.values())
            if len(components) > 1:
                units *= ceil(side / (8 * most))
            else:
                units *= ceil(ceil(side * own[axis] / most) / 8)
        return units


@dataclass(frozen=True)
class Scan:
    """One scan: its components, the band of coefficients, the lowest bit that it sends, and where its data ends."""

    components: tuple[int, ...]
    band: tuple[int, int]
    low_bit: int
    interval: int
    start: int
    end: int


def read_frame(marker: int, content: bytes) -> Frame:
    """The frame header of a SOF segment.

    Raises:
        BrokenImage: if it is cut or invalid.
    """
    try:
        _, height, width, count = struct.unpack_from(">BHHB", content)
        sampling = {content[6 + 3 * number]: divmod(content[7 + 3 * number], 16) for number in range(count)}
    except (struct.error, IndexError):
        raise BrokenImage("The JPEG has no frame header.") from None
    if (
        not count
        or len(sampling) != count
        or not all(1 <= factor <= 4 for both in sampling.values() for factor in both)
    ):
        raise BrokenImage("The JPEG's frame header is invalid.")
    return Frame(marker, width, height, sampling)


def read_scans(body: bytes, at: int, interval: int) -> tuple[list[Scan], int, bool]:
    """The scans of a picture whose first begins at ``at``, where the picture ends, and whether an EOI says so.

    Args:
        body: the file.
        at: of the first scan's marker.
        interval: units between restarts, 0 for none; a segment between scans may change it.

    Raises:
        BrokenImage: if a scan's header is cut.
        UnsupportedImage: if there are more scans or segments than in any real file.
    """
    scans: list[Scan] = []
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(body, at)
        if found is None:
            return scans, _end(body), False
        at, marker = found.end(), body[found.end() - 1]
        if marker == _END:
            return scans, at, True
        if marker in _BARE:
            continue
        length = struct.unpack_from(">H", body, at)[0] if at + 2 <= len(body) else 0
        if marker == _INTERVAL and length == 4 and at + 4 <= len(body):
            interval = struct.unpack_from(">H", body, at + 2)[0]
        elif marker == _SCAN:
            if len(scans) == _MAX_SCANS:
                break
            scans.append(_read_scan(body, at, interval))
        at += max(length, 2)
    raise UnsupportedImage(f"This JPEG has more than {_MAX_SCANS} scans; save it anew.")


def _read_scan(body: bytes, at: int, interval: int) -> Scan:
    try:
        length, count = struct.unpack_from(">HB", body, at)
        components = tuple(body[at + 3 + 2 * number] for number in range(count))
        first, last, bits = struct.unpack_from("BBB", body, at + 3 + 2 * count)
    except (struct.error, IndexError):
        raise BrokenImage("The JPEG is broken or truncated; send the whole file.") from None
    found = _MARKER.search(body, at + length)
    end = found.start() if found is not None else _end(body)
    return Scan(components, (first, last), bits & 15, interval, at + length, end)


def _end(body: bytes) -> int:
    """Where a file without EOI ends; half a marker does not count."""
    return len(body) - body.endswith(b"\xff")


def missing_scans(frame: Frame, scans: Sequence[Scan]) -> bool:
    """Whether a component, a coefficient, or the lowest bits of one are in no scan."""
    if not frame.progressive:
        sent = {component for scan in scans for component in scan.components}
        return not frame.sampling.keys() <= sent
    for component in frame.sampling:
        complete: set[int] = set()
        for scan in scans:
            if component in scan.components and scan.low_bit == 0:
                complete.update(range(scan.band[0], scan.band[1] + 1))
        if not set(range(64)) <= complete:
            return True
    return False


def missing_restarts(body: bytes, frame: Frame, scans: Sequence[Scan]) -> bool:
    """Whether the restart markers of a scan are too few, or skip one: then whole intervals are missing."""
    if frame.marker == _LOSSLESS:  # counted in samples
        return False
    for scan in scans:
        known = bool(scan.components) and all(component in frame.sampling for component in scan.components)
        if not scan.interval or not known:
            continue
        expected = -(-frame.units(scan.components) // scan.interval) - 1
        numbers = [match.group()[1] & 7 for match in _RESTART.finditer(body, scan.start, scan.end)]
        if len(numbers) < expected or any(number != at & 7 for at, number in enumerate(numbers[:expected])):
            return True
    return False


def with_filler(body: bytes, scans: Sequence[Scan], first: int, end: int) -> Iterator[bytes | memoryview]:
    """The picture's data from its first scan on, with filler behind each scan.

    A decoder never sees the filler of a complete scan, so a picture that changes was incomplete.
    """
    view, at = memoryview(body), first
    for scan in scans:
        yield view[at : scan.end]
        yield FILLER
        at = scan.end
    yield view[at:end]

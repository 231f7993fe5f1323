"""Reads BMP, including the kinds that Pillow does not support: any bit masks, 2 bits, RLE24."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.codec.bmp_rle import decode_rle
from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Mode, Resolution, bounded

_CORE = 12
_SIZES = frozenset((_CORE, 16, 40, 52, 56, 64, 108, 124))
_RGB, _RLE8, _RLE4, _BITFIELDS, _RLE24, _ALPHA_BITFIELDS = 0, 1, 2, 3, 4, 6
_OTHERS = {4: "a JPEG inside", 5: "a PNG inside", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
_MASKS_16, _MASKS_32 = (0x7C00, 0x3E0, 0x1F, 0), (0xFF0000, 0xFF00, 0xFF, 0)
_TRUNCATED = "The BMP is truncated; send the whole file."


@dataclass(frozen=True)
class _BmpFile:
    """The content of the headers. Masks are those of red, green, blue and alpha; 0 is no mask."""

    size: int
    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    masks: tuple[int, int, int, int]
    colors: int
    start: int
    metadata: Metadata
    notices: tuple[str, ...]

    @property
    def stride(self) -> int:
        """Bytes of a row, padded to four."""
        return (self.width * self.bits + 31) // 32 * 4

    @property
    def rle(self) -> bool:
        """Whether rows are run-length encoded."""
        return self.compression in (_RLE8, _RLE4) or self.rle24

    @property
    def rle24(self) -> bool:
        """OS/2's run-length encoding of colours."""
        return self.size == 64 and self.compression == _RLE24


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a BMP.

    Raises:
        BrokenImage: if it is damaged, or the file ends before its pixels do.
        UnsupportedImage: if it is of a kind that is not supported.
    """
    try:
        file = _read_headers(body, limits)
    except struct.error:
        raise BrokenImage(_TRUNCATED) from None
    if 0 < file.width * file.height <= limits.max_pixels and not file.rle:
        needed = (file.height - 1) * file.stride + (file.width * file.bits + 7) // 8
        if file.start + needed > len(body):
            raise BrokenImage(_TRUNCATED)
    mode: Mode = "palette" if file.bits <= 8 else "color"
    deep = file.bits in (16, 32) and max(mask.bit_count() for mask in file.masks) > 8
    return Header(
        "bmp",
        file.width,
        file.height,
        mode=mode,
        bits=16 if deep else 8,
        alpha=bool(file.masks[3]) or file.rle,
        parsed=file,
    )


def _read_headers(body: bytes, limits: DecodeLimits) -> _BmpFile:
    start, size = struct.unpack_from("<II", body, 10)
    if size not in _SIZES and not 16 < size < 64:
        raise BrokenImage("The BMP's header is invalid.")
    if size == _CORE:
        width, height, planes, bits = struct.unpack_from("<HHHH", body, 18)
        compression = colors = x = y = 0
    else:
        head = body[18 : 14 + min(size, 40)].ljust(36, b"\0")
        width, height, planes, bits, compression, _, x, y, colors, _ = struct.unpack("<iiHHIIiiII", head)
    if planes != 1 or bits not in (1, 2, 4, 8, 16, 24, 32) or width < 0:
        raise BrokenImage("The BMP's header is invalid.")
    _check_compression(size, bits, compression)
    masks = _read_masks(body, size, bits, compression)
    if bits <= 8:
        colors = min(colors or 2**bits, 256)
    after = 14 + size + (12 if size == 40 and compression == _BITFIELDS else 0)
    if bits <= 8 and start in (0, after):  # some writers leave out the palette
        start = after + colors * (3 if size == _CORE else 4)
    notices: list[str] = []
    icc = bounded(_profile(body), "an ICC profile", limits, notices)
    resolution = Resolution(x, y) if x > 0 and y > 0 else None
    return _BmpFile(
        size, width, abs(height), height < 0, bits, compression, masks, colors, start or after,
        Metadata(icc, resolution=resolution), tuple(notices),
    )  # fmt: skip


def _check_compression(size: int, bits: int, compression: int) -> None:
    if size in (16, 64) and compression == _BITFIELDS:
        raise UnsupportedImage("This BMP has Huffman coding (OS/2), which is not supported; save it uncompressed.")
    if size == 64 and compression == _RLE24 and bits == 24:
        return
    if compression in _OTHERS:
        raise UnsupportedImage(f"This BMP has {_OTHERS[compression]}, which is not supported; save it as a PNG.")
    allowed = {
        _RGB: (1, 2, 4, 8, 16, 24, 32), _RLE8: (8,), _RLE4: (4,), _BITFIELDS: (16, 32), _ALPHA_BITFIELDS: (16, 32),
    }  # fmt: skip
    if bits not in allowed.get(compression, ()):
        raise BrokenImage("The BMP's header is invalid.")


def _read_masks(body: bytes, size: int, bits: int, compression: int) -> tuple[int, int, int, int]:
    if bits not in (16, 32):
        return 0, 0, 0, 0
    if compression == _RGB:
        return _MASKS_16 if bits == 16 else _MASKS_32
    with_alpha = size >= 56 or compression == _ALPHA_BITFIELDS
    found = struct.unpack_from("<4I" if with_alpha else "<3I", body, 14 + 40)
    red, green, blue, alpha = (*found, 0)[:4]
    for mask in (red, green, blue, alpha):
        low = mask & -mask
        if mask and (mask + low) & mask:
            raise UnsupportedImage("This BMP has bit masks with gaps, which is not supported; save it as a PNG.")
    if (
        max(found) >= 2**bits
        or not red | green | blue
        or (red & green) | (green & blue) | (red & blue) | (alpha & (red | green | blue))
    ):
        raise BrokenImage("The BMP's bit masks are invalid.")
    return red, green, blue, alpha


def read(body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of a BMP. Pixels that run-length encoding skips are transparent, as in browsers.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _BmpFile = header.parsed
    alpha = None
    if file.rle:
        samples, drawn = decode_rle(body, file.start, file.width, file.height, file.bits)
        pixels = samples if file.rle24 else _palette(body, file)[samples[:, :, 0]]
        if not drawn.all():
            alpha = drawn.astype(np.uint8) * np.uint8(255)
    elif file.bits <= 8:
        pixels = _palette(body, file)[_unpack(_rows(body, file), file)]
    elif file.bits == 24:
        rows = _rows(body, file)[:, : 3 * file.width]
        pixels = rows.reshape(file.height, file.width, 3)[:, :, ::-1]
    else:
        values = _rows(body, file).view(f"<u{file.bits // 8}")[:, : file.width]
        planes = [_scaled(values, mask, deep=header.bits == 16) for mask in file.masks[:3]]
        pixels = np.stack(planes, axis=2)
        if file.masks[3]:
            alpha = _scaled(values, file.masks[3], deep=header.bits == 16)
    if not file.top_down:
        pixels, alpha = pixels[::-1], None if alpha is None else alpha[::-1]
    of_rgb = file.metadata.icc is not None
    if file.bits <= 8 and not of_rgb and not np.any(pixels != pixels[:, :, :1]):
        pixels = pixels[:, :, :1]
    pixels = np.ascontiguousarray(pixels)
    return Decoded(pixels, None if alpha is None else np.ascontiguousarray(alpha), file.metadata, file.notices)


def _rows(body: bytes, file: _BmpFile) -> NDArray[np.uint8]:
    """(H, stride) as stored; padding that the end of the file lacks is 0."""
    data = np.frombuffer(body, np.uint8, offset=file.start)[: file.height * file.stride]
    missing = file.height * file.stride - len(data)
    return np.pad(data, (0, missing)).reshape(file.height, file.stride) if missing else data.reshape(file.height, -1)


def _unpack(rows: NDArray[np.uint8], file: _BmpFile) -> NDArray[np.uint8]:
    """(H,W) of palette indices."""
    if file.bits == 8:
        return rows[:, : file.width]
    per_byte = 8 // file.bits
    shifts = np.arange(per_byte - 1, -1, -1, dtype=np.uint8) * np.uint8(file.bits)
    indices = rows[:, :, None] >> shifts & np.uint8(2**file.bits - 1)
    return indices.reshape(file.height, -1)[:, : file.width]


def _palette(body: bytes, file: _BmpFile) -> NDArray[np.uint8]:
    """(256, 3); entries that the file does not have are black."""
    width = 3 if file.size == _CORE else 4
    at = 14 + file.size
    found = np.frombuffer(body[at : at + width * file.colors], np.uint8)
    found = found[: len(found) // width * width].reshape(-1, width)[:, 2::-1]
    return np.pad(found, ((0, 256 - len(found)), (0, 0)))


def _scaled(values: NDArray[Any], mask: int, *, deep: bool) -> Any:  # noqa: ANN401 - uint8 or uint16
    """The bits of a mask as samples of 8 or 16 bits whose largest is white."""
    target, full = (np.uint16, 65535) if deep else (np.uint8, 255)
    if not mask:
        return np.zeros(values.shape, target)
    low = (mask & -mask).bit_length() - 1
    most = mask >> low
    parts = (values & values.dtype.type(mask)) >> values.dtype.type(low)
    wide = np.uint32 if most < 2**16 else np.uint64  # the product fits into 32 bits
    return ((parts.astype(wide) * wide(full) + wide(most // 2)) // wide(most)).astype(target)


def _profile(body: bytes) -> bytes | None:
    """The ICC profile inside a BMP whose header is of the fifth version."""
    if len(body) < 138 or struct.unpack_from("<I", body, 14)[0] < 124 or body[70:74] != b"DEBM":
        return None
    offset, size = struct.unpack_from("<II", body, 14 + 112)
    return body[14 + offset : 14 + offset + size] or None

"""Pictures and files that the tests of the codec are made of."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO

import imagecodecs
import numpy as np
from PIL import Image

from app import codec

LIMITS = codec.DecodeLimits(max_pixels=1_000_000)
ORIENTED_EXIF = (
    b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHHHHII", 0x0112, 3, 1, 6, 0, 0x010F, 2, 4, 0x534147) + bytes(4)
)
"""Orientation 6, and a Make that fits its entry."""


def samples(height=40, width=56, channels=4, dtype=np.uint8, seed=0):
    """(H,W,C): a slope that differs by channel, and noise in every bit."""
    slope = np.linspace(0.1, 0.8, height)[:, None, None] * np.linspace(0.3, 1, width)[None, :, None]
    values = slope * np.linspace(1, 0.6, channels) + np.random.default_rng(seed).random((height, width, channels)) * 0.1
    return (values * np.iinfo(dtype).max).astype(dtype)


def image(channels=3, dtype=np.uint8, *, alpha=False, **options):
    """An image of ``samples``."""
    planes = samples(channels=channels + alpha, dtype=dtype)
    return codec.Image(planes[:, :, :channels], planes[:, :, channels] if alpha else None, **options)


def saved(picture, name, **options):
    """A Pillow picture as a file."""
    stream = BytesIO()
    picture.save(stream, name, **options)
    return stream.getvalue()


def photograph(mode="RGB"):
    """A Pillow picture of ``samples``."""
    return Image.fromarray(samples()).convert(mode)


def written(picture, name="png", **options):
    """The codec's own file."""
    return codec.encode(picture, codec.EncodeOptions(name, **options)).body


def chunk(kind, content):
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(body, *chunks):
    """A PNG with chunks put in behind its header."""
    return body[:33] + b"".join(chunk(*each) for each in chunks) + body[33:]


@cache
def adobe_rgb():
    """A profile that is far from sRGB."""
    return bytes(imagecodecs.cms_profile("adobergb"))


@cache
def gray_profile(gamma=1.0):
    """A gray profile."""
    return bytes(imagecodecs.cms_profile("gray", gamma=gamma))


COMPRESSIONS = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: imagecodecs.deflate_encode,
    32773: lambda content: b"".join(
        imagecodecs.packbits_encode(content[at : at + 64]) for at in range(0, len(content), 64)
    ),
    50000: imagecodecs.zstd_encode,
}
"""TIFF's numbers, and what they do to bytes."""


def tiff(planes, *, order="<", compression=1, predictor=1, tile=None, separate=False, big=False, **tags):
    """A TIFF of (H,W,C) made by hand, in ways that no writer at hand offers together.

    Args:
        planes: uint8 or uint16.
        order, compression, predictor, separate, big: as TIFF has them.
        tile: side of a tile, or strips of seven rows.
        tags: ``t262=(5,)`` and the like, instead of or beside the usual ones.
    """
    height, width, count = planes.shape
    parts = np.split(planes, count, axis=2) if separate else [planes]
    rows, columns = (tile, tile) if tile else (7, width)
    streams = [
        COMPRESSIONS[compression](_predicted(_block(part, top, left, (rows, columns), tile=tile), predictor, order))
        for part in parts
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    start = 16 if big else 8
    sizes = [len(stream) for stream in streams]
    offsets = [start + sum(sizes[:number]) for number in range(len(sizes))]
    entries = {
        256: (width,), 257: (height,), 258: (planes.itemsize * 8,) * count, 259: (compression,),
        262: (2 if count > 2 else 1,), 277: (count,), 284: (2 if separate else 1,), 317: (predictor,),
    }  # fmt: skip
    if count in (2, 4):
        entries[338] = (2,)
    entries |= {322: (tile,), 323: (tile,), 324: offsets, 325: sizes} if tile else {273: offsets, 278: (7,), 279: sizes}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    content = b"".join(streams)
    return _tiff_file(content + bytes(len(content) % 2), entries, order, big=big, start=start)


def _block(part, top, left, shape, *, tile):
    rows, columns = shape
    block = part[top : top + rows, left : left + columns]
    if tile:
        block = np.pad(block, ((0, rows - block.shape[0]), (0, columns - block.shape[1]), (0, 0)))
    return block


def _predicted(block, predictor, order):
    if predictor == 2:
        block = np.concatenate((block[:, :1], block[:, 1:] - block[:, :-1]), axis=1)
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


def _tiff_file(content, entries, order, *, big, start):
    slot, number, offset = (8, "Q", "Q") if big else (4, "H", "I")
    values, table = b"", b""
    at = start + len(content)
    for tag, numbers in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(raw) > slot:
            table += struct.pack(order + "HH" + offset + offset, tag, 4, len(numbers), at + len(values))
            values += raw
        else:
            table += struct.pack(order + "HH" + offset, tag, 4, len(numbers)) + raw.ljust(slot, b"\0")
    mark = b"II" if order == "<" else b"MM"
    first = at + len(values)
    head = struct.pack(order + "HHHQ", 43, 8, 0, first) if big else struct.pack(order + "HI", 42, first)
    return mark + head + content + values + struct.pack(order + number, len(entries)) + table + bytes(slot)

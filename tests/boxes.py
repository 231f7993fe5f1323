"""AVIF and HEIF files put together by hand: tiles, auxiliary pictures, crops."""

from __future__ import annotations

import struct
from io import BytesIO

import pillow_heif
from PIL import Image

from app.codec.isobmff import read_container


def box(kind, *content):
    """A box."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind, version, *content):
    """A box with a version and no flags."""
    return box(kind, struct.pack(">I", version << 24), *content)


def coded(picture, kind="AVIF", **options):
    """Type, data and properties of a picture as one coded item."""
    stream = BytesIO()
    if kind == "AVIF":
        picture.save(stream, "AVIF", quality=90, **options)
    else:
        pillow_heif.from_pillow(picture).save(stream, quality=90, **options)
    body = stream.getvalue()
    item = read_container(body).picture
    data = b"".join(body[offset : offset + length] for offset, length in item.extents)
    return {"kind": item.kind, "data": data, "properties": item.properties}


def item(kind, data, properties=(), **references):
    """An item of any type; references are the numbers of others, from 1, in their order."""
    return {"kind": kind, "data": data, "properties": list(properties), "references": references}


def grid(picture, rows, columns, kind="AVIF"):
    """A picture as a grid of tiles, as phones write it. Its sides have to be multiples."""
    width, height = picture.width // columns, picture.height // rows
    tiles = [
        coded(picture.crop((x, y, x + width, y + height)), kind)
        for y in range(0, picture.height, height)
        for x in range(0, picture.width, width)
    ]
    shape = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, picture.width, picture.height)
    size = struct.pack(">III", 0, picture.width, picture.height)
    head = item(b"grid", shape, [(b"ispe", size)], dimg=list(range(2, 2 + len(tiles))))
    return container([head, *tiles], b"avif" if kind == "AVIF" else b"heic")


def container(items, brand=b"avif"):
    """A file of items, the first of which is the picture."""
    properties, associations = [], b""
    for number, each in enumerate(items, 1):
        indices = b""
        for name, content in each["properties"]:
            properties.append(box(name, content))
            essential = 0x80 if name in (b"av1C", b"hvcC", b"clap", b"irot") else 0
            indices += bytes((essential | len(properties),))
        associations += struct.pack(">HB", number, len(indices)) + indices
    infos = b"".join(
        full_box(b"infe", 2, struct.pack(">HH4s", number, 0, each["kind"]), b"\0")
        for number, each in enumerate(items, 1)
    )
    references = b"".join(
        box(name.encode(), struct.pack(f">HH{len(targets)}H", number, len(targets), *targets))
        for number, each in enumerate(items, 1)
        for name, targets in each.get("references", {}).items()
    )

    def meta(start):
        places = b""
        for number, each in enumerate(items, 1):
            places += struct.pack(">HHHII", number, 0, 1, start, len(each["data"]))
            start += len(each["data"])
        return full_box(
            b"meta", 0,
            full_box(b"hdlr", 0, struct.pack(">I4s12x", 0, b"pict"), b"\0"),
            full_box(b"pitm", 0, struct.pack(">H", 1)),
            full_box(b"iloc", 0, struct.pack(">BBH", 0x44, 0, len(items)), places),
            full_box(b"iinf", 0, struct.pack(">H", len(items)), infos),
            full_box(b"iref", 0, references) if references else b"",
            box(b"iprp", box(b"ipco", *properties), full_box(b"ipma", 0, struct.pack(">I", len(items)), associations)),
        )  # fmt: skip

    head = box(b"ftyp", brand, bytes(4), b"mif1", brand)
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *(each["data"] for each in items))


def photo(width=128, height=128):
    """A picture that is nowhere flat."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB").rotate(30, fillcolor=(200, 90, 30))

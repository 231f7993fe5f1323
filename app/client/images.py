"""Images as the client accepts them, turned into files to send. Imports Pillow and NumPy only when they are used."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Source: TypeAlias = "bytes | str | os.PathLike[str] | BinaryIO | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]"
"""An image to send: encoded bytes, a path, an open binary file, a PIL image, or an array (H,W) or (H,W,C)."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B"})
_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type by the number of channels."""

_FAST = 1
"""Compression level of what is sent."""


def open_image(image: Any) -> AbstractContextManager[BinaryIO]:  # noqa: ANN401 - any Source, or a wrong argument
    """An image as a seekable file of encoded bytes. A file that the caller opened stays open.

    Args:
        image: encoded bytes, a path, an open binary file, a PIL image, or an array of uint8 or uint16 with the shape
            (H,W) or (H,W,C) and 1 to 4 channels: gray, gray and alpha, RGB, RGBA.

    Raises:
        TypeError: if it is none of these.
        ValueError: if an array or a PIL image cannot be encoded without loss.
        OSError: if a file cannot be opened.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).open("rb")
    if isinstance(image, io.TextIOBase):
        raise TypeError("The file is open in text mode. Open it with mode 'rb'.")
    pillow: Any = sys.modules.get("PIL.Image")  # imported by the caller if it has a PIL image
    if pillow and isinstance(image, pillow.Image):
        return io.BytesIO(_encode_pillow(image))
    if hasattr(image, "read"):
        seekable = hasattr(image, "seekable") and image.seekable()
        return nullcontext(cast("BinaryIO", image)) if seekable else io.BytesIO(image.read())
    if hasattr(image, "__array__"):
        return io.BytesIO(encode_array(image))
    raise TypeError(
        f"Cannot send a {type(image).__name__}. Give bytes, a path, a file opened with mode 'rb', a PIL image, or a "
        "NumPy array."
    )


def encode_array(array: Any) -> bytes:  # noqa: ANN401 - anything with __array__
    """Encode an array as PNG, without loss.

    Args:
        array: uint8 or uint16, with the shape (H,W) or (H,W,C) and 1 to 4 channels.

    Raises:
        ValueError: if the type or the shape is another one.
    """
    import numpy as np  # noqa: PLC0415

    pixels = np.asarray(array)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] not in _COLOR_TYPES:
        raise ValueError(
            f"Cannot send an array of {pixels.dtype} with the shape {np.shape(array)}. Give uint8 or uint16 with the "
            "shape (H,W) or (H,W,C) and 1 to 4 channels."
        )
    height, width, channels = pixels.shape
    if not pixels.size:
        raise ValueError(f"Cannot send an array with the shape {np.shape(array)}: it has no pixels.")
    deep = pixels.dtype == np.uint16
    rows = np.ascontiguousarray(pixels.astype(">u2") if deep else pixels).view(np.uint8).reshape(height, -1)
    filtered = np.zeros((height, 1 + rows.shape[1]), np.uint8)  # each row begins with its filter: 0, none
    filtered[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, 16 if deep else 8, _COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), _FAST)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def decode(content: bytes) -> Image.Image:
    """Decode an image with Pillow.

    Raises:
        ImportError: if Pillow is not installed.
        PIL.UnidentifiedImageError: if Pillow cannot read the format.
    """
    try:
        from PIL import Image  # noqa: PLC0415 - the client alone does not need it
    except ImportError as error:
        raise ImportError("image() needs Pillow. Install it with: pip install pillow") from error
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _encode_pillow(image: Image.Image) -> bytes:
    """Encode a PIL image without loss: as PNG, or as TIFF where PNG does not have its mode. Metadata is kept."""
    if image.mode == "I" and not all(0 <= cast("int", value) <= 65535 for value in image.getextrema()):
        raise ValueError("Cannot send a PIL image of mode I with values outside of 0 to 65535. Convert it first.")
    kept = {name: image.info[name] for name in ("icc_profile", "dpi") if image.info.get(name)}
    exif = image.getexif()
    if exif:
        kept["exif"] = exif
    file = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(file, "PNG", compress_level=_FAST, **kept)
    else:
        image.save(file, "TIFF", **kept)
    return file.getvalue()

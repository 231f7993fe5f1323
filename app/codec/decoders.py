"""Calls decoders of other libraries, and turns what they raise into ``BrokenImage``."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import PIL.Image
import tifffile
from PIL import ImageFile

from app.codec.errors import BrokenImage

PIL.Image.MAX_IMAGE_PIXELS = None
"""Headers are checked against the limit of the request first, and TIFF's bytes are shown to Pillow as pixels."""

_RAISED = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError),
    *(struct.error, zlib.error, tifffile.TiffFileError),
)
"""Exceptions of decoders for broken files: Pillow raises many kinds, wrappers of libavif and libpng RuntimeError."""


@contextmanager
def blaming_the_file(name: str) -> Iterator[None]:
    """Turn the exceptions of a decoder into ``BrokenImage``.

    Args:
        name: of the format, for the message.

    Raises:
        BrokenImage: in place of the decoder's own.
    """
    try:
        yield
    except _RAISED as error:
        raise BrokenImage(f"The {name} file is broken or truncated; send the whole file.") from error


def load(plugin: type[ImageFile.ImageFile], body: bytes, name: str, raw_mode: str | None = None) -> PIL.Image.Image:
    """Open a file with Pillow's class of one format, without a search for the format.

    Args:
        plugin: the class.
        body: the file.
        name: of the format, for the message.
        raw_mode: Pillow's name of how the pixels are stored, in place of the one that the class chose.

    Raises:
        BrokenImage: if it cannot read the file.
    """
    with blaming_the_file(name):
        picture = plugin(BytesIO(body))
        if raw_mode is not None:
            picture.tile = [tile._replace(args=raw_mode) for tile in picture.tile]
        picture.load()
        return picture

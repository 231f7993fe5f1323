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


def load(plugin: type[ImageFile.ImageFile], body: bytes, name: str) -> PIL.Image.Image:
    """Open a file with Pillow's class of one format, without a search for the format and without Pillow's pixel limit.

    Raises:
        BrokenImage: if it cannot read the file.
    """
    with blaming_the_file(name):
        picture = plugin(BytesIO(body))
        picture.load()
        return picture

"""Where other people's decoders are called: what they raise is the file's fault, what anything else raises is ours."""

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
"""What decoders raise over broken files: Pillow nearly anything, wrappers of libavif and libpng RuntimeError."""


@contextmanager
def blaming_the_file(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into the one error that a caller can do something about.

    Args:
        name: of the format, for the sentence.

    Raises:
        BrokenImage: in place of the decoder's own.
    """
    try:
        yield
    except _RAISED as error:
        raise BrokenImage(f"The {name} file is broken or truncated; send the whole file.") from error


def load(plugin: type[ImageFile.ImageFile], body: bytes, name: str) -> PIL.Image.Image:
    """Decode with one format's class: no search over formats, and no limit on pixels but ours.

    Raises:
        BrokenImage: if it cannot read the file.
    """
    with blaming_the_file(name):
        picture = plugin(BytesIO(body))
        picture.load()
        return picture

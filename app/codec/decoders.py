"""Where other people's decoders are called: what they raise is the file's fault, what anything else raises is ours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import PIL.Image
from PIL import ImageFile, _avif

from app.errors import InvalidImage

_RAISED = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError),
    *(struct.error, zlib.error),
)
"""What decoders raise over broken files: Pillow nearly anything, wrappers of libavif and libpng RuntimeError."""


@contextmanager
def blaming_the_file(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into the one error that a caller can do something about.

    Args:
        name: of the format, for the sentence.

    Raises:
        InvalidImage: in place of the decoder's own.
    """
    try:
        yield
    except _RAISED as error:
        raise InvalidImage(f"The {name} file is broken or truncated; send the whole file.") from error


@dataclass(frozen=True)
class AvifContainer:
    """What an AVIF says outside its pixels.

    Args:
        width, height, frames: as for a header.
        packets: profile, EXIF and XMP under Pillow's names, where there are any.
        orientation: EXIF's number for how the container says that the picture is turned; EXIF is not asked.
    """

    width: int
    height: int
    frames: int
    packets: Mapping[str, bytes]
    orientation: int


def read_avif_container(body: bytes) -> AvifContainer:
    """Open an AVIF, with nothing decoded; Pillow's own class parses EXIF then, which warns or fails.

    Raises:
        InvalidImage: if it cannot be read.
    """
    with blaming_the_file("avif"):
        (width, height), frames, _, *packets, orientation, xmp = _avif.AvifDecoder(body, "auto", 1).get_info()
    return AvifContainer(
        width, height, frames, dict(zip(("icc_profile", "exif", "xmp"), (*packets, xmp), strict=True)), orientation
    )


def load(plugin: type[ImageFile.ImageFile], body: bytes, name: str) -> PIL.Image.Image:
    """Decode with one format's class: no search over formats, and no limit on pixels but ours.

    Raises:
        InvalidImage: if it cannot read the file.
    """
    with blaming_the_file(name):
        picture = plugin(BytesIO(body))
        picture.load()
        return picture

"""Where other people's decoders are called: what they raise is the file's fault, what anything else raises is ours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import PIL.Image
from PIL import AvifImagePlugin, ImageFile, _avif

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


class AvifFile(AvifImagePlugin.AvifImageFile):
    """Pillow's AVIF, decoded in the thread that asks, with EXIF left as it is.

    Pillow's own starts a thread for each core, which belong to the network here, and parses EXIF on opening, which
    warns, or fails where warnings are errors.

    Attributes:
        orientation: EXIF's number for how the container says that the picture is turned; EXIF is not asked.
    """

    def _open(self) -> None:
        assert self.fp is not None, "Pillow sets it before it opens"
        self._decoder = _avif.AvifDecoder(self.fp.read(), "auto", 1)
        self._size, self.n_frames, self._mode, icc, block, self.orientation, packet = self._decoder.get_info()
        self.is_animated = self.n_frames > 1
        self.info |= {name: each for name, each in (("icc_profile", icc), ("exif", block), ("xmp", packet)) if each}
        self.seek(0)


def open_header(plugin: type[ImageFile.ImageFile], body: bytes, name: str) -> tuple[int, int, int]:
    """Width, height and frames by one format's class.

    Raises:
        InvalidImage: if it cannot read the file.
    """
    with blaming_the_file(name):
        picture = plugin(BytesIO(body))
        return picture.width, picture.height, getattr(picture, "n_frames", 1)


def load(plugin: type[ImageFile.ImageFile], body: bytes, name: str) -> PIL.Image.Image:
    """Decode with one format's class: no search over formats, and no limit on pixels but ours.

    Raises:
        InvalidImage: if it cannot read the file.
    """
    with blaming_the_file(name):
        picture = plugin(BytesIO(body))
        picture.load()
        return picture

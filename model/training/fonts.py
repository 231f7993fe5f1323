"""Fonts for drawn text: those that the machine has, or Pillow's built-in one where it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from PIL import ImageFont

AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont
Font = Callable[[int], AnyFont]
"""A typeface: called with a size in pixels."""

FONT_FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path("/Library/Fonts"),
    Path("C:/Windows/Fonts"),
)
FONT_SUFFIXES = frozenset({".ttf", ".otf"})
LETTERS = "Rag0"
MOST_FONTS = 64


@lru_cache(maxsize=512)
def built_in(size: int) -> AnyFont:
    """Return Pillow's own font, the same on every machine; it can be scaled where Pillow has FreeType."""
    return ImageFont.load_default(size)


@lru_cache(maxsize=2048)
def _load(file: Path, size: int) -> AnyFont:
    return ImageFont.truetype(file, size)


def find_fonts(folders: Iterable[Path] = FONT_FOLDERS) -> Sequence[Font]:
    """Return the typefaces in folders and those below them, by file name; the built-in one if there is none.

    Files that Pillow cannot open and fonts without Latin letters (icons) are left out. At most 64 are returned.
    """
    files = sorted({file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in FONT_SUFFIXES})
    found = [partial(_load, file) for file in files if _is_text_font(file)]
    return found[:MOST_FONTS] or [built_in]


def _is_text_font(file: Path) -> bool:
    try:
        font = ImageFont.truetype(file, 16)
        shapes = {bytes(font.getmask(letter)) for letter in LETTERS}
    except (OSError, ValueError):
        return False
    return len(shapes) == len(LETTERS)  # missing letters all have the same shape

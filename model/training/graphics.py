"""Graphics drawn from a seed: flat areas, text, line art, gradients, patterns, charts, user interfaces, masks, spots.

People upload logos, screenshots and charts as often as photographs, and photographs have neither their saturated flat
colours nor their edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from model.degradations import reduce
from model.training.fonts import Font, built_in
from model.training.pairs import Photo
from model.types import Pixels8

Colour = tuple[int, int, int]
_WORDS = "ka re mo ti lu Sen Pro da vi on QX Wy 10 42 7.5 % gh fj -> & @ zu"
SYLLABLES = tuple(_WORDS.split())
TEXT_SIZES = (7, 48)


def draw_colour(generator: np.random.Generator) -> Colour:
    """Draw a colour: one in two saturated, one in four any, one in four gray, often black or white."""
    way = generator.random()
    if way < 0.5:
        corners = generator.choice([0, 255], 3)
        keep = generator.random(3) < 0.7
        levels = np.where(keep, corners, generator.integers(0, 256, 3))
    elif way < 0.75:
        levels = generator.integers(0, 256, 3)
    else:
        gray = generator.choice([0, 255, int(generator.integers(0, 256))])
        levels = np.full(3, gray)
    return int(levels[0]), int(levels[1]), int(levels[2])


class Sketch:
    """A square image in the making.

    Args:
        generator: of everything drawn.
        side: pixels of the finished image.
        fonts: for text.
        unit: pixels of the drawing to one of the finished image; 2 smooths the edges of shapes.
    """

    def __init__(self, generator: np.random.Generator, side: int, fonts: Sequence[Font], unit: int = 1) -> None:
        self.generator = generator
        self.fonts = fonts
        self.unit = unit
        self.finished_side = side
        self.side = side * unit
        self.image = Image.new("RGB", (self.side, self.side), draw_colour(generator))
        self.pen = ImageDraw.Draw(self.image)

    def number(self, low: float, high: float) -> int:
        """Draw an integer from ``low`` to ``high``, both of the finished image and included, in drawing pixels."""
        return int(self.generator.integers(round(low), round(high) + 1)) * self.unit

    def colour(self) -> Colour:
        """Draw a colour."""
        return draw_colour(self.generator)

    def chance(self, share: float) -> bool:
        """Draw whether something of this probability happens."""
        return bool(self.generator.random() < share)

    def box(self, least: int = 2, most: float = math.inf) -> tuple[int, int, int, int]:
        """Draw a rectangle: left, top, right, bottom, the last two included; it may reach beyond the image."""
        most = min(most, self.finished_side)
        width, height = self.number(least, most), self.number(least, most)
        left, top = (self.number(-least, self.finished_side - least) for _ in range(2))
        return left, top, left + width - 1, top + height - 1

    def points(self, count: int) -> list[tuple[int, int]]:
        """Draw points in the image and slightly around it."""
        return [
            (self.number(-8, self.finished_side + 8), self.number(-8, self.finished_side + 8)) for _ in range(count)
        ]

    def text(self, left: int, top: int, size: int, colour: Colour, letters: int) -> None:
        """Write letters of a size in finished pixels from a place."""
        words = " ".join(self.generator.choice(SYLLABLES, letters // 3 + 1))[:letters]
        font = self.fonts[int(self.generator.integers(len(self.fonts)))](size * self.unit)
        self.pen.text((left, top), words, fill=colour, font=font)

    def pixels(self) -> Pixels8:
        """Return the finished image, (side, side, 3)."""
        image = self.image.resize((self.finished_side, self.finished_side), Image.Resampling.BOX)
        return np.asarray(image)


def flat(sketch: Sketch) -> None:
    """One colour, or rectangles of a few."""
    for _ in range(int(sketch.generator.choice([0, 0, 1, 3, 8]))):
        sketch.pen.rectangle(sketch.box(), fill=sketch.colour())


def text(sketch: Sketch) -> None:
    """Lines of text of one size, on a flat area or a gradient, dark on light as often as light on dark."""
    if sketch.chance(0.2):
        gradient(sketch)
    size = round(TEXT_SIZES[0] * (TEXT_SIZES[1] / TEXT_SIZES[0]) ** sketch.generator.random())
    colour, top = sketch.colour(), sketch.number(-size / 2, size)
    while top < sketch.side:
        letters = 2 + int(2.5 * sketch.finished_side / size)
        sketch.text(sketch.number(-size, size), top, size, colour, letters)
        top += sketch.unit * round(size * (1.1 + 0.5 * sketch.generator.random()))
        if sketch.chance(0.2):
            colour = sketch.colour()


def lines(sketch: Sketch) -> None:
    """Lines, polygons, circles and arcs, one to six pixels wide."""
    colour = sketch.colour()
    for _ in range(int(sketch.generator.integers(2, 9))):
        width = sketch.number(1, 6)
        kind = int(sketch.generator.integers(5))
        box = sketch.box(6)
        if kind == 0:
            sketch.pen.line(sketch.points(int(sketch.generator.integers(2, 5))), fill=colour, width=width)
        elif kind == 1:
            sketch.pen.polygon(sketch.points(int(sketch.generator.integers(3, 6))), fill=colour)
        elif kind == 2:
            sketch.pen.ellipse(box, outline=colour, width=width)
        elif kind == 3:
            sketch.pen.ellipse(box, fill=colour)
        else:
            start = int(sketch.generator.integers(360))
            sketch.pen.arc(box, start, start + int(sketch.generator.integers(30, 330)), fill=colour, width=width)
        if sketch.chance(0.5):
            colour = sketch.colour()


def gradient(sketch: Sketch) -> None:
    """A linear or radial gradient between two colours, smooth or in bands."""
    rows, columns = np.mgrid[0 : sketch.side, 0 : sketch.side] / sketch.side
    if sketch.chance(0.6):
        angle = sketch.generator.random() * 2 * math.pi
        share = 0.5 + (rows - 0.5) * math.sin(angle) + (columns - 0.5) * math.cos(angle)
    else:
        row, column = sketch.generator.random(2)
        share = np.hypot(rows - row, columns - column)
    if sketch.chance(0.3):
        bands = int(sketch.generator.integers(2, 12))
        share = np.floor(share * bands) / bands
    sketch.image.paste(_mix(np.clip(share, 0, 1), sketch.colour(), sketch.colour()))


def pattern(sketch: Sketch) -> None:
    """A checkerboard or stripes of two colours, cells of one to sixteen pixels, gray as often as coloured."""
    rows, columns = np.mgrid[0 : sketch.side, 0 : sketch.side] // sketch.unit
    height, width = (int(sketch.generator.choice([1, 1, 2, 2, 3, 4, 4, 6, 8, 12, 16])) for _ in range(2))
    if sketch.chance(0.6):
        width = height
    offset = sketch.generator.integers(16, size=2)
    odd_row, odd_column = (rows + offset[0]) // height % 2, (columns + offset[1]) // width % 2
    way = int(sketch.generator.integers(4))
    share = (odd_row + odd_column) % 2 if way < 2 else (odd_row if way == 2 else odd_column)
    first, second = sketch.colour(), sketch.colour()
    if sketch.chance(0.5):
        dark, light = sorted(int(level) for level in sketch.generator.integers(0, 256, 2))
        first, second = (dark,) * 3, (light,) * 3
    sketch.image.paste(_mix(share.astype(np.float64), first, second))


def _mix(share: npt.NDArray[np.float64], first: Colour, second: Colour) -> Image.Image:
    mixed = np.array(first) + share[:, :, None] * (np.array(second) - np.array(first))
    return Image.fromarray((mixed + 0.5).astype(np.uint8))


def chart(sketch: Sketch) -> None:
    """Axes with bars, lines or a pie, a grid and labels."""
    side, unit = sketch.finished_side, sketch.unit
    if sketch.chance(0.7):
        sketch.image.paste((255, 255, 255), (0, 0, sketch.side, sketch.side))
    grid, step = sketch.colour(), sketch.number(8, 24)
    for at in range(0, sketch.side, step):
        sketch.pen.line([(0, at), (sketch.side, at)], fill=grid, width=unit)
    kind = int(sketch.generator.integers(3))
    if kind == 0:
        width, left = sketch.number(3, 16), sketch.number(0, 8)
        while left < sketch.side:
            sketch.pen.rectangle((left, sketch.number(0, side - 4), left + width, sketch.side), fill=sketch.colour())
            left += width + sketch.number(1, 8)
    elif kind == 1:
        for _ in range(int(sketch.generator.integers(1, 4))):
            points = [(at, sketch.number(0, side)) for at in range(0, sketch.side + step, step)]
            sketch.pen.line(points, fill=sketch.colour(), width=sketch.number(1, 3))
    else:
        box, start = sketch.box(side // 2), 0
        while start < 360:
            end = start + int(sketch.generator.integers(20, 120))
            sketch.pen.pieslice(box, start, min(end, 360), fill=sketch.colour())
            start = end
    for _ in range(3):
        size = int(sketch.generator.integers(8, 15))
        sketch.text(sketch.number(-4, side), sketch.number(-4, side), size, sketch.colour(), 5)


def interface(sketch: Sketch) -> None:
    """Panels, buttons, title bars and fields with one-pixel borders and labels."""
    side = sketch.finished_side
    for _ in range(int(sketch.generator.integers(2, 7))):
        box = sketch.box(10)
        border, fill = sketch.colour(), sketch.colour()
        if sketch.chance(0.5):
            sketch.pen.rounded_rectangle(box, sketch.number(2, 8), fill=fill, outline=border, width=sketch.number(0, 2))
        else:
            sketch.pen.rectangle(box, fill=fill, outline=border, width=sketch.number(0, 2))
        size = int(sketch.generator.integers(8, 18))
        for line in range(int(sketch.generator.integers(0, 4))):
            place = (box[0] + sketch.number(2, 8), box[1] + sketch.number(1, 6) + line * size * sketch.unit)
            sketch.text(*place, size, sketch.colour(), int(sketch.generator.integers(3, 20)))
    if sketch.chance(0.3):
        sketch.pen.rectangle((0, 0, sketch.side, sketch.number(6, side / 3)), fill=sketch.colour())


def mask(sketch: Sketch) -> None:
    """White shapes on black or the reverse, hard or with a soft edge, as transparency is."""
    black = sketch.chance(0.5)
    sketch.image.paste((0, 0, 0) if black else (255, 255, 255), (0, 0, sketch.side, sketch.side))
    for _ in range(int(sketch.generator.integers(1, 5))):
        level = int(sketch.generator.choice([0, 255, int(sketch.generator.integers(256))]))
        if sketch.chance(0.5):
            sketch.pen.ellipse(sketch.box(8), fill=(level,) * 3)
        else:
            sketch.pen.polygon(sketch.points(int(sketch.generator.integers(3, 9))), fill=(level,) * 3)
    if sketch.chance(0.5):
        small = sketch.image.resize((max(2, sketch.side // sketch.number(4, 12)),) * 2, Image.Resampling.BOX)
        sketch.image.paste(small.resize((sketch.side, sketch.side), Image.Resampling.BICUBIC))


def spots(sketch: Sketch) -> None:
    """One to three small saturated spots alone on gray."""
    gray = (int(sketch.generator.integers(256)),) * 3
    sketch.image.paste(gray, (0, 0, sketch.side, sketch.side))
    for _ in range(int(sketch.generator.integers(1, 4))):
        sketch.pen.rectangle(sketch.box(2, 20), fill=sketch.colour())


KINDS = MappingProxyType(
    {kind.__name__: kind for kind in (flat, text, lines, gradient, pattern, chart, interface, mask, spots)}
)
"""What can be drawn, by name; each as likely."""

ALIGNED: tuple[Callable[[Sketch], None], ...] = (flat, pattern, spots)
"""Kinds whose edges lie on pixels: every other one is drawn at the low resolution and its pixels are repeated."""


def draw_graphic(
    generator: np.random.Generator, side: int, scale: int, channels: int = 3, fonts: Sequence[Font] = (built_in,)
) -> Photo:
    """Draw a graphic with its low-resolution input.

    Half of the kinds with edges on pixels are enlarged rather than reduced: their low-resolution image has hard edges,
    as screenshots have.

    Args:
        generator: of everything drawn.
        side: of the low-resolution image in pixels.
        scale: of the sharp image over it.
        channels: 3, or 1 for gray.
        fonts: for text.

    Returns:
        The pair, named after its kind.
    """
    name, kind = list(KINDS.items())[int(generator.integers(len(KINDS)))]
    native = kind in ALIGNED and generator.random() < 0.5
    unit = 1 if kind in ALIGNED or generator.random() < 0.3 else 2
    sketch = Sketch(generator, side if native else scale * side, fonts, unit)
    kind(sketch)
    pixels = sketch.pixels()
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    if native:
        return Photo(name, pixels.repeat(scale, 0).repeat(scale, 1), pixels)
    return Photo(name, pixels, reduce(pixels, scale))

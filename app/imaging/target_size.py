"""The size that a request asks for, and the passes of networks that reach it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import ImageTooLarge, InvalidOption
from app.schemas import UpscaleOptions

MAX_PASSES = 3
"""Largest number of enlarging passes for one image; artefacts add up over the passes."""

_TOLERANCE = 1 + 1e-9


@dataclass(frozen=True)
class Target:
    """The size of the result.

    Attributes:
        height, width: in pixels.
        ratio: side of the image that the result is cut from, over the side of the input.
        crop: left, top, right and bottom of the part that is kept, as fractions of the upscaled image.
        option: the option that asks for it, with its value, for error messages.
    """

    height: int
    width: int
    ratio: float
    crop: tuple[float, float, float, float]
    option: str


@dataclass(frozen=True)
class Pass:
    """One pass of a variant over the whole image.

    Attributes:
        variant: its name.
        scale: side of the output over side of the input.
    """

    variant: str
    scale: int


def find_target(height: int, width: int, options: UpscaleOptions) -> Target | None:
    """The size that the options ask for; None for the scale of the variant.

    Args:
        height, width: of the upright input in pixels.
        options: at most one of width/height, factor and megapixels is given.
    """
    whole = (0.0, 0.0, 1.0, 1.0)
    if options.factor is not None:
        return _scaled(height, width, options.factor, f"factor={options.factor:g}")
    if options.megapixels is not None:
        ratio = math.sqrt(options.megapixels * 1e6 / (height * width))
        return _scaled(height, width, ratio, f"megapixels={options.megapixels:g}")
    wanted = {"width": options.width, "height": options.height}
    option = " and ".join(f"{name}={value}" for name, value in wanted.items() if value is not None)
    if options.width is not None and options.height is not None and options.fit != "inside":
        ratio = max(options.width / width, options.height / height)
        if options.fit == "exact":
            return Target(options.height, options.width, ratio, whole, option)
        across, down = options.width / (width * ratio), options.height / (height * ratio)
        crop = ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)
        return Target(options.height, options.width, ratio, crop, option)
    ratios = [value / side for value, side in ((options.width, width), (options.height, height)) if value is not None]
    return _scaled(height, width, min(ratios), option) if ratios else None


def choose_passes(
    first_passes: Sequence[Pass],
    others: Sequence[Pass],
    size: tuple[int, int],
    target: Target | None,
    *,
    max_pixels: int,
    enlarge: bool,
) -> list[Pass]:
    """The cheapest sequence of passes that reaches a target.

    Args:
        first_passes: possible first passes, the requested one first.
        others: possible further passes.
        size: height and width of the input in pixels.
        target: None for one pass of the requested variant.
        max_pixels: largest image at any point.
        enlarge: whether a sequence that does not reach the target is accepted.

    Raises:
        ImageTooLarge: if one pass makes too large an image, or the target is too large.
        InvalidOption: if no sequence reaches the target; names the largest size.
    """
    pixels = size[0] * size[1]
    if target is not None and enlarge and target.height * target.width > max_pixels:
        raise _too_large(size, (target.height, target.width), max_pixels)
    if target is None:
        first_passes, others = first_passes[:1], ()
    sequences = _list_sequences(first_passes, others)
    allowed = [each for each in sequences if pixels * _product(each) ** 2 <= max_pixels]
    if not allowed:
        scale = min(_product(each) for each in sequences)
        raise _too_large(size, (size[0] * scale, size[1] * scale), max_pixels)
    if target is None:
        return allowed[0]
    reaching = [each for each in allowed if _product(each) * _TOLERANCE >= target.ratio]
    largest = max(_product(each) for each in allowed)
    if not reaching and not enlarge:
        raise _unreachable(target, first_passes[0].variant, size, largest)
    return min(reaching or [each for each in allowed if _product(each) == largest], key=_cost)


def _list_sequences(first_passes: Sequence[Pass], others: Sequence[Pass]) -> list[list[Pass]]:
    return [
        [first, *more]
        for first in first_passes
        for count in range(MAX_PASSES)
        for more in itertools.product(others, repeat=count)
    ]


def _unreachable(target: Target, variant: str, size: tuple[int, int], largest: int) -> InvalidOption:
    """The error for a target that no sequence of passes reaches; ``largest`` is the largest scale."""
    height, width = size[0] * largest, size[1] * largest
    return InvalidOption(
        f"{target.option} is larger than the largest size that {variant} reaches for this image: {width}x{height} "
        "pixels. Use enlarge=true or a smaller size.",
        errors=[f"{target.option}: larger than {width}x{height} pixels"],
        limit=largest,
        actual=target.ratio,
        max_width=width,
        max_height=height,
    )


def _scaled(height: int, width: int, ratio: float, option: str) -> Target:
    rows, columns = max(1, round(height * ratio)), max(1, round(width * ratio))
    # Bounded by that of whole pixels: factor=2.001 may need no more than one pass of scale 2.
    ratio = min(ratio, max(rows / height, columns / width))
    return Target(rows, columns, ratio, (0.0, 0.0, 1.0, 1.0), option)


def _product(passes: Sequence[Pass]) -> int:
    return math.prod(each.scale for each in passes)


def _cost(passes: Sequence[Pass]) -> int:
    """Pixels that the networks compute, for each pixel of the input."""
    return sum(_product(passes[:index]) ** 2 for index in range(len(passes)))


def _too_large(size: tuple[int, int], result: tuple[int, int], limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"The result of {size[1]}x{size[0]} would be {result[1]}x{result[0]} ({result[0] * result[1]} pixels), and the "
        f"limit is {limit} pixels (MAX_OUTPUT_PIXELS). Send a smaller image, or request a smaller size.",
        limit=limit,
        actual=result[0] * result[1],
    )

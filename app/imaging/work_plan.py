"""The plan of a request, made once from its header and options, before anything is decoded.

Size checks, refusals, the reservation in the queue, the memory budget and the response headers all read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app import codec
from app.errors import InvalidOption
from app.imaging import memory
from app.imaging.channels import AUGMENTATIONS
from app.imaging.target_size import find_target
from app.schemas import UpscaleOptions
from app.settings import Settings
from model.padding import padded_size
from model.tiling import Tile, plan

RESULT_WINDOW = 4
"""Tiles of a request that may be computed and not yet stitched; with the self-ensemble, two tiles' augmentations."""


@dataclass(frozen=True)
class Network:
    """The properties of a variant that a plan depends on."""

    name: str
    scale: int
    window_size: int
    channels: int


@dataclass(frozen=True)
class Step:
    """One pass of a network over the whole image.

    Attributes:
        network: of this pass.
        height, width: of its input in pixels, without padding.
        tiles: in reading order; they cover the padded image.
        augmentations: 1, or 8 with the self-ensemble.
        alpha: whether the network also computes the alpha plane, unless that is constant.
    """

    network: Network
    height: int
    width: int
    tiles: list[Tile]
    augmentations: int
    alpha: bool

    @cached_property
    def cost(self) -> int:
        """Pixels that the network computes for the colors; as many again for an alpha plane."""
        return self.augmentations * sum(tile.area for tile in self.tiles)

    @property
    def jobs(self) -> int:
        """Number of tiles that the network computes."""
        return len(self.tiles) * self.augmentations * (2 if self.alpha else 1)

    @property
    def result_window(self) -> int:
        """Results that may be computed and not yet stitched."""
        return max(RESULT_WINDOW, 2 * self.augmentations)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of its output in pixels."""
        return self.height * self.network.scale, self.width * self.network.scale


@dataclass(frozen=True)
class Resize:
    """The last step, with Lanczos: the box (left, top, right, bottom) of the upscaled image becomes height x width."""

    height: int
    width: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class WorkPlan:
    """The steps of a request, its cost, and its result.

    Attributes:
        steps: passes of networks, at least one.
        resize: None if the last pass has the target size.
        format: name of the output format.
        memory_bytes: largest amount of memory for planes, results and the encoder at a time.
        response_bytes: estimate of the encoded result.
    """

    steps: tuple[Step, ...]
    resize: Resize | None
    format: str
    memory_bytes: int
    response_bytes: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return (self.resize.height, self.resize.width) if self.resize else self.steps[-1].output_size

    @property
    def color_cost(self) -> int:
        """Pixels that the networks compute without the alpha plane."""
        return sum(step.cost for step in self.steps)

    @property
    def cost(self) -> int:
        """Pixels that the networks compute at most."""
        return sum(step.cost * (2 if step.alpha else 1) for step in self.steps)

    @property
    def tiles(self) -> int:
        """Number of tiles over all steps."""
        return sum(len(step.tiles) for step in self.steps)

    @property
    def scale(self) -> int:
        """Side of the image after the last pass over side of the input."""
        return math.prod(step.network.scale for step in self.steps)

    def describe(self) -> str:
        """The steps as a response header shows them."""
        names = [step.network.name for step in self.steps]
        return "; ".join([*names, *([f"resize {self.resize.width}x{self.resize.height}"] if self.resize else [])])


def plan_work(
    header: codec.Header, options: UpscaleOptions, settings: Settings, networks: Sequence[Network]
) -> WorkPlan:
    """Plan the passes of networks over an image, and the final size.

    Args:
        header: of the upload.
        options: of the request.
        settings: limits and tiles.
        networks: of the passes, in order.

    Raises:
        InvalidOption: if the wanted tile is larger than the largest tile of this server, or an option and the output
            format exclude each other.
        codec.CodecError: if the output format cannot hold the result.
    """
    format_ = codec.output_format(options.format, header.format)
    if options.max_bytes is not None and format_ not in codec.LOSSY:
        raise InvalidOption(
            f"max_bytes needs a lossy format, and the response would be {format_}. Use format=jpeg, webp or avif.",
            errors=[f"max_bytes: {format_} is lossless"],
        )
    height, width = header.upright_height, header.upright_width
    steps: list[Step] = []
    for network in networks:
        tiles = _plan_tiles(height, width, network.window_size, options, settings)
        augmentations = AUGMENTATIONS if options.ensemble else 1
        steps.append(Step(network, height, width, tiles, augmentations, header.alpha and network.scale > 1))
        height, width = steps[-1].output_size
    resize = _plan_resize(header, options, (height, width))
    tall, wide = (resize.height, resize.width) if resize else (height, width)
    codec.check_output(format_, wide, tall)
    return WorkPlan(
        tuple(steps),
        resize,
        format_,
        memory.peak_bytes(header, steps, (tall, wide), format_, options.quality),
        memory.response_bytes(header, (tall, wide), format_, options.max_bytes),
    )


def _plan_tiles(height: int, width: int, window: int, options: UpscaleOptions, settings: Settings) -> list[Tile]:
    tile_size, overlap = settings.tile_size, settings.tile_overlap
    if options.tile != "auto":
        tile_size, overlap = options.tile, min(overlap, options.tile // 2)
    if tile_size > settings.tile_size:
        raise InvalidOption(
            f"tile={tile_size} is larger than the largest tile of this server: {settings.tile_size} pixels a side. "
            "Use a smaller tile, or auto.",
            errors=[f"tile: larger than {settings.tile_size}"],
            limit=settings.tile_size,
            actual=tile_size,
        )
    return plan(padded_size(height, window), padded_size(width, window), tile_size, overlap, window)


def _plan_resize(header: codec.Header, options: UpscaleOptions, size: tuple[int, int]) -> Resize | None:
    target = find_target(header.upright_height, header.upright_width, options)
    if target is None or (target.height, target.width) == size:
        return None
    height, width = size
    left, top, right, bottom = target.crop
    return Resize(target.height, target.width, (left * width, top * height, right * width, bottom * height))

"""Images of every kind that the image processor accepts, as arrays of planes, and back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model.padding import padded_size, source_indices

FIRST, LAST, NONE = "channels_first", "channels_last", "none"
"""Formats of an array: (C, H, W), (H, W, C) and (H, W)."""

PixelValues = Tensor | np.ndarray | list[np.ndarray]

_FOREIGN = ("tensorflow", "jax", "jaxlib", "mlx")
"""Packages whose arrays are not supported."""


def flatten(images: object, *, convert: bool) -> Iterator[tuple[np.ndarray, str | None]]:
    """Every image of a nested list or a batch, an array of two or three dimensions, and its format if known.

    PIL images are converted to RGB if ``convert``, and those of files in any case.

    Raises:
        ValueError: for other objects, and for a file that cannot be read.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("the list of images is empty")
        for image in images:
            yield from flatten(image, convert=convert)
        return
    if isinstance(images, (str, Path)):
        images = _open(images)
    elif convert and isinstance(images, Image.Image):
        images = images.convert("RGB")
    array = _array(images)
    if array.ndim == 4:
        yield from ((image, None) for image in array)
    elif array.ndim in (2, 3):
        known = (NONE if array.ndim == 2 else LAST) if isinstance(images, Image.Image) else None
        yield array, known
    else:
        raise ValueError(f"an image has two or three dimensions, a batch four; got shape {array.shape}")


def _open(file: str | Path) -> Image.Image:
    """Read an image file, upright, in RGB."""
    if str(file).startswith(("http://", "https://")):
        raise ValueError(f"{file} is not downloaded: give the path of an image file, or a PIL image")
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not an image file that can be read: {error}") from error


def _array(image: object) -> np.ndarray:
    """The pixels of one image, or of a batch."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Tensor):
        return image.detach().cpu().numpy()
    if isinstance(image, Image.Image):
        if image.mode in ("RGB", "L"):
            return np.asarray(image)
        raise ValueError(f"an image of mode {image.mode} is neither RGB nor L: use image.convert('RGB') first")
    kind = f"{type(image).__module__}.{type(image).__name__}"
    verdict = "is not supported" if kind.partition(".")[0] in _FOREIGN else "is not an image"
    raise ValueError(f"{kind} {verdict}: give a PIL image, a NumPy array or a PyTorch tensor")


def infer_format(image: np.ndarray) -> str:
    """Where the channels of an image are, by its shape.

    Raises:
        ValueError: if no side has 1 or 3 channels.
    """
    if image.ndim == 2:
        return NONE
    if image.shape[0] in (1, 3):
        return FIRST
    if image.shape[-1] in (1, 3):
        return LAST
    raise ValueError(f"shape {image.shape} has no side of 1 or 3 channels: pass input_data_format")


def to_planes(image: np.ndarray, found: str) -> np.ndarray:
    """Bring an image in a format to (C, H, W).

    Raises:
        ValueError: if it is not in this format.
    """
    if (image.ndim == 2) != (found == NONE):
        raise ValueError(f"an image of shape {image.shape} is not in the format {found!r}")
    if found == NONE:
        return image[np.newaxis]
    return image if found == FIRST else image.transpose(2, 0, 1)


def pad_planes(planes: np.ndarray, window: int) -> np.ndarray:
    """Pad an image (C, H, W) to the next larger multiples of the window, by the rule of the official script."""
    rows, columns = (source_indices(side, padded_size(side, window, "script"), "script") for side in planes.shape[1:])
    padded: np.ndarray = planes[:, rows[:, None], columns]
    return padded


def arrange(planes: np.ndarray, target: str) -> np.ndarray:
    """An image (C, H, W) in a format."""
    if target == NONE:
        plane: np.ndarray = planes[0]
        return plane
    return planes if target == FIRST else planes.transpose(1, 2, 0)


def gather(values: list[np.ndarray], kind: str | None) -> PixelValues:
    """Images as one tensor (``"pt"``) or array (``"np"``), or as they are (None).

    Raises:
        ValueError: if they are of different sizes and are to be one.
    """
    if kind is None:
        return values
    if len({value.shape for value in values}) > 1:
        raise ValueError("images of different sizes cannot be one tensor: process them one by one")
    stacked = np.stack(values)
    return torch.from_numpy(stacked) if kind == "pt" else stacked

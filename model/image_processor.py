"""The seed's image processor: images of any kind to ``pixel_values``, padded as Transformers pads them, and back.

Source: Transformers 4.37.2, ``Swin2SRImageProcessor``, which pads and never crops; here the padding can be undone.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.official.hub import local_folder
from model.padding import padded_size, source_indices

CONFIG_NAME = "preprocessor_config.json"
_FIRST, _LAST, _NONE = "channels_first", "channels_last", "none"
_FOREIGN = ("tensorflow", "jax", "jaxlib", "mlx")

PixelValues = Tensor | np.ndarray | list[np.ndarray]


class Reconstructed(Protocol):
    """Whatever carries reconstructions (B, C, s H, s W), as the output of ``Swin2SRForImageSuperResolution`` does."""

    @property
    def reconstruction(self) -> Tensor:
        """The images."""
        ...


class ProcessedImages(dict[str, PixelValues]):
    """``pixel_values`` by key and by attribute, to be passed on as ``model(**inputs)``.

    Attributes:
        original_sizes: (height, width) of every image before padding, for ``post_process_super_resolution``; not a
            key, because networks do not take it.
    """

    original_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def pixel_values(self) -> PixelValues:
        """The images, (B, C, H, W) unless another format was asked for."""
        return self["pixel_values"]

    def to(self, target: str | torch.device | torch.dtype) -> Self:
        """Move the tensors to a device or convert them to a type, in place; arrays stay as they are."""
        if isinstance(self.pixel_values, Tensor):
            self["pixel_values"] = self.pixel_values.to(target)
        return self


class Swin2SRImageProcessor:
    """Prepares images for ``Swin2SRModel`` and ``Swin2SRForImageSuperResolution``.

    Padding repeats the image mirrored, edge pixel included, on the right and at the bottom, always up to the next
    *larger* multiple of ``pad_size``: 480x640 becomes 488x648.

    Args:
        do_rescale: whether to multiply pixel values by ``rescale_factor``.
        rescale_factor: 1/255 brings 8-bit values to [0, 1].
        do_pad: whether to pad.
        pad_size: what sides become multiples of, in pixels; the network's window.
    """

    def __init__(
        self, do_rescale: bool = True, rescale_factor: float = 1 / 255, do_pad: bool = True, pad_size: int = 8
    ) -> None:
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_pad = do_pad
        self.pad_size = _checked_pad_size(pad_size)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, cache_dir: str | Path | None = None, **overrides: float) -> Self:
        """Read ``preprocessor_config.json`` from a folder, or from the local cache of a hub id.

        Args:
            name: a folder, or a hub id.
            cache_dir: folder of the Hugging Face cache, where it is not the usual one.
            overrides: constructor arguments that replace those of the file.

        Raises:
            ValueError: if there is no such file, or it is not readable.
        """
        file = local_folder(name, cache_dir=cache_dir) / CONFIG_NAME
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is not a readable image processor configuration: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file} does not hold a JSON object")  # noqa: TRY004 (a file is no argument)
        if "size_divisor" in values:  # the name of Transformers 5
            values.setdefault("pad_size", values["size_divisor"])
        known = {key: values[key] for key in ("do_rescale", "rescale_factor", "do_pad", "pad_size") if key in values}
        return cls(**{**known, **overrides})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``preprocessor_config.json`` as Transformers does, creating the folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        values = {"image_processor_type": "Swin2SRImageProcessor", **vars(self)}
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (Path(folder) / CONFIG_NAME).write_text(text, encoding="utf-8")

    def preprocess(  # noqa: PLR0917 (the order of Transformers)
        self,
        images: object,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_pad: bool | None = None,
        pad_size: int | None = None,
        return_tensors: str | None = None,
        data_format: str | None = _FIRST,
        input_data_format: str | None = None,
    ) -> ProcessedImages:
        """Scale and pad images.

        Args:
            images: a PIL image, an array or a PyTorch tensor of one or several images, or a list of these; pixel
                values from 0 to 255 unless ``do_rescale`` is False.
            do_rescale, rescale_factor, do_pad, pad_size: this processor's own where None.
            return_tensors: ``"pt"``, ``"np"``, or None for a list of arrays; the first two need equal sizes.
            data_format: ``"channels_first"``, ``"channels_last"``, or None for the format of the input.
            input_data_format: the format of the input, told from its shape where None; ``"none"`` is (H, W).

        Returns:
            ``pixel_values``, float32 where they were scaled; one grey plane where the input has no channels.

        Raises:
            ValueError: for images or options of another kind, and for unequal sizes that cannot be one tensor.
        """
        kind = _option("return_tensors", return_tensors, ("pt", "np", None))
        target = _option("data_format", data_format, (_FIRST, _LAST, None))
        source = _option("input_data_format", input_data_format, (_FIRST, _LAST, _NONE, None))
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_pad = self.do_pad if do_pad is None else do_pad
        window = self.pad_size if pad_size is None else _checked_pad_size(pad_size)
        values, sizes = [], []
        for image, known in _flatten(images):
            found = known or source or _infer_format(image)
            planes = _planes(image, found)
            sizes.append((planes.shape[1], planes.shape[2]))
            if do_rescale:
                planes = (planes * factor).astype(np.float32)
            if do_pad:
                planes = _pad_planes(planes, window)
            values.append(_arrange(planes, target or found))
        result = ProcessedImages(pixel_values=_gather(values, kind))
        result.original_sizes = tuple(sizes)
        return result

    __call__ = preprocess

    def post_process_super_resolution(
        self,
        outputs: Tensor | Reconstructed,
        original_sizes: Sequence[tuple[int, int]],
        *,
        do_pad: bool | None = None,
        pad_size: int | None = None,
    ) -> list[Tensor]:
        """Undo the padding: crop reconstructions to what the images themselves became.

        Args:
            outputs: what ``Swin2SRForImageSuperResolution`` returned, or its ``reconstruction`` (B, C, s Hp, s Wp).
            original_sizes: (height, width) of every image before padding, as ``preprocess`` noted them.
            do_pad, pad_size: as they were given to ``preprocess``.

        Returns:
            One tensor (C, s H, s W) for every image, values untouched.

        Raises:
            ValueError: if the reconstructions cannot be those of padded images of these sizes.
        """
        reconstruction: Tensor = outputs if isinstance(outputs, Tensor) else outputs.reconstruction
        if len(original_sizes) != len(reconstruction):
            raise ValueError(f"{len(reconstruction)} reconstructions do not go with {len(original_sizes)} sizes")
        do_pad = self.do_pad if do_pad is None else do_pad
        window = self.pad_size if pad_size is None else _checked_pad_size(pad_size)
        images = []
        for image, (height, width) in zip(reconstruction, original_sizes, strict=True):
            padded = [padded_size(side, window, "script") if do_pad else side for side in (height, width)]
            scales = [got / was for got, was in zip(image.shape[1:], padded, strict=True)]
            if scales[0] != scales[1] or not scales[0].is_integer():
                raise ValueError(
                    f"a reconstruction of {tuple(image.shape[1:])} does not come from an image of {(height, width)} "
                    f"padded to {tuple(padded)}"
                )
            scale = int(scales[0])
            images.append(image[:, : height * scale, : width * scale])
        return images


def _checked_pad_size(pad_size: int) -> int:
    if not isinstance(pad_size, int) or pad_size < 1:
        raise ValueError(f"pad_size must be a positive number of pixels, not {pad_size!r}")
    return pad_size


def _option(name: str, value: object, allowed: tuple[str | None, ...]) -> str | None:
    """Read a string or a member of one of Transformers' enumerations."""
    value = getattr(value, "value", value)
    if value in ("tf", "jax", "mlx"):
        raise ValueError(f"{name}={value!r} is not supported: this project knows PyTorch ('pt') and NumPy ('np') alone")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def _flatten(images: object) -> Iterator[tuple[np.ndarray, str | None]]:
    """Every image of a nested list or a batch, an array of two or three dimensions, and its format if known."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("there is no image in an empty list")
        for image in images:
            yield from _flatten(image)
        return
    array = _array(images)
    if array.ndim == 4:
        yield from ((image, None) for image in array)
    elif array.ndim in (2, 3):
        known = (_NONE if array.ndim == 2 else _LAST) if isinstance(images, Image.Image) else None
        yield array, known
    else:
        raise ValueError(f"an image has two or three dimensions, a batch four; got shape {array.shape}")


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
    verdict = "is not supported" if kind.partition(".")[0] in _FOREIGN else "is no image"
    raise ValueError(f"{kind} {verdict}: give a PIL image, a NumPy array or a PyTorch tensor")


def _infer_format(image: np.ndarray) -> str:
    if image.ndim == 2:
        return _NONE
    if image.shape[0] in (1, 3):
        return _FIRST
    if image.shape[-1] in (1, 3):
        return _LAST
    raise ValueError(f"no side of shape {image.shape} is 1 or 3 channels: give input_data_format")


def _planes(image: np.ndarray, found: str) -> np.ndarray:
    """Bring an image to (C, H, W)."""
    if (image.ndim == 2) != (found == _NONE):
        raise ValueError(f"an image of shape {image.shape} is not in the format {found!r}")
    if found == _NONE:
        return image[np.newaxis]
    return image if found == _FIRST else image.transpose(2, 0, 1)


def _pad_planes(planes: np.ndarray, window: int) -> np.ndarray:
    rows, columns = (source_indices(side, padded_size(side, window, "script"), "script") for side in planes.shape[1:])
    padded: np.ndarray = planes[:, rows[:, None], columns]
    return padded


def _arrange(planes: np.ndarray, target: str) -> np.ndarray:
    if target == _NONE:
        plane: np.ndarray = planes[0]
        return plane
    return planes if target == _FIRST else planes.transpose(1, 2, 0)


def _gather(values: list[np.ndarray], kind: str | None) -> PixelValues:
    if kind is None:
        return values
    if len({value.shape for value in values}) > 1:
        raise ValueError("images of different sizes cannot be one tensor: process them one by one")
    stacked = np.stack(values)
    return torch.from_numpy(stacked) if kind == "pt" else stacked

"""The image processor of the Transformers-compatible surface: images to ``pixel_values``, padded, and back.

Source: Transformers 4.37.2, ``Swin2SRImageProcessor``, which does not crop after the network; this one can.
"""

import json
from collections import UserDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from model.image_processor.arrays import (
    FIRST,
    LAST,
    NONE,
    PixelValues,
    arrange,
    flatten,
    gather,
    infer_format,
    pad_planes,
    to_planes,
)
from model.padding import pad_tensor, padded_size
from model.pretrained_config import refuse_push, warn_unknown
from model.repository import FOLDER_OPTIONS, find_folder

CONFIG_NAME = "preprocessor_config.json"
_IGNORED = {"image_processor_type", "processor_class", "_processor_class", "feature_extractor_type"}
_FIELDS = ("do_rescale", "rescale_factor", "do_pad", "pad_size", "size_divisor")


class Reconstructed(Protocol):
    """An object with reconstructions (B, C, s H, s W), such as the output of ``Swin2SRForImageSuperResolution``."""

    @property
    def reconstruction(self) -> Tensor:
        """The images."""
        ...


class ProcessedImages(UserDict[str, PixelValues]):
    """``pixel_values`` by key and by attribute, for ``model(**inputs)``.

    Attributes:
        data: the dictionary.
        original_sizes: (height, width) of every image before padding, for ``post_process_super_resolution``. Not a key,
            because networks do not accept it.
    """

    original_sizes: tuple[tuple[int, int], ...] = ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (a tensor, an array or a list)
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def to(self, *args: Any, **options: Any) -> Self:  # noqa: ANN401 (as Tensor.to)
        """Move the tensors to a device, and convert those of floating point to a type, in place."""
        options.pop("non_blocking", None)
        for key, value in self.data.items():
            if isinstance(value, Tensor):
                where = torch.empty(0, device=value.device).to(*args, **options).device
                self.data[key] = value.to(*args, **options) if value.is_floating_point() else value.to(where)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Stack lists of arrays: ``"pt"`` or ``"np"``; None leaves them."""
        kind = _option("tensor_type", tensor_type, ("pt", "np", None))
        for key, value in self.data.items():
            if kind is not None and isinstance(value, list):
                self.data[key] = gather(value, kind)
        return self


class Swin2SRImageProcessor:
    """Prepares images for ``Swin2SRModel`` and ``Swin2SRForImageSuperResolution``.

    Padding repeats the image mirrored, edge pixel included, on the right and at the bottom, always up to the next
    *larger* multiple of ``pad_size``: 480x640 becomes 488x648.

    Args:
        do_rescale: whether to multiply pixel values by ``rescale_factor``.
        rescale_factor: 1/255 brings 8-bit values to [0, 1].
        do_pad: whether to pad.
        pad_size: what sides become multiples of, in pixels; the network's window. Transformers 5 calls it
            ``size_divisor``; files contain the name that was given.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    is_fast: ClassVar[bool] = False

    def __init__(
        self,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_pad: bool = True,
        pad_size: int = 8,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_pad = do_pad
        self._size_name = "size_divisor" if options.get("size_divisor") is not None else "pad_size"
        self.pad_size = _checked_pad_size(_pad_size(options, pad_size))
        warn_unknown(type(self).__name__, options.keys() - _IGNORED)

    @property
    def size_divisor(self) -> int:
        """The name of ``pad_size`` in Transformers 5."""
        return self.pad_size

    @size_divisor.setter
    def size_divisor(self, size: int) -> None:
        self.pad_size = _checked_pad_size(size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        return_unused_kwargs: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (with return_unused_kwargs a pair)
        """Read ``preprocessor_config.json`` from a folder, or of a hub id.

        Args:
            pretrained_model_name_or_path: a folder, the file, or a hub id.
            return_unused_kwargs: whether to return the options that are no constructor arguments too.
            options: those of ``find_folder``, and constructor arguments that replace those of the file.

        Raises:
            ValueError: if there is no such file, or it is not readable.
        """
        values, overrides = cls.get_image_processor_dict(pretrained_model_name_or_path, **options)
        unused = {name: value for name, value in overrides.items() if name not in _FIELDS}
        if not return_unused_kwargs:
            return cls.from_dict(values, **overrides)
        known = {name: value for name, value in overrides.items() if name in _FIELDS}
        return cls.from_dict(values, **known), unused

    @classmethod
    def get_image_processor_dict(
        cls,
        pretrained_model_name_or_path: str | Path,
        **options: Any,  # noqa: ANN401
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of ``preprocessor_config.json``, and the options that are not those of ``find_folder``.

        Raises:
            ValueError: as ``from_pretrained``.
        """
        folder = {name: options.pop(name) for name in FOLDER_OPTIONS if name in options}
        file = find_folder(pretrained_model_name_or_path, **folder)
        return _read(file / CONFIG_NAME if file.is_dir() else file), options

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Self:  # noqa: ANN401
        """Build from the content of a ``preprocessor_config.json``. Unknown fields are ignored."""
        values = {name: value for name, value in image_processor_dict.items() if name in _FIELDS and value is not None}
        if "pad_size" in overrides or "size_divisor" in overrides or "pad_size" in values:
            values = {name: value for name, value in values.items() if name != "size_divisor"}
        overrides = {name: value for name, value in overrides.items() if name not in ("use_fast", "trust_remote_code")}
        return cls(**{**values, **overrides})

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Build from a file.

        Raises:
            ValueError: if it is not readable.
        """
        return cls.from_dict(_read(Path(json_file)))

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the class's name, as Transformers writes them."""
        found = {name: getattr(self, name) for name in ("do_rescale", "rescale_factor", "do_pad", self._size_name)}
        return {"image_processor_type": "Swin2SRImageProcessor", **found}

    def to_json_string(self) -> str:
        """The settings as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the settings to a file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> list[str]:  # noqa: ANN401
        """Write ``preprocessor_config.json`` as Transformers does, creating the folder; returns the file's path.

        Raises:
            ValueError: if ``push_to_hub`` is true.
        """
        refuse_push(push_to_hub)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        file = Path(save_directory) / CONFIG_NAME
        self.to_json_file(file)
        return [str(file)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoImageProcessor") -> None:
        """Accepted for code written for Transformers; has no effect."""

    def preprocess(  # noqa: PLR0917 (the order of Transformers)
        self,
        images: object,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_pad: bool | None = None,
        pad_size: int | None = None,
        return_tensors: str | None = None,
        data_format: str | None = FIRST,
        input_data_format: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ProcessedImages:
        """Scale and pad images; unknown options are ignored with a warning.

        Args:
            images: a PIL image, an image file's path, an array or a PyTorch tensor of one or several images, or a list
                of these; pixel values from 0 to 255 unless ``do_rescale`` is False.
            do_rescale, rescale_factor, do_pad, pad_size: None uses the processor's own.
            return_tensors: ``"pt"``, ``"np"``, or None for a list of arrays; the first two need equal sizes.
            data_format: ``"channels_first"``, ``"channels_last"``, or None for the format of the input.
            input_data_format: the format of the input; None infers it from the shape; ``"none"`` is (H, W).
            options: ``do_convert_rgb`` converts PIL images to RGB; ``size_divisor`` is another name of ``pad_size``.

        Returns:
            ``pixel_values``, float32 if they were scaled; one grey plane if the input has no channels.

        Raises:
            ValueError: for images or options of another kind, and for unequal sizes that cannot be one tensor.
        """
        kind = _option("return_tensors", return_tensors, ("pt", "np", None))
        target = _option("data_format", data_format, (FIRST, LAST, None))
        source = _option("input_data_format", input_data_format, (FIRST, LAST, NONE, None))
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_pad = self.do_pad if do_pad is None else do_pad
        given = _pad_size(options, pad_size)
        window = self.pad_size if given is None else _checked_pad_size(given)
        convert = bool(options.pop("do_convert_rgb", False))
        warn_unknown("preprocess", options.keys() - _IGNORED)
        values, sizes = [], []
        for image, known in flatten(images, convert=convert):
            found = known or source or infer_format(image)
            planes = to_planes(image, found)
            sizes.append((planes.shape[1], planes.shape[2]))
            if do_rescale:
                planes = (planes * factor).astype(np.float32)
            if do_pad:
                planes = pad_planes(planes, window)
            values.append(arrange(planes, target or found))
        result = ProcessedImages(pixel_values=gather(values, kind))
        result.original_sizes = tuple(sizes)
        return result

    def __call__(self, images: object, *args: Any, **options: Any) -> ProcessedImages:  # noqa: ANN401
        """As ``preprocess``."""
        return self.preprocess(images, *args, **options)

    def pad(
        self,
        image: np.ndarray | Tensor,
        size: int | None = None,
        data_format: str | None = None,
        input_data_format: str | None = None,
    ) -> np.ndarray | Tensor:
        """Pad one image (C, H, W) or (H, W, C), or a tensor (..., H, W), as ``preprocess`` does."""
        window = self.pad_size if size is None else _checked_pad_size(size)
        if isinstance(image, Tensor):
            return pad_tensor(image, window, "script")
        found = _option("input_data_format", input_data_format, (FIRST, LAST, NONE, None)) or infer_format(image)
        return arrange(pad_planes(to_planes(image, found), window), data_format or found)

    def rescale(self, image: np.ndarray | Tensor, scale: float, **_: Any) -> np.ndarray | Tensor:  # noqa: ANN401
        """Multiply pixel values."""
        return image * scale if isinstance(image, Tensor) else (image * scale).astype(np.float32)

    def post_process_super_resolution(
        self,
        outputs: Tensor | Reconstructed,
        original_sizes: Sequence[tuple[int, int]],
        *,
        do_pad: bool | None = None,
        pad_size: int | None = None,
    ) -> list[Tensor]:
        """Undo the padding: crop reconstructions to the upscaled images without padding.

        Args:
            outputs: of ``Swin2SRForImageSuperResolution``, or its ``reconstruction`` (B, C, s Hp, s Wp).
            original_sizes: (height, width) of every image before padding, as ``preprocess`` returns them.
            do_pad, pad_size: as in ``preprocess``.

        Returns:
            One tensor (C, s H, s W) for every image, with unchanged values.

        Raises:
            ValueError: if the reconstructions cannot be those of padded images of these sizes.
        """
        reconstruction: Tensor = outputs if isinstance(outputs, Tensor) else outputs.reconstruction
        if len(original_sizes) != len(reconstruction):
            raise ValueError(f"there are {len(reconstruction)} reconstructions, but {len(original_sizes)} sizes")
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


def _pad_size(options: dict[str, Any], pad_size: Any) -> Any:  # noqa: ANN401
    """Take the pad size under either name out of the options."""
    other = options.pop("size_divisor", None)
    return pad_size if other is None else other


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable image processor configuration: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} does not contain a JSON object")  # noqa: TRY004 (a file, not an argument)
    return values


def _checked_pad_size(pad_size: int) -> int:
    if not isinstance(pad_size, int) or pad_size < 1:
        raise ValueError(f"pad_size must be a positive number of pixels, not {pad_size!r}")
    return pad_size


def _option(name: str, value: object, allowed: tuple[str | None, ...]) -> str | None:
    """Read a string or a member of one of Transformers' enumerations."""
    value = getattr(value, "value", value)
    if value in ("tf", "jax", "mlx"):
        raise ValueError(f"{name}={value!r} is not supported: use PyTorch ('pt') or NumPy ('np')")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value

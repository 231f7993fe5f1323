"""The image processor of the Transformers-compatible surface: images to ``pixel_values``, padded, and back.

Source: Transformers 4.37.2, ``Swin2SRImageProcessor``, which does not crop after the network; this one can.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from model.image_processor.arrays import (
    FIRST,
    LAST,
    NONE,
    arrange,
    flatten,
    gather,
    infer_format,
    pad_planes,
    to_planes,
)
from model.image_processor.processed import ProcessedImages, check_option
from model.image_processor.settings import IGNORED, ProcessorSettings, check_pad_size, take_pad_size
from model.padding import pad_tensor, padded_size
from model.pretrained_config import warn_unknown


class Reconstructed(Protocol):
    """An object with reconstructions (B, C, s H, s W), such as the output of ``Swin2SRForImageSuperResolution``."""

    @property
    def reconstruction(self) -> Tensor:
        """The images."""
        ...


class Swin2SRImageProcessor(ProcessorSettings):
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
        kind = check_option("return_tensors", return_tensors, ("pt", "np", None))
        target = check_option("data_format", data_format, (FIRST, LAST, None))
        source = check_option("input_data_format", input_data_format, (FIRST, LAST, NONE, None))
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_pad = self.do_pad if do_pad is None else do_pad
        given = take_pad_size(options, pad_size)
        window = self.pad_size if given is None else check_pad_size(given)
        convert = bool(options.pop("do_convert_rgb", False))
        warn_unknown("preprocess", options.keys() - IGNORED)
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
        window = self.pad_size if size is None else check_pad_size(size)
        if isinstance(image, Tensor):
            return pad_tensor(image, window, "script")
        found = check_option("input_data_format", input_data_format, (FIRST, LAST, NONE, None)) or infer_format(image)
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
        window = self.pad_size if pad_size is None else check_pad_size(pad_size)
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

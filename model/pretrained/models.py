"""The model classes of the Transformers-compatible surface: ``Swin2SRModel`` and ``Swin2SRForImageSuperResolution``.

Source: the Swin2SR page of Transformers 4.37.2. Where Transformers differs from the official network (the shift mask,
the heads for compressed input and for restoration, sizes off the window grid), these classes give the results of the
official network.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from model.config import Swin2SRConfig
from model.network import Swin2SR, Swin2SRBody
from model.outputs import BaseModelOutput, ImageSuperResolutionOutput, Swin2SREncoderOutput
from model.pretrained.base import PreTrained
from model.pretrained_config import warn_unknown


class Swin2SRModel(PreTrained, Swin2SRBody):
    """The body of the network, without a head.

    Args:
        config: its dimensions.
    """

    def pad_and_normalize(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0, 1], reflected to the window grid, as the first convolution takes them."""
        return self.normalise(self._pad(pixel_values)[0])

    def forward(  # type: ignore[override]  # the answer has what the network's has
        self,
        pixel_values: Tensor,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,  # noqa: ANN401
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Compute deep features.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]. Sides off the window grid are reflected up to it, and the last hidden
                state is cropped again; hidden states and attentions are of the padded image.
            head_mask: (heads,) or (stages, heads), a factor in [0, 1] on every head's attention.
            output_attentions, output_hidden_states: whether to return these; None uses the configuration's.
            return_dict: False for a tuple; None uses the configuration's.
            options: ignored, with a warning.

        Raises:
            ValueError: if an input has another shape or type.
        """
        warn_unknown(type(self).__name__, options)
        padded, is_padded = self._pad(pixel_values)
        attentions = self._flag("output_attentions", output_attentions)
        states = self._flag("output_hidden_states", output_hidden_states)
        fast = None if attentions or states or head_mask is not None else self._fast(padded)
        if fast is not None:
            inference, layout, pixels = fast
            seen = Swin2SREncoderOutput(inference.features(pixels, layout)[0])
        else:
            masks = self._head_masks(head_mask)
            seen = self.extract(padded, masks, output_attentions=attentions, output_hidden_states=states)
        features = seen.last_hidden_state
        if is_padded:
            features = features[:, :, : pixel_values.shape[2], : pixel_values.shape[3]]
        output = BaseModelOutput(
            last_hidden_state=features,
            hidden_states=seen.hidden_states,
            attentions=seen.attentions,
        )
        return output if self._flag("return_dict", return_dict) else output.to_tuple()


class Swin2SRForImageSuperResolution(PreTrained, Swin2SR):
    """The whole network: super-resolution, or restoration at scale 1.

    Args:
        config: its dimensions and its head.
    """

    body = Swin2SRModel

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__(config)
        self.upscale, self.upsampler = config.upscale, config.upsampler
        self.init_weights()

    def forward(  # type: ignore[override]  # noqa: PLR0917 (the order of Transformers)
        self,
        pixel_values: Tensor,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ImageSuperResolutionOutput | tuple[Any, ...]:
        """Reconstruct images.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]; sides off the window grid are reflected up to it and the result is
                cropped again.
            head_mask: (heads,) or (stages, heads), a factor in [0, 1] on every head's attention.
            labels: (B, C, s * H, s * W), what the reconstruction should be; adds the loss.
            output_attentions, output_hidden_states: whether to return these; None uses the configuration's.
            return_dict: False for a tuple; None uses the configuration's.
            options: ignored, with a warning.

        Raises:
            ValueError: if an input has another shape or type.
        """
        warn_unknown(type(self).__name__, options)
        padded, is_padded = self._pad(pixel_values)
        attentions = self._flag("output_attentions", output_attentions)
        states = self._flag("output_hidden_states", output_hidden_states)
        fast = None if attentions or states or head_mask is not None else self._fast(padded)
        seen = BaseModelOutput()
        if fast is not None:
            inference, layout, pixels = fast
            image = inference.run(pixels, layout)[0].image
        else:
            seen = self.swin2sr(padded, head_mask, attentions, states, return_dict=True)
            image = self.reconstruct(seen.last_hidden_state, padded).image
        if is_padded:
            height, width = (side * self.upscale for side in pixel_values.shape[2:])
            image = image[:, :, :height, :width]
        output = ImageSuperResolutionOutput(
            loss=None if labels is None else _loss(image, labels),
            reconstruction=image,
            hidden_states=seen.hidden_states,
            attentions=seen.attentions,
        )
        return output if self._flag("return_dict", return_dict) else output.to_tuple()


def _loss(reconstruction: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != reconstruction.shape:
        raise ValueError(f"labels {tuple(labels.shape)} must have the shape {tuple(reconstruction.shape)}")
    return F.l1_loss(reconstruction, labels.to(reconstruction.dtype))

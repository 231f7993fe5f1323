"""The seed's classes: ``Swin2SRModel`` and ``Swin2SRForImageSuperResolution``, thin over ``model.network``.

Source: the Swin2SR page of Transformers 4.37.2. Where the port differs from the official network (the shift mask, the
heads for compressed input and for restoration, sizes off the window grid), these classes compute what the official
network does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoints import load_body_weights, load_weights, read_checkpoint, write_pretrained
from model.config import Swin2SRConfig
from model.inference import Inference, Workspace, can_infer, infer
from model.network import EncoderOutput, Swin2SR, Swin2SRBody
from model.official.hub import local_folder
from model.packing import PackedLayout
from model.padding import pad_tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelOutput(Mapping[str, Any]):
    """Results by attribute, by name, and by number among those that are not None, as in Transformers."""

    def to_tuple(self) -> tuple[Any, ...]:
        """All results that are not None, in their order."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:  # noqa: ANN401 (a tensor, or a tuple of tensors)
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in set(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, eq=False, kw_only=True)
class BaseModelOutput(ModelOutput):
    """What ``Swin2SRModel`` returns.

    Attributes:
        last_hidden_state: (B, embed_dim, H, W).
        hidden_states: tokens (B, H * W, embed_dim) after the embedding and after every stage.
        attentions: (B * nW, nH, N, N) of the last block of every stage, after softmax.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSuperResolutionOutput(ModelOutput):
    """What ``Swin2SRForImageSuperResolution`` returns.

    Attributes:
        loss: mean absolute difference from the labels, a scalar, where labels were given.
        reconstruction: (B, C, s * H, s * W), about [0, 1], not clamped.
        hidden_states, attentions: as of ``BaseModelOutput``.
    """

    loss: Tensor | None = None
    reconstruction: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class _Pretrained(nn.Module):
    """What both classes share: the ways from and to a folder, and the choice of the forward pass."""

    config: Swin2SRConfig

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__(config)
        self.workspace = Workspace(config.window_size, config.shift_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        cache_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load weights, strictly; the result is in evaluation mode.

        Args:
            name: a Hugging Face folder, an official ``.pth`` or ``.safetensors`` file, or a hub id, which is looked up
                in the local cache and not downloaded.
            cache_dir: folder of the Hugging Face cache, where it is not the usual one.
            device, dtype: where and how to compute.

        Raises:
            ValueError: if there is nothing of that name.
            CheckpointError: if the weights are broken, or do not fit their configuration.
        """
        checkpoint = read_checkpoint(local_folder(name, cache_dir=cache_dir))
        model = cls(checkpoint.config)
        if isinstance(model, Swin2SRBody):
            load_body_weights(model, checkpoint)
        else:
            load_weights(cast("Swin2SR", model), checkpoint)
        return model.to(device=device, dtype=dtype).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` in a form that Transformers loads too."""
        write_pretrained(cast("Swin2SR", self), folder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """Check the input and reflect it to the window grid, in the type of the weights."""
        channels = self.config.num_channels
        if not isinstance(pixel_values, Tensor):
            raise ValueError(f"pixel_values must be a PyTorch tensor, not {type(pixel_values).__name__}")  # noqa: TRY004 (as the shape)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating point of shape (B, {channels}, H, W), "
                f"not {pixel_values.dtype} {tuple(pixel_values.shape)}"
            )
        return pad_tensor(pixel_values.to(self.dtype), self.config.window_size)

    def _fast(self, padded: Tensor) -> tuple[Inference, PackedLayout, Tensor] | None:
        """The fast forward pass with its layout and its input, where it computes the same."""
        if not can_infer(self, padded):
            return None
        inference = infer(cast("Swin2SR", self), workspace=self.workspace)
        if inference is None:
            return None
        batch, _, height, width = padded.shape
        layout = self.workspace.layouts([(height, width)] * batch)
        return inference, layout, padded.permute(0, 2, 3, 1).flatten(0, 2)

    def _head_masks(self, head_mask: Tensor | None) -> list[Tensor] | None:
        """A factor (nH,) for every stage, of a mask (nH,) or (stages, nH)."""
        heads = self.config.num_heads
        if head_mask is None:
            return None
        masks = head_mask.expand(len(heads), -1) if head_mask.ndim == 1 else head_mask
        if masks.ndim != 2 or len(masks) != len(heads) or any(masks.shape[1] != count for count in heads):
            raise ValueError(
                f"head_mask {tuple(head_mask.shape)} is neither (heads,) nor (stages, heads) for the heads {heads}"
            )
        return list(masks.to(device=self.device, dtype=self.dtype))


class Swin2SRModel(_Pretrained, Swin2SRBody):
    """The body of the network, without a head.

    Args:
        config: its dimensions.
    """

    def forward(  # type: ignore[override]  # the answer has what the network's has
        self,
        pixel_values: Tensor,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Compute deep features.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]. Sides off the window grid are reflected up to it, and the last hidden
                state is cropped again; hidden states and attentions are of the padded image.
            head_mask: (heads,) or (stages, heads), a factor in [0, 1] on every head's attention.
            output_attentions, output_hidden_states: whether to return these.
            return_dict: False for a tuple.

        Raises:
            ValueError: if an input has another shape or type.
        """
        padded = self._pad(pixel_values)
        plain = head_mask is None and not output_attentions and not output_hidden_states
        fast = self._fast(padded) if plain else None
        if fast is not None:
            inference, layout, pixels = fast
            features = inference.features(pixels, layout)[0]
            seen = EncoderOutput(features)
        else:
            seen = self.extract(
                padded,
                self._head_masks(head_mask),
                output_attentions=bool(output_attentions),
                output_hidden_states=bool(output_hidden_states),
            )
        output = BaseModelOutput(
            last_hidden_state=seen.last_hidden_state[:, :, : pixel_values.shape[2], : pixel_values.shape[3]],
            hidden_states=seen.hidden_states if output_hidden_states else None,
            attentions=seen.attentions if output_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output


class Swin2SRForImageSuperResolution(_Pretrained, Swin2SR):
    """The whole network: super-resolution, or restoration at scale 1.

    Args:
        config: its dimensions and its head.
    """

    body = Swin2SRModel

    def forward(  # type: ignore[override]  # noqa: PLR0917 (the order of Transformers)
        self,
        pixel_values: Tensor,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageSuperResolutionOutput | tuple[Any, ...]:
        """Reconstruct images.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]; sides off the window grid are reflected up to it and the result is
                cropped again.
            head_mask: (heads,) or (stages, heads), a factor in [0, 1] on every head's attention.
            labels: (B, C, s * H, s * W), what the reconstruction should be; adds the loss.
            output_attentions, output_hidden_states: whether to return these.
            return_dict: False for a tuple.

        Raises:
            ValueError: if an input has another shape or type.
        """
        padded = self._pad(pixel_values)
        plain = head_mask is None and not output_attentions and not output_hidden_states
        fast = self._fast(padded) if plain else None
        states: dict[str, Any] = {}
        if fast is not None:
            inference, layout, pixels = fast
            image = inference.run(pixels, layout)[0].image
        else:
            seen = self.swin2sr(
                padded, head_mask, output_attentions=output_attentions, output_hidden_states=output_hidden_states
            )
            states = {"hidden_states": seen.hidden_states, "attentions": seen.attentions}
            image = self.reconstruct(seen.last_hidden_state, padded).image
        height, width = (side * self.config.upscale for side in pixel_values.shape[2:])
        reconstruction = image[:, :, :height, :width]
        loss = None if labels is None else _loss(reconstruction, labels)
        output = ImageSuperResolutionOutput(loss=loss, reconstruction=reconstruction, **states)
        return output.to_tuple() if return_dict is False else output


def _loss(reconstruction: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != reconstruction.shape:
        raise ValueError(f"labels {tuple(labels.shape)} must have the shape {tuple(reconstruction.shape)}")
    return F.l1_loss(reconstruction, labels.to(reconstruction.dtype))

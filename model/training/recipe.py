"""What each variant is and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from model.config import Swin2SRConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and the way to train it.

    Attributes:
        config: the network; weights given with ``--init`` must fit it.
        crop: side of a low-resolution crop in pixels, a multiple of the window.
        batch: crops a step.
        learning_rate: peak, after warm-up.
        warmup: steps of linear warm-up.
        floor: learning rate at the end, as a share of the peak; a cosine leads there.
        weight_decay: of AdamW, on matrices and convolutions only.
        clip: largest norm of the gradient.
        ema_decay: of the average of weights, which is what is kept.
        quality: lowest and highest JPEG quality of the inputs, as ``cut`` draws them; None leaves them uncompressed.
        aux_weight: weight of the auxiliary loss, for ``pixelshuffle_aux``.
        smoothing: distance to the wanted values, which lie in [0, 1], below which the loss is squared; 0 for L1.
        luma_weight: weight of the distance in luma, which is added to that of the channels.
        psnr_ceiling: if given, the mean PSNR of the crops is maximised, in place of L1. Crops above this PSNR in dB
            count less. Not together with ``smoothing``.
        continued_rate: peak of the learning rate where all weights come from ``--init``.
        continued_warmup: steps of warm-up there.
        graphics: share of drawn graphics among the crops, 0 to 1.
        smaller: further sizes, over its own, at which each photograph is used, each between 0 and 1.
    """

    config: Swin2SRConfig
    crop: int = 48
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 200
    floor: float = 0.005
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema_decay: float = 0.999
    quality: tuple[int, int] | None = None
    aux_weight: float = 1.0
    smoothing: float = 0.0
    luma_weight: float = 0.0
    psnr_ceiling: float | None = None
    continued_rate: float = 2e-5
    continued_warmup: int = 50
    graphics: float = 0.0
    smaller: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.crop < 1 or self.crop % self.config.window_size:
            raise ValueError(f"crop must be a multiple of the window {self.config.window_size}, not {self.crop}")
        if (
            min(self.batch, self.warmup, self.continued_warmup) < 1
            or self.learning_rate <= 0
            or not 0 <= self.ema_decay < 1
        ):
            raise ValueError("batch and warmup must be 1 or more, learning_rate positive, ema_decay in [0, 1)")
        if not 0 <= self.graphics <= 1 or self.continued_rate <= 0 or not 0 <= self.smoothing <= 1:
            raise ValueError("graphics and smoothing must lie between 0 and 1, continued_rate must be positive")
        if self.psnr_ceiling is not None and not 0 < self.psnr_ceiling < math.inf:
            raise ValueError(f"psnr_ceiling must be positive and finite, not {self.psnr_ceiling}")
        if self.psnr_ceiling is not None and self.smoothing:
            raise ValueError("smoothing changes the L1 loss, which psnr_ceiling replaces: give one of both")
        if self.luma_weight < 0:
            raise ValueError(f"luma_weight must be 0 or more, not {self.luma_weight}")
        if not all(0 < size < 1 for size in self.smaller):
            raise ValueError(f"smaller must lie between 0 and 1, not {self.smaller}")
        if self.quality is not None and not 1 <= self.quality[0] <= self.quality[1] <= 95:
            raise ValueError(f"quality must rise within 1 to 95, not {self.quality}")


def _small(
    upscale: int, upsampler: str | None, *, back_projection_blur: float | None = None, range_slack: float = 0.0
) -> Swin2SRConfig:
    return Swin2SRConfig(
        image_size=48,
        embed_dim=40,
        depths=(2, 2, 2),
        num_heads=(2, 2, 2),
        upscale=upscale,
        upsampler=upsampler,
        drop_path_rate=0.0,
        back_projection=back_projection_blur is not None,
        back_projection_blur=back_projection_blur or 0.0,
        range_slack=range_slack,
    )


def _classical(upscale: int, upsampler: str) -> Swin2SRConfig:
    return Swin2SRConfig(image_size=48, upscale=upscale, upsampler=upsampler)


_LIGHTWEIGHT_X2 = Swin2SRConfig(
    embed_dim=60, depths=(6,) * 4, num_heads=(6,) * 4, upscale=2, upsampler="pixelshuffledirect"
)
_JPEG = Swin2SRConfig(image_size=126, num_channels=1, window_size=7, img_range=255.0, upscale=1, upsampler=None)


def _embedded(
    config: Swin2SRConfig,
    *,
    learning_rate: float = 1e-3,
    crop: int = 48,
    batch: int = 8,
    quality: tuple[int, int] | None = None,
) -> Recipe:
    return Recipe(
        config=config,
        learning_rate=learning_rate,
        continued_rate=2e-4,
        crop=crop,
        batch=batch,
        quality=quality,
        graphics=0.15,
        smaller=(0.75, 0.5),
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "small-x2": _embedded(_small(2, "pixelshuffledirect", back_projection_blur=0), learning_rate=2e-3),
        "small-x4": _embedded(_small(4, "pixelshuffledirect", back_projection_blur=0)),
        "small-jpeg": _embedded(_small(1, None, range_slack=4 / 255), crop=64, batch=6, quality=(10, 95)),
        "small-compressed-x4": _embedded(_small(4, "pixelshuffle_aux", back_projection_blur=2), quality=(10, 95)),
        # Official networks, for fine-tuning with --init.
        "lightweight-x2": Recipe(config=_LIGHTWEIGHT_X2, crop=64, batch=16, learning_rate=1e-4),
        "classical-x2": Recipe(config=_classical(2, "pixelshuffle"), learning_rate=1e-4),
        "classical-x4": Recipe(config=_classical(4, "pixelshuffle"), learning_rate=1e-4),
        "compressed-x4": Recipe(config=_classical(4, "pixelshuffle_aux"), learning_rate=1e-4, quality=(10, 95)),
        "jpeg": Recipe(config=_JPEG, crop=126, learning_rate=1e-4, quality=(10, 95)),
    }
)

"""Swin2SR: super-resolution and restoration of compressed images.

The names below are loaded when they are first used, so that importing one module of this package loads no other.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import Swin2SRConfig
    from model.image_processor import Swin2SRImageProcessor
    from model.image_processor import Swin2SRImageProcessor as AutoImageProcessor
    from model.pretrained import Swin2SRForImageSuperResolution, Swin2SRModel
    from model.upscaler import Upscaler

__all__ = [
    "AutoImageProcessor",
    "Swin2SRConfig",
    "Swin2SRForImageSuperResolution",
    "Swin2SRImageProcessor",
    "Swin2SRModel",
    "Upscaler",
]


def __getattr__(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415 (kept out of the package's names)

    homes = {
        # The name of the processor in code for Transformers.
        "AutoImageProcessor": ("model.image_processor", "Swin2SRImageProcessor"),
        "Swin2SRConfig": ("model.config", "Swin2SRConfig"),
        "Swin2SRForImageSuperResolution": ("model.pretrained", "Swin2SRForImageSuperResolution"),
        "Swin2SRImageProcessor": ("model.image_processor", "Swin2SRImageProcessor"),
        "Swin2SRModel": ("model.pretrained", "Swin2SRModel"),
        "Upscaler": ("model.upscaler", "Upscaler"),
    }
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = homes[name]
    return getattr(import_module(module), attribute)

"""Tiny random networks for tests, and images on their window grid."""

import pytest
import torch
from torch import Tensor

from model.config import Swin2SRConfig
from model.kernels import library
from model.network import Swin2SR

_kernel = library.load_kernel()
needs_kernel = pytest.mark.skipif(_kernel is None, reason="the kernel was not built: no C compiler")
needs_amx = pytest.mark.skipif(
    _kernel is None or not _kernel.has_amx(), reason="the kernel was not built with AMX, or there is none here"
)

HEADS = {
    "classical_x2": {"upsampler": "pixelshuffle", "upscale": 2},
    "classical_x3": {"upsampler": "pixelshuffle", "upscale": 3},
    "classical_x8": {"upsampler": "pixelshuffle", "upscale": 8},
    "lightweight_x4": {"upsampler": "pixelshuffledirect", "upscale": 4},
    "realworld_x4": {"upsampler": "nearest+conv", "upscale": 4},
    "realworld_x4_3conv": {"upsampler": "nearest+conv", "upscale": 4, "resi_connection": "3conv"},
    "compressed_x4": {"upsampler": "pixelshuffle_aux", "upscale": 4},
    "jpeg": {"upsampler": None, "upscale": 1, "window_size": 7, "img_range": 255.0, "num_channels": 1},
}


def tiny_config(head: str = "lightweight_x4", **fields: object) -> Swin2SRConfig:
    """A configuration with 24 channels and five blocks, an odd stage among them."""
    small: dict[str, object] = {"embed_dim": 24, "depths": (2, 3), "num_heads": (2, 4)}
    return Swin2SRConfig.from_dict({**small, **HEADS[head], **fields})


def tiny_network(head: str = "lightweight_x4", seed: int = 0, **fields: object) -> Swin2SR:
    """A random network in evaluation mode whose weights are large enough for every part to matter."""
    torch.manual_seed(seed)
    network = Swin2SR(tiny_config(head, **fields))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    return network.eval().requires_grad_(requires_grad=False)


def random_image(network: Swin2SR, rows: int, columns: int, seed: int = 0) -> Tensor:
    """An image (C, H, W) of so many windows."""
    window = network.config.window_size
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(network.config.num_channels, rows * window, columns * window, generator=generator)

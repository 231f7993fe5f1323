"""Runs the network on windows alone, as a GPU does, on whole images and without a GPU."""

import torch

from model.gpu.network import WindowNetwork
from model.packing import lay_out, pixel_rows


def run_windowed(network, images, dtype, exact, fill=0):
    """Images (C, H, W) through a windowed network, as ``GpuRunner`` goes about it, with so many empty windows."""
    window, scale = network.config.window_size, network.config.upscale
    sizes = [tuple(image.shape[1:]) for image in images]
    own = sum(height * width for height, width in sizes) // window**2
    grid = torch.from_numpy(lay_out(sizes, window, own + fill))
    rows = [image.permute(1, 2, 0).flatten(0, 1) for image in images]
    flat = torch.cat([*rows, torch.rand(fill * window**2, rows[0].shape[1], dtype=rows[0].dtype)])
    with torch.inference_mode():
        values = WindowNetwork(network, dtype, exact)(flat[pixel_rows(grid, window)], grid)
    ordered = torch.empty(len(grid) * window**2 * scale, scale * values.shape[1], dtype=values.dtype)
    ordered[pixel_rows(grid, window, scale)] = values.view(len(ordered), -1)
    parts = ordered.split([scale * height * width for height, width in sizes] + [fill * window**2 * scale])
    return [
        part.view(scale * height, scale * width, -1).permute(2, 0, 1)
        for part, (height, width) in zip(parts, sizes, strict=False)
    ]

"""Writes networks for other programs: ONNX, and the official layout as .pth or .safetensors."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoints import write_official
from model.network import Swin2SR

SUFFIXES = (".onnx", ".pth", ".safetensors")
OPSET = 17


class _ImageAlone(nn.Module):
    """A network that returns the image only, without the auxiliary image."""

    def __init__(self, network: Swin2SR) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        return Swin2SR.forward(self.network, pixel_values).image


def export(network: Swin2SR, file: str | Path) -> None:
    """Write a network to a file. Its extension decides the format.

    ``.onnx`` has an input ``pixel_values`` (batch, channels, height, width), float32 in [0, 1], and an output
    ``reconstruction`` (batch, channels, scale * height, scale * width), not clipped. Batch, height and width are
    dynamic; height and width are multiples of the window. ``.pth`` and ``.safetensors`` are in the official layout.

    Raises:
        ValueError: for another extension, for a ``.pth`` from which the configuration could not be inferred, and for
            ``.onnx`` if the package onnx is missing.
    """
    file = Path(file)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file.name!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if file.suffix == ".onnx":
        _write_onnx(network, file)
    else:
        write_official(network, file)


def _write_onnx(network: Swin2SR, file: Path) -> None:
    try:
        import onnx  # noqa: F401, PLC0415 (of the extra "export")
    except ImportError as error:
        raise ValueError("ONNX files need the package onnx: pip install 'swin2sr-serve[export]'") from error
    config, window = network.config, network.config.window_size
    device = next(network.parameters()).device
    example = torch.rand(2, config.num_channels, 2 * window, 3 * window, device=device)
    names = {0: "batch", 2: "height", 3: "width"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            _ImageAlone(network).eval(),
            (example,),
            str(file),
            input_names=["pixel_values"],
            output_names=["reconstruction"],
            dynamic_axes={"pixel_values": names, "reconstruction": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter takes minutes for the deep networks
        )

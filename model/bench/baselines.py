"""The same network in other runtimes, where they are installed."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoints import write_pretrained
from model.network import Swin2SR

Baseline = Callable[[], np.ndarray]
"""Runs a network on the canvas that it was made for: the image (S, C, s * H, s * W) float32."""


class _ImageAlone(nn.Module):
    """The port, returning a tensor as exporters like it."""

    def __init__(self, port: nn.Module) -> None:
        super().__init__()
        self.port = port

    def forward(self, canvas: Tensor) -> Tensor:
        return self.port(canvas).reconstruction


def load_port(network: Swin2SR) -> nn.Module:
    """Transformers' network with the same weights.

    Raises:
        ImportError: if Transformers is not installed.
    """
    from transformers import Swin2SRForImageSuperResolution  # noqa: PLC0415 - optional, and slow to import
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        write_pretrained(network, folder)
        port = Swin2SRForImageSuperResolution.from_pretrained(folder)
    return _ImageAlone(port).eval().requires_grad_(requires_grad=False)


def eager(port: nn.Module, canvas: Tensor) -> Baseline:
    """Transformers as it is."""

    @torch.inference_mode()
    def run() -> np.ndarray:
        return port(canvas).float().cpu().numpy()

    return run


def openvino(port: nn.Module, canvas: Tensor) -> Baseline:
    """OpenVINO, converted for exactly this shape, in float32, with as many threads as PyTorch.

    Raises:
        ImportError: if it is not installed.
    """
    import openvino as ov  # noqa: PLC0415 - optional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about what this shape makes constant
        model = ov.convert_model(port, example_input=canvas, input=[tuple(canvas.shape)])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled, pixels = ov.compile_model(model, "CPU", settings), canvas.numpy()
    return lambda: compiled(pixels)[0]


def onnxruntime(port: nn.Module, canvas: Tensor) -> Baseline:
    """ONNX Runtime, exported for exactly this shape, with as many threads as PyTorch.

    Raises:
        ImportError: if it or ``onnx`` is not installed.
    """
    import onnx  # noqa: F401, PLC0415 - optional, and what the exporter needs
    import onnxruntime as ort  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "network.onnx"
        torch.onnx.export(port, (canvas,), file, input_names=["canvas"], opset_version=17, dynamo=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    pixels = canvas.numpy()
    return lambda: session.run(None, {"canvas": pixels})[0]


BASELINES: Mapping[str, Callable[[nn.Module, Tensor], Baseline]] = {
    "Transformers": eager,
    "OpenVINO": openvino,
    "ONNX Runtime": onnxruntime,
}
"""Makers of baselines by the names in the table; each is given the port and a canvas (S, C, H, W) in [0, 1]."""

"""The same network in other runtimes, where they are installed."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.bench.timing import Run
from model.checkpoints import write_pretrained
from model.network import Swin2SR
from model.padding import to_tensor
from model.types import Pixels8

Baseline = Callable[[], np.ndarray]
"""Runs a network on its canvas and returns the image (S, C, s * H, s * W) float32."""


class _ImageAlone(nn.Module):
    """Transformers' network that returns a tensor only, as exporters need it."""

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
    """Transformers without compilation."""

    @torch.inference_mode()
    def run() -> np.ndarray:
        return port(canvas).float().cpu().numpy()

    return run


def openvino_default(port: nn.Module, canvas: Tensor) -> Baseline:
    """OpenVINO with its default settings, as ``openvino``: on a CPU with AMX it computes in bfloat16.

    Raises:
        ImportError: if it is not installed.
    """
    return _openvino(port, canvas, {})


def openvino(port: nn.Module, canvas: Tensor) -> Baseline:
    """OpenVINO, converted for exactly this shape, in float32, with as many threads as PyTorch.

    Raises:
        ImportError: if it is not installed.
    """
    return _openvino(port, canvas, {"INFERENCE_PRECISION_HINT": "f32"})


def _openvino(port: nn.Module, canvas: Tensor, more: Mapping[str, str]) -> Baseline:
    import openvino as ov  # noqa: PLC0415 - optional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about values that are constant for this shape
        model = ov.convert_model(port, example_input=canvas, input=[tuple(canvas.shape)])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(), **more}
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
    "OpenVINO, default": openvino_default,
    "ONNX Runtime": onnxruntime,
}
"""Functions that create baselines, by the names in the table, from Transformers' network and a canvas (S, C, H, W) in
[0, 1]."""


# Transformers on a GPU, from images in main memory to values in main memory.

Form = Callable[[nn.Module, Sequence[Pixels8], torch.device], Run]
"""Creates a run of tiles on a device from Transformers' network, float32 on a CPU."""


def eager_float32(port: nn.Module, tiles: Sequence[Pixels8], device: torch.device) -> Run:
    """Float32 without compilation, in one batch; the tiles have one size."""
    return _in_one_batch(port.to(device), tiles, device, torch.float32)


def compiled_bfloat16(port: nn.Module, tiles: Sequence[Pixels8], device: torch.device) -> Run:
    """bfloat16 with torch.compile, in one batch; the tiles have one size."""
    compiled = compile_network(port.to(device, torch.bfloat16))
    return _in_one_batch(compiled, tiles, device, torch.bfloat16)


def compile_network(network: nn.Module) -> nn.Module:
    """Compile a network as users of Transformers do."""
    network.compile()
    return network


def _in_one_batch(port: nn.Module, tiles: Sequence[Pixels8], device: torch.device, dtype: torch.dtype) -> Run:
    batch = _near(torch.stack([to_tensor(tile) for tile in tiles]), device)

    @torch.inference_mode()
    def run() -> np.ndarray:
        return port(batch.to(device, non_blocking=True).to(dtype)).float().cpu().numpy()

    return run


def eager_bfloat16(port: nn.Module, tiles: Sequence[Pixels8], device: torch.device) -> Run:
    """bfloat16, tiles of any sizes one after the other, because Transformers cannot batch them."""
    port = port.to(device, torch.bfloat16)
    canvases = [_near(to_tensor(tile)[None], device) for tile in tiles]

    @torch.inference_mode()
    def run() -> list[np.ndarray]:
        images = (port(canvas.to(device, non_blocking=True).to(torch.bfloat16)) for canvas in canvases)
        return [image.float().cpu().numpy() for image in images]

    return run


def _near(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in pinned memory if the device is a GPU, so that copies are fast."""
    return tensor.pin_memory() if device.type == "cuda" else tensor

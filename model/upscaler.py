"""A network with its device and precision, ready to call: images in, images out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike

from model.checkpoints import load_network
from model.gpu.pending import PendingBatch
from model.gpu.runner import GpuRunner
from model.hooks import HeartbeatHook, has_observers
from model.network import Swin2SR
from model.padding import pad, quantise, to_tensor
from model.precision import check_precision, choose_precision, infer_precisely


class Upscaler:
    """Upscales images. Safe to call from several threads.

    Args:
        network: in evaluation mode, float32 weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` uses a GPU if available.
        precision: ``auto``, ``exact``, ``high`` or ``fast``, as ``model/precision.py`` describes them.

    Attributes:
        config: of the network.
        scale, window_size, channels: the configuration's ``upscale``, ``window_size``, ``num_channels``.
        device: that is used.
        precision: that is used: ``exact`` if the hardware does not support the requested one.
        dtype: of the operands of products; bfloat16 for ``fast`` on a GPU, else float32.

    Raises:
        ValueError: if the device is unknown or missing, or the precision is unknown.
    """

    def __init__(self, network: Swin2SR, *, device: str = "auto", precision: str = "auto") -> None:
        check_precision(precision)
        self.config = network.config
        self.scale, self.window_size = self.config.upscale, self.config.window_size
        self.channels = self.config.num_channels
        self.device = find_device(device)
        self.network = network.to(self.device).eval().requires_grad_(requires_grad=False)
        on_gpu = self.device.type == "cuda"
        self._on_cpu = None if on_gpu else infer_precisely(self.network, precision)
        if on_gpu:
            self.precision = choose_precision(self.network, precision)
        else:
            self.precision = "exact" if self._on_cpu is None else self._on_cpu.precision
        self.dtype = torch.bfloat16 if on_gpu and self.precision == "fast" else torch.float32
        # On a GPU kernels are chosen and graphs captured now, so that the first requests need not wait for it.
        self._on_gpu: GpuRunner | None = None
        if on_gpu:
            tf32 = self.precision == "high"
            self._on_gpu = GpuRunner(self.network, self.dtype, tf32=tf32, bytes_per_pixel=self.bytes_per_pixel)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto", precision: str = "auto") -> Upscaler:
        """Load a Hugging Face folder, a ``.pth`` or a ``.safetensors`` file.

        Raises:
            CheckpointError: if the weights cannot be read or do not fit, naming the file.
            ValueError: if the device is unknown or missing, or the precision is unknown.
        """
        return cls(load_network(path), device=device, precision=precision)

    @property
    def bytes_per_pixel(self) -> int:
        """Upper bound on the memory of a forward pass for each pixel of its tiles, without the weights.

        It counts tokens of the body and the head's features at the output's size, on a GPU also the attention of all
        windows. A test compares it with measured peaks.
        """
        features = 16 if self.config.upsampler in (None, "pixelshuffledirect") else 200
        floats = 10 * self.config.embed_dim + self.scale**2 * features
        if self.device.type != "cpu":
            floats += 4 * max(self.config.num_heads) * self.window_size**2
        return 4 * floats

    @torch.inference_mode()
    def forward(self, tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Reconstruct tiles of any sizes in one forward pass.

        Args:
            tiles: each (H, W, C) uint8 or uint16, sides multiples of the window.

        Returns:
            For each tile (scale * H, scale * W, C) float32 in about [0, 1], not clamped.

        Raises:
            ValueError: if a side is off the window grid or the channels are not the network's.
        """
        if self.runs_ahead:
            return self.launch(tiles).results()
        self._check(tiles)
        if not tiles:
            return []
        images = [to_tensor(tile) for tile in tiles]
        if self._on_cpu is not None and not has_observers(self.network):
            found = [each.image for each in self._on_cpu.reconstruct(images)]
        else:
            found = [self.network(image[None].to(self.device)).image[0] for image in images]
        return [image.permute(1, 2, 0).float().cpu().numpy() for image in found]

    def on_progress(self, report: Callable[[], None]) -> None:
        """Call ``report`` before every block and layer of the head. On a CPU only, where a pass may take minutes."""
        if self._on_cpu is not None:
            self._on_cpu.body.heartbeat = report
            for module in self.network.modules():
                module.register_forward_pre_hook(HeartbeatHook(report))

    @property
    def runs_ahead(self) -> bool:
        """Whether the device is asynchronous, so that ``launch`` can be used."""
        return self._on_gpu is not None

    @property
    def rounds(self) -> bool:
        """Whether ``launch`` can round results on the device."""
        return self.runs_ahead

    def launch(self, tiles: Sequence[np.ndarray], dtypes: Sequence[DTypeLike | None] | None = None) -> PendingBatch:
        """Begin ``forward`` and return at once, if ``runs_ahead``. Later launches are computed after it.

        Args:
            tiles: as for ``forward``.
            dtypes: for each tile the integer type that its values are rounded to on the device, uint8 or uint16, which
                makes them smaller to download; None for float32, as by default.

        Raises:
            ValueError: as ``forward``; and from ``results`` of the batch, if a value that was rounded is not finite.
        """
        assert self._on_gpu is not None, "only if runs_ahead"
        self._check(tiles)
        return self._on_gpu.launch(tiles, dtypes)

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Upscale images of any sizes in one forward pass, padded by the direct rule and cropped.

        Args:
            images: each (H, W, C) uint8 or uint16.

        Returns:
            For each image (scale * H, scale * W, C) of its own dtype.

        Raises:
            ValueError: if the channels are not the network's, or a value is not finite.
        """
        tiles, dtypes = [pad(image, self.window_size) for image in images], [image.dtype for image in images]
        outputs = self.launch(tiles, dtypes).results() if self.runs_ahead else self.forward(tiles)
        cropped = [
            output[: self.scale * image.shape[0], : self.scale * image.shape[1]]
            for image, output in zip(images, outputs, strict=True)
        ]
        if self.runs_ahead:
            return [np.ascontiguousarray(image) for image in cropped]
        return [quantise(image, dtype) for image, dtype in zip(cropped, dtypes, strict=True)]

    def _check(self, tiles: Sequence[np.ndarray]) -> None:
        for tile in tiles:
            if tile.ndim != 3 or tile.shape[2] != self.channels:
                raise ValueError(f"Expected (H, W, {self.channels}), not {tile.shape}.")


def find_device(name: str) -> torch.device:
    """The device that a setting names.

    Raises:
        ValueError: if it is unknown or missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"The device must be auto, cpu, cuda or cuda:N, not {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"The device must be auto, cpu, cuda or cuda:N, not {name!r}.")
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        raise ValueError(f"Device {name} does not exist: PyTorch finds {torch.cuda.device_count()} GPUs.")
    return device

"""A network with its device and dtype, ready to call: images in, images out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.checkpoints import load_network
from model.gpu.runner import Flight, Forward
from model.network import Swin2SR
from model.padding import pad_direct, quantise, to_tensor


class Upscaler:
    """What turns pixels into upscaled pixels; safe to call from several threads.

    Args:
        network: in evaluation mode, float32 weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` takes a GPU where there is one.
        dtype: ``auto``, ``float32`` or ``bfloat16`` for linear layers and convolutions; normalisation and softmax are
            float32 always, and on a GPU the first convolution, the residual stream and the head too. ``auto`` is
            bfloat16 on a GPU that knows it, else float32. There is no float16: deep stages overflow it.

    Attributes:
        config: of the network.
        scale, window_size, channels: short for the config's ``upscale``, ``window_size``, ``num_channels``.
        device, dtype: as resolved.

    Raises:
        ValueError: if the device or the dtype is unknown or not there.
    """

    def __init__(self, network: Swin2SR, *, device: str = "auto", dtype: str = "auto") -> None:
        self.config = network.config
        self.scale, self.window_size = self.config.upscale, self.config.window_size
        self.channels = self.config.num_channels
        self.device = find_device(device)
        self.dtype = find_dtype(dtype, self.device)
        self.network = network.to(self.device).eval().requires_grad_(requires_grad=False)
        # On a GPU kernels are chosen and graphs captured now: nothing of that is left to the first requests.
        self._on_gpu: Forward | None = None
        if self.device.type == "cuda":
            self._on_gpu = Forward(self.network, self.dtype, bytes_per_pixel=self.bytes_per_pixel)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto", dtype: str = "auto") -> Upscaler:
        """Load a Hugging Face folder, a ``.pth`` or a ``.safetensors`` file.

        Raises:
            CheckpointError: if the weights cannot be read or do not fit, naming the file.
            ValueError: if the device or the dtype is unknown or not there.
        """
        return cls(load_network(path), device=device, dtype=dtype)

    @property
    def bytes_per_pixel(self) -> int:
        """An upper bound on the memory that a forward pass takes for every pixel of its tiles, weights apart.

        Tokens and canvases of the body, then the head's features at the output's size; where windows do not pass a
        block in chunks, on a GPU, also their attention. Held against measured peaks by a test.
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            reconstructions = self.network.reconstruct(images)
        return [reconstruction.image.permute(1, 2, 0).float().cpu().numpy() for reconstruction in reconstructions]

    @property
    def runs_ahead(self) -> bool:
        """Whether the device computes by itself what ``launch`` gives it."""
        return self._on_gpu is not None

    @torch.inference_mode()
    def launch(self, tiles: Sequence[np.ndarray]) -> Flight:
        """Begin what ``forward`` does; only where it ``runs_ahead``. What is launched next is computed after it.

        Raises:
            ValueError: as ``forward``.
        """
        assert self._on_gpu is not None, "there is no device to launch anything on"
        self._check(tiles)
        return self._on_gpu.launch(tiles)

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Upscale images of any sizes in one forward pass, padded by the direct rule and cropped.

        Args:
            images: each (H, W, C) uint8 or uint16.

        Returns:
            For each image (scale * H, scale * W, C) of its own dtype.

        Raises:
            ValueError: if the channels are not the network's.
        """
        outputs = self.forward([pad_direct(image, self.window_size) for image in images])
        return [
            quantise(output[: self.scale * image.shape[0], : self.scale * image.shape[1]], image.dtype)
            for image, output in zip(images, outputs, strict=True)
        ]

    def _check(self, tiles: Sequence[np.ndarray]) -> None:
        for tile in tiles:
            if tile.ndim != 3 or tile.shape[2] != self.channels:
                raise ValueError(f"Expected (H, W, {self.channels}), not {tile.shape}.")


def find_device(name: str) -> torch.device:
    """The device that a setting names.

    Raises:
        ValueError: if it is unknown, or is not there.
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
        raise ValueError(f"The device {name} is not there: PyTorch sees {torch.cuda.device_count()} GPUs.")
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a setting names for a device.

    Raises:
        ValueError: if it is neither ``auto``, ``float32`` nor ``bfloat16``.
    """
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            known = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if known else torch.float32
    if name not in choices:
        raise ValueError(f"The dtype must be auto, float32 or bfloat16, not {name!r}.")
    return choices[name]

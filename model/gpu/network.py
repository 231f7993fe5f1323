"""The network over windows alone, as a GPU computes it: no shape depends on anything but the number of windows.

A convolution sees each window with a border of its neighbours' tokens. Matrix products and the body's convolutions are
computed in ``dtype``; the residual stream, norms, softmax, the first convolution and the head in ``exact``, because the
image is the sum of what they pass on. On the tests' networks bfloat16 costs two thirds or less of what autocast does;
``tests/test_gpu_network.py`` states it for each head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.body import WindowBody, convolve
from model.inference.operators import PLAIN, Operators
from model.inference.packed_weights import ALIGNMENT, Form, pack_convolution
from model.network import Swin2SR
from model.packing import WindowIndex
from model.reconstruction import mean_of, pixel_shuffle_steps
from model.refinement import (
    FAR,
    NEAR,
    bounds,
    enlarge_border,
    enlarge_weights,
    limit,
    reduce_border,
    reduce_weights,
    spread,
)

BICUBIC_BORDER = 3
"""Pixels around a window that its bicubic enlargement depends on, and one more."""

FROM_IMAGES = ("first_convolution", "conv_bicubic", "conv_after_aux.0")
"""Convolutions whose inputs are images, which keep their number of channels."""


class WindowNetwork:
    """A network's weights in the form that windows alone can be computed with.

    Args:
        network: in evaluation mode, on its device.
        dtype: of matrix products in the body: bfloat16, or ``exact``.
        exact: float32, or float64.
        operators: PyTorch's, or kernels.

    Raises:
        NotPlainError: if a module is not the one that the network was built with.
    """

    @torch.no_grad()
    def __init__(
        self, network: Swin2SR, dtype: torch.dtype, exact: torch.dtype = torch.float32, operators: Operators = PLAIN
    ) -> None:
        config, device = network.config, next(network.parameters()).device
        form = Form(exact, exact, ALIGNMENT)
        self.config, self.dtype, self.exact = config, dtype, exact
        self.mean_in = mean_of(config.num_channels).to(device, exact).flatten()
        self.mean_out = mean_of(config.out_channels).to(device, exact).flatten()
        self.first = pack_convolution(network.swin2sr.first_convolution, form, fill_input=False)
        self.body = WindowBody(network.swin2sr, Form(dtype, exact, ALIGNMENT), operators)
        self.back_projection, self.range_slack = config.back_projection, config.range_slack
        self.error_border = enlarge_border(config.back_projection_blur)
        self.bicubic = bicubic_rows(config.window_size, config.upscale, device, exact)
        self.reduce, self.enlarge = (
            rows.to(device, exact)
            for rows in refinement_rows(config.window_size, config.upscale, config.back_projection_blur)
        )
        head: nn.Module = network.final_convolution if config.upsampler is None else network.upsample
        self.head = {
            name: pack_convolution(layer, form, fill_input=name not in FROM_IMAGES, fill_output=False)
            for name, layer in head.named_modules()
            if isinstance(layer, nn.Conv2d)
        }

    @property
    def operators(self) -> Operators:
        """The operators in use."""
        return self.body.operators

    @operators.setter
    def operators(self, operators: Operators) -> None:
        self.body.operators = operators

    def __call__(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """Reconstruct all windows.

        Args:
            pixels: (T, channels) in window order, in [0, 1].
            grid: (nW, 5) int32.

        Returns:
            (nW * N * scale ** 2, out_channels), each window enlarged, in reading order; not clamped.
        """
        index = WindowIndex(grid, self.config.window_size, self.config.shift_size, functions=self.operators.index)
        pixels = pixels.to(self.exact)
        normalised = (pixels - self.mean_in) * self.config.img_range
        shallow = convolve(self.operators, normalised, index, index.window, self.first)
        image = self._reconstruct(self.body(shallow, index), normalised, index)
        return self._refine(image / self.config.img_range + self.mean_out, pixels, index)

    def _refine(self, image: Tensor, pixels: Tensor, index: WindowIndex) -> Tensor:
        """As ``model.refinement.refine``, of tokens."""
        side, scale, slack = index.window, self.config.upscale, self.range_slack
        if self.back_projection:
            seen = _squares(image, index, side * scale, reduce_border(scale))
            error = pixels - _tokens(self.reduce @ seen @ self.reduce.T)
            image = image + _tokens(self.enlarge @ _squares(error, index, side, self.error_border) @ self.enlarge.T)
        if slack is not None:
            border = FAR if slack > 0 else NEAR
            seen, inside = _squares(pixels, index, side, border), slice(border, border + side)
            low, high = (_tokens(spread(bound[..., inside, inside], scale)) for bound in bounds(seen, slack))
            image = limit(image, low, high)
        return image

    # The heads, as in model.reconstruction.

    def _convolve(self, tokens: Tensor, index: WindowIndex, side: int, name: str, slope: float = 1.0) -> Tensor:
        """A convolution of the head by its name, and a leaky ReLU behind it."""
        tokens = convolve(self.operators, tokens, index, side, self.head[name])
        return tokens if slope == 1 else F.leaky_relu(tokens, slope)

    def _reconstruct(self, features: Tensor, pixels: Tensor, index: WindowIndex) -> Tensor:
        side, scale = index.window, self.config.upscale
        match self.config.upsampler:
            case None:
                return pixels + self._convolve(features, index, side, "")
            case "pixelshuffledirect":
                return _shuffle(self._convolve(features, index, side, "conv"), side, scale)
            case "nearest+conv":
                return self._enlarge_by_nearest(features, index)
        features = self._convolve(features, index, side, "conv_before_upsample", 0.01)
        if self.config.upsampler == "pixelshuffle":
            return self._convolve(self._enlarge_by_shuffle(features, index), index, side * scale, "final_convolution")
        aux = self._convolve(features, index, side, "conv_aux")
        features = self._enlarge_by_shuffle(self._convolve(aux, index, side, "conv_after_aux.0", 0.01), index)
        enlarged = self._convolve(self._enlarge_by_bicubic(pixels, index), index, side * scale, "conv_bicubic")
        return self._convolve(features + enlarged, index, side * scale, "final_convolution")

    def _enlarge_by_shuffle(self, features: Tensor, index: WindowIndex) -> Tensor:
        side = index.window
        for name, step in pixel_shuffle_steps(self.config.upscale).items():
            features = _shuffle(self._convolve(features, index, side, f"upsample.{name}"), side, step)
            side *= step
        return features

    def _enlarge_by_bicubic(self, pixels: Tensor, index: WindowIndex) -> Tensor:
        """Pixels (T, C) enlarged, beyond an image's border by its border."""
        squares = _squares(pixels, index, index.window, BICUBIC_BORDER)
        return _tokens(self.bicubic @ squares @ self.bicubic.T)

    def _enlarge_by_nearest(self, features: Tensor, index: WindowIndex) -> Tensor:
        side = index.window
        features = self._convolve(features, index, side, "conv_before_upsample", 0.01)
        for name in ("conv_up1", "conv_up2"):
            square = features.view(index.windows_count, side, 1, side, 1, -1).expand(-1, -1, 2, -1, 2, -1)
            side *= 2
            features = self._convolve(square.reshape(-1, features.shape[1]), index, side, name, 0.2)
        features = self._convolve(features, index, side, "conv_hr", 0.2)
        return self._convolve(features, index, side, "final_convolution")


def _squares(tokens: Tensor, index: WindowIndex, side: int, border: int) -> Tensor:
    """The windows of tokens (nW * side ** 2, C) with a border, (nW, C, S, S); beyond the image is its border."""
    seen = tokens.index_select(0, index.clamped(side, border).view(-1))
    return seen.view(index.windows_count, side + 2 * border, side + 2 * border, -1).permute(0, 3, 1, 2)


def _tokens(squares: Tensor) -> Tensor:
    """Windows (nW, C, S, S) to tokens (nW * S * S, C)."""
    return squares.permute(0, 2, 3, 1).reshape(-1, squares.shape[1])


def _shuffle(tokens: Tensor, side: int, step: int) -> Tensor:
    """PixelShuffle within windows of ``side``: (T, F * step ** 2) to (T * step ** 2, F)."""
    square = tokens.view(-1, side, side, tokens.shape[1] // step**2, step, step)
    return square.permute(0, 1, 4, 2, 5, 3).reshape(-1, square.shape[3])


def bicubic_rows(side: int, scale: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a window and its border of ``BICUBIC_BORDER`` give each row of the enlarged window: (side * scale, S)."""
    border = BICUBIC_BORDER
    whole = torch.eye(side + 2 * border, dtype=torch.float64)[None, None]
    large = F.interpolate(whole, scale_factor=(scale, 1), mode="bicubic", align_corners=False)
    return large[0, 0, border * scale : (border + side) * scale].to(device, dtype)


def refinement_rows(side: int, scale: int, blur: float) -> tuple[Tensor, Tensor]:
    """How a window with a border is reduced, (side, S), and how one is enlarged, (side * scale, S'), in float64."""
    weights, phases = reduce_weights(scale), enlarge_weights(scale, blur)
    reduce = torch.zeros(side, side * scale + 2 * reduce_border(scale), dtype=torch.float64)
    enlarge = torch.zeros(side * scale, side + 2 * enlarge_border(blur), dtype=torch.float64)
    for row in range(side):
        reduce[row, row * scale : row * scale + len(weights)] = weights
        enlarge[row * scale : (row + 1) * scale, row : row + phases.shape[1]] = phases
    return reduce, enlarge

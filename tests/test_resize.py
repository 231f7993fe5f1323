"""Resizing and blending in bands."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from app.imaging.resize import blend_with_bicubic, resize


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(13, 20), (80, 150)])
def test_resizing_keeps_depth_and_flat_colors(dtype, size):
    """No clipping artefacts, no change of type, the requested size, smaller or larger."""
    limit = np.iinfo(dtype).max
    pixels = np.full((40, 60, 3), (0, limit // 3, limit), dtype)
    resized = resize(pixels, *size)
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, np.full((*size, 3), (0, limit // 3, limit), dtype))


@pytest.mark.parametrize("size", [(40, 24), (150, 97)])
@pytest.mark.parametrize("box", [None, (8, 4, 60.5, 50)])
def test_resizing_agrees_with_pillows_own_lanczos(size, box):
    """Within one level, in 8 bits, if no value is clipped between its two passes."""
    pixels = np.random.default_rng(0).integers(90, 166, (64, 64, 3), np.uint8)
    reference = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box)).astype(int)
    assert np.abs(resize(pixels, *size[::-1], box).astype(int) - reference).max() <= 1


@pytest.mark.parametrize(
    ("size", "to"),
    [((1500, 60), (700, 31)), ((1999, 40), (1001, 20)), ((1037, 50), (519, 33)), ((90, 9), (999, 33))],
)
def test_resizing_in_bands_is_resizing_at_once(size, to):
    """A tall image is resized in parts without a seam: one level of 65535 is the parts' rounding."""
    pixels = np.random.default_rng(0).integers(20_000, 45_000, (*size, 1), np.uint16)
    values = Image.fromarray(pixels[:, :, 0].astype(np.float32))
    reference = np.rint(np.asarray(values.resize(to[::-1], Image.Resampling.LANCZOS)))
    assert np.abs(resize(pixels, *to)[:, :, 0] - reference).max() <= 1


def test_resizing_to_the_same_size_is_nothing():
    """The very same pixels."""
    pixels = np.zeros((2, 3, 1), np.uint8)
    assert resize(pixels, 2, 3) is pixels


@pytest.mark.parametrize("strength", [0, 0.25, 1])
def test_strength_blends_with_pillows_bicubic(strength):
    """0 is the resized input, 1 the network's result, and between them the weights add up."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (300, 20, 3), np.uint8)
    result = rng.integers(0, 256, (600, 40, 3), np.uint8)
    bicubic = np.asarray(Image.fromarray(source).resize((40, 600), Image.Resampling.BICUBIC)).astype(float)
    blended = blend_with_bicubic(result, source, strength)
    assert np.abs(blended - (strength * result + (1 - strength) * bicubic)).max() <= 1.5


def test_at_scale_one_strength_blends_with_the_input_itself():
    """No filter changes it."""
    rng = np.random.default_rng(0)
    source, result = rng.integers(0, 65536, (2, 30, 20, 3), np.uint16)
    np.testing.assert_array_equal(blend_with_bicubic(result, source, 0), source)
    assert blend_with_bicubic(result, source, 1) is result
